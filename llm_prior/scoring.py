"""The log-likelihood of given crystals under the model, in batches of like length.

    log p(answer | prompt) = sum over the answer's tokens, end of sequence included,
                             of log p(token | prompt and the tokens before it)

in nats. The sum over a crystal, unlike a mean per token, compares models with different tokenizers.
It is the likelihood of one text of the crystal and not a sum over all of them: in the layout
`sites` the text of its given cell and coordinates, in `wyckoff` the canonical one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from pymatgen.core import Structure
from torch import Tensor

from llm_prior.dataset import IGNORED, Collator, tokenize
from llm_prior.errors import PriorError
from llm_prior.model import Prior
from llm_prior.prompts import check_names

if TYPE_CHECKING:
    from llm_prior.layouts import TextConstraint, TextGrammar

SCORE_BATCH_SIZE = 32


@dataclass(frozen=True)
class Score:
    """The likelihood of one text.

    Attributes:
        log_likelihood: natural logarithm of the probability, in nats; -inf for a text that the
            grammar cannot write.
        num_tokens: tokens of the answer, end of sequence included.
    """

    log_likelihood: float
    num_tokens: int

    @property
    def perplexity(self) -> float:
        """Exponential of the cross entropy per token."""
        return math.exp(-self.log_likelihood / self.num_tokens)


def log_likelihood(
    prior: Prior,
    structures: Sequence[Structure],
    *,
    conditions: Sequence[str] = (),
    properties: Sequence[Mapping[str, Any]] | None = None,
    grammar: TextGrammar | None = None,
    batch_size: int = SCORE_BATCH_SIZE,
) -> list[Score]:
    """Return the score of each crystal, with its own values of the named conditions as prompt.

    Args:
        prior: the model.
        structures: crystals of at most `prior.fmt.max_atoms` sites. In the layout `sites` they are
            scored with their coordinates and in their cell; reduce the cells first, as in training.
        conditions: names of `llm_prior.prompts.ATTRIBUTES`; none scores unconditionally.
        properties: of each crystal, the values of conditions that a structure does not tell.
        grammar: score under constrained decoding, where only the tokens that the grammar (with
            these conditions) allows share the probability.
        batch_size: texts per forward pass; bounds the memory and changes nothing else.

    Returns:
        One score per crystal, in order.

    Raises:
        PriorError: if a condition is unknown or a crystal has no value of it, or the text format
            cannot write a crystal, or its text is longer than the model's context.
    """
    check_names(conditions)
    prompts, answers, constraints = [], [], []
    shared: dict[str, TextConstraint] = {}
    for place, structure in enumerate(structures):
        described = prior.layout.describe(structure)
        known = described.conditions(properties[place] if properties is not None else {})
        for name in conditions:
            if name not in known:
                raise PriorError(
                    f"crystal {place} ({structure.composition.reduced_formula}) has no {name}; "
                    "add it to the data, or leave the condition out"
                )
        wanted = {name: known[name] for name in conditions}
        prompts.append(prior.layout.prompt(wanted))
        answers.append(described.text())
        if grammar is not None:
            if prompts[-1] not in shared:
                shared[prompts[-1]] = grammar.constraint(wanted)
            constraints.append(shared[prompts[-1]])
    return score_texts(
        prior,
        prompts,
        answers,
        constraints=constraints if grammar is not None else None,
        batch_size=batch_size,
    )


@torch.inference_mode()
def score_texts(
    prior: Prior,
    prompts: Sequence[str],
    answers: Sequence[str],
    *,
    constraints: Sequence[TextConstraint] | None = None,
    batch_size: int = SCORE_BATCH_SIZE,
) -> list[Score]:
    """Return the score of each answer given its prompt.

    Args:
        prior: the model.
        prompts: texts that end in a newline, such as `llm_prior.prompts.generation_prompt`.
        answers: one for each prompt.
        constraints: constraint on each answer, or None for the plain likelihood.
        batch_size: texts per forward pass; bounds the memory.

    Returns:
        One score per answer, in order.

    Raises:
        PriorError: if a text is longer than the context, or the batch size is below 1.
    """
    if batch_size < 1:
        raise PriorError(f"batch_size {batch_size} must be at least 1")
    examples = []
    for place, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        input_ids, labels = tokenize(prior.tokenizer, prompt, answer)
        if len(input_ids) > prior.context_length:
            raise PriorError(
                f"text {place} has {len(input_ids)} tokens, the context of this model "
                f"{prior.context_length}; give smaller crystals or fewer conditions"
            )
        examples.append({"ids": str(place), "input_ids": input_ids, "labels": labels})
    collate = Collator(prior.tokenizer.pad_token_id)
    # Longest first: like lengths share a batch, and too large a batch fails at once.
    order = sorted(range(len(examples)), key=lambda k: len(examples[k]["input_ids"]), reverse=True)
    scores: list[Score | None] = [None] * len(examples)
    for at in range(0, len(order), batch_size):
        part = order[at : at + batch_size]
        batch = collate([examples[k] for k in part])
        first = int((batch["labels"] != IGNORED).int().argmax(1).min())  # where answers begin
        targets = batch["labels"][:, first:].to(prior.device)  # (B, A)
        logits = prior.model(
            input_ids=batch["input_ids"].to(prior.device),
            attention_mask=batch["attention_mask"].to(prior.device),
            logits_to_keep=targets.shape[1] + 1,
            use_cache=False,
        ).logits[:, :-1]  # (B, A, V): of the token before each target
        for row, k in enumerate(part):
            answer = targets[row] != IGNORED
            tokens, steps = targets[row][answer], logits[row][answer].float()  # (a,), (a, V)
            if constraints is None:
                total = -torch.nn.functional.cross_entropy(steps, tokens, reduction="sum").item()
            else:
                total = _constrained(steps, tokens.tolist(), constraints[k])
            scores[k] = Score(total, len(tokens))
    return [score for score in scores if score is not None]


def _constrained(logits: Tensor, tokens: Sequence[int], constraint: TextConstraint) -> float:
    """Return the log-likelihood of `tokens` (a,) with a softmax of `logits` (a, V) over the legal
    tokens; -inf if a token is not legal."""
    cursor = constraint.cursor()
    total = 0.0
    for step, token in zip(logits, tokens, strict=True):
        legal = cursor.legal()
        if legal.only != token:
            if not (legal.ids == token).any():
                return -math.inf
            allowed = step[legal.ids.to(step.device)]
            total += (step[token] - allowed.logsumexp(0)).item()
        cursor.advance(token)
    return total
