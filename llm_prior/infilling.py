"""Infilling: the probabilities of the elements for a masked one, and substitution in a crystal.

All elements are scored in one pass of the model over prompt and answers together. Their tokens
form a tree at the end of the prompt: a token of an answer attends to the prompt and to the tokens
before it in its own answer, so the prompt and common beginnings are computed once.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import combinations, permutations
from typing import TYPE_CHECKING

import torch
from pymatgen.core import Element, Structure
from torch import Tensor

from llm_prior.config import check_temperature
from llm_prior.dataset import tokenize
from llm_prior.errors import PriorError
from llm_prior.loading import input_embeddings
from llm_prior.model import Prior
from llm_prior.prompts import INFILL_TAIL, infill_prompt
from llm_prior.text import SYMBOLS, mask_element, site_symbols

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

INFILL_BATCH_SIZE = 16
RADIUS_TOLERANCE = 0.1  # Angstrom
_ROUNDING = 1e-9  # 1.26 - 1.16 is a little more than 0.1 in binary


def element_probabilities(
    prior: Prior,
    structures: Sequence[Structure],
    masks: Sequence[str],
    *,
    temperature: float = 1.0,
    candidates: Sequence[Collection[str]] | None = None,
    batch_size: int = INFILL_BATCH_SIZE,
) -> list[dict[str, float]]:
    """Return the model's probabilities of the elements for a masked one in each crystal.

    p(e) ~ p_model(e, end of sequence | prompt) ^ (1 / temperature), normalised over the candidates.
    If no element's tokens are a prefix of another element's, as with the compact tokenizer, the end
    of sequence carries no information and is left out.

    Args:
        prior: the model.
        structures: crystals of at most `prior.fmt.max_atoms` sites. In the layout `sites` their
            coordinates are kept; `wyckoff` writes the canonical text.
        masks: symbol of the element in each crystal whose sites, or orbits, are masked.
        temperature: divides the log-probabilities; 0 gives the likeliest element probability 1.
        candidates: symbols that may replace the masked element in each crystal; default all 118,
            the masked one included.
        batch_size: crystals per forward pass; bounds the memory.

    Returns:
        For each crystal symbol -> probability, likeliest first; they sum to 1.

    Raises:
        PriorError: if a masked element is not in its crystal, there are no or unknown candidates,
            the temperature is bad, or a prompt is longer than the model's context.
    """
    check_temperature(temperature)
    if batch_size < 1:
        raise PriorError(f"batch_size {batch_size} must be at least 1")
    if candidates is None:
        candidates = [SYMBOLS] * len(structures)
    tree = _AnswerTree.build(prior.tokenizer)
    prompts = []
    for structure, mask, allowed in zip(structures, masks, candidates, strict=True):
        if not allowed or not set(allowed) <= set(SYMBOLS):
            formula = structure.composition.reduced_formula
            raise PriorError(
                f"no element may replace {mask} in {formula}; allow more"
                if not allowed
                else f"unknown element {min(set(allowed) - set(SYMBOLS))} among the candidates; "
                "write symbols like Na"
            )
        text = infill_prompt(mask_element(prior.layout.describe(structure).text(), mask))
        ids = tokenize(prior.tokenizer, text, "")[0][:-1]  # without the end of sequence
        if len(ids) + tree.depth > prior.context_length:
            raise PriorError(
                f"{structure.composition.formula} makes a prompt of {len(ids)} tokens, the context "
                f"of this model is {prior.context_length}; give smaller crystals"
            )
        prompts.append(ids)
    order = sorted(range(len(prompts)), key=lambda k: len(prompts[k]), reverse=True)
    scores = torch.empty(len(prompts), len(SYMBOLS))  # log-probabilities
    for at in range(0, len(order), batch_size):
        part = order[at : at + batch_size]
        scores[part] = _score_answers(prior, [prompts[k] for k in part], tree).cpu()
    return [
        _distribution(row, allowed, temperature)
        for row, allowed in zip(scores, candidates, strict=True)
    ]


def replace_element(structure: Structure, old: str, new: str) -> Structure:
    """Return a copy of a crystal with one element in place of another; cell and sites are kept.

    Args:
        structure: ordered crystal.
        old: symbol of the element that is replaced.
        new: symbol of the element that takes its sites.

    Raises:
        PriorError: if `old` is not in the crystal.
    """
    symbols = site_symbols(structure)
    if old not in symbols:
        raise PriorError(f"{old} is not in {structure.composition.reduced_formula}; name another")
    replaced = structure.copy()
    for place, symbol in enumerate(symbols):
        if symbol == old:  # `replace_species` would pass over Na+
            replaced[place] = new
    return replaced


@cache
def allowed_swaps() -> dict[str, frozenset[str]]:
    """Return the swap table of CrystalLLM's template method (arXiv 2402.04379).

    Two elements swap if they share an oxidation state in which their ionic radii differ by at most
    0.1 Angstrom. As in the authors' code, states and radii are pymatgen's `Element.ionic_radii`:
    one radius of Shannon (1976) for each state that is known in crystals, rare states included. So
    the table is permissive (Br may replace Fe, by state +3) and leaves the choice to the model or a
    potential. It excludes ions of different size (Na+ and K+ differ by 0.36 Angstrom). An
    element without a partner of its size (Na), or without a radius (the noble gases except Xe, most
    of the heaviest elements), swaps with none.

    Returns:
        symbol -> symbols that may replace it; symmetric, without the element itself.
    """
    radii = {symbol: Element(symbol).ionic_radii for symbol in SYMBOLS}
    partners: dict[str, set[str]] = {symbol: set() for symbol in SYMBOLS}
    for one, other in combinations(SYMBOLS, 2):
        states = radii[one].keys() & radii[other].keys()
        limit = RADIUS_TOLERANCE + _ROUNDING
        if any(abs(radii[one][state] - radii[other][state]) <= limit for state in states):
            partners[one].add(other)
            partners[other].add(one)
    return {symbol: frozenset(found) for symbol, found in partners.items()}


@dataclass(frozen=True, kw_only=True)
class _AnswerTree:
    """The tokens of all element strings as a tree; node 0 is the end of the prompt.

    Attributes:
        tokens: (N,) token of each node from 1 on; it follows the token of its parent.
        depths: (N,) tokens from the end of the prompt, from 1 on.
        ancestors: (N, N) True if node column + 1 is node row + 1 or above it.
        steps: for each element of `SYMBOLS` the (node, next token) pairs whose log-probabilities
            add up to the log-probability of the element.
        depth: the largest of `depths`, or 0.
    """

    tokens: Tensor
    depths: Tensor
    ancestors: Tensor
    steps: list[list[tuple[int, int]]]
    depth: int

    @classmethod
    def build(cls, tokenizer: PreTrainedTokenizerBase) -> _AnswerTree:
        answers = []
        for symbol in SYMBOLS:
            ids, _ = tokenize(tokenizer, INFILL_TAIL, symbol)
            answers.append(tuple(ids[len(tokenize(tokenizer, INFILL_TAIL, "")[0]) - 1 :]))
        bodies = [answer[:-1] for answer in answers]
        if not any(long[: len(short)] == short for short, long in permutations(bodies, 2)):
            # No answer begins another, so its tokens identify it and the end adds nothing: with one
            # token per element the prompt alone is passed.
            answers = bodies
        nodes: dict[tuple[int, ...], int] = {(): 0}
        for answer in answers:
            for length in range(1, len(answer)):
                nodes.setdefault(answer[:length], len(nodes))
        prefixes = list(nodes)[1:]
        ancestors = [[long[: len(short)] == short for short in prefixes] for long in prefixes]
        return cls(
            tokens=torch.tensor([prefix[-1] for prefix in prefixes], dtype=torch.long),
            depths=torch.tensor([len(prefix) for prefix in prefixes], dtype=torch.long),
            ancestors=torch.tensor(ancestors, dtype=torch.bool).view(len(prefixes), len(prefixes)),
            steps=[[(nodes[a[:k]], token) for k, token in enumerate(a)] for a in answers],
            depth=max(map(len, prefixes), default=0),
        )


@torch.inference_mode()
def _score_answers(prior: Prior, prompts: Sequence[Sequence[int]], tree: _AnswerTree) -> Tensor:
    """Return the log-probability of every element string after each prompt, (B, 118)."""
    longest, extra = max(map(len, prompts)), len(tree.tokens)
    total = longest + extra
    input_ids = torch.full((len(prompts), total), prior.tokenizer.pad_token_id, dtype=torch.long)
    positions = torch.zeros((len(prompts), total), dtype=torch.long)
    seen = torch.zeros((len(prompts), total, total), dtype=torch.bool)  # (B, query, key)
    for row, ids in enumerate(prompts):
        start = longest - len(ids)  # padded on the left: every prompt ends at the same place
        input_ids[row, start:longest] = torch.tensor(ids)
        input_ids[row, longest:] = tree.tokens
        positions[row, start:longest] = torch.arange(len(ids))
        positions[row, longest:] = len(ids) - 1 + tree.depths
        seen[row, start:longest, start:longest] = torch.ones(len(ids), len(ids)).tril() > 0
        seen[row, longest:, start:longest] = True
        seen[row, longest:, longest:] = tree.ancestors
    seen |= torch.eye(total, dtype=torch.bool)  # padding sees itself: a softmax over nothing is NaN
    dtype = input_embeddings(prior.model).weight.dtype
    mask = torch.zeros(seen.shape, dtype=dtype).masked_fill_(~seen, torch.finfo(dtype).min)
    logits = prior.model(
        input_ids=input_ids.to(prior.device),
        attention_mask=mask[:, None].to(prior.device),
        position_ids=positions.to(prior.device),
        logits_to_keep=extra + 1,
        use_cache=False,
    ).logits  # (B, 1 + N, V)
    log_probs = logits.float().log_softmax(-1)
    columns = []
    for steps in tree.steps:
        nodes, tokens = zip(*steps, strict=True)
        columns.append(log_probs[:, list(nodes), list(tokens)].sum(1))
    return torch.stack(columns, 1)


def _distribution(scores: Tensor, allowed: Collection[str], temperature: float) -> dict[str, float]:
    """Return symbol -> probability of the allowed elements, from log-probabilities (118,)."""
    symbols = [symbol for symbol in SYMBOLS if symbol in allowed]
    kept = scores[[SYMBOLS.index(symbol) for symbol in symbols]].double()
    if temperature == 0:
        probabilities = torch.zeros_like(kept)
        probabilities[kept.argmax()] = 1
    else:
        probabilities = (kept / temperature).softmax(0)
    ranked = sorted(zip(symbols, probabilities.tolist(), strict=True), key=lambda pair: -pair[1])
    return dict(ranked)
