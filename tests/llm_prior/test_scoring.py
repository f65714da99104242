"""Scores, infilling and IPT against plain loops, hand calculations and known swaps."""

from __future__ import annotations

import math
from functools import cache
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from pymatgen.core import Lattice, Structure
from transformers import LlamaConfig, LlamaForCausalLM

from llm_prior.dataset import IGNORED, tokenize
from llm_prior.errors import PriorError
from llm_prior.grammar import Grammar
from llm_prior.infilling import allowed_swaps, element_probabilities, replace_element
from llm_prior.model import Prior
from llm_prior.prompts import generation_prompt, infill_prompt
from llm_prior.scoring import log_likelihood, score_texts
from llm_prior.text import SYMBOLS, encode, mask_element
from llm_prior.tokenizer import compact_tokenizer
from llm_prior.translation import increase_in_perplexity
from prior_support import FMT, llama_tokenizer, one_layer_prior

NACL = Structure(Lattice.cubic(4), ["Na", "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]])
CAC2 = Structure(
    Lattice.orthorhombic(3.9, 4.1, 6.3),
    ["Ca", "C", "C"],
    [[0, 0, 0], [0.5, 0.5, 0.4], [0.5, 0.5, 0.6]],
)
TIO2 = Structure.from_spacegroup(
    "P4_2/mnm", Lattice.tetragonal(4.6, 2.96), ["Ti", "O"], [[0, 0, 0], [0.305, 0.305, 0]]
)
CRYSTALS = [NACL, TIO2, CAC2]


@cache
def llama_prior() -> Prior:
    """A small random model with the real LLaMA-2 vocabulary, in which many symbols are several
    tokens and some begin others."""
    tokenizer = llama_tokenizer(pad_token="<unk>")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=1024,
        initializer_range=0.3,  # far from even, so that a mistake shows
    )
    return Prior(model=LlamaForCausalLM(config).eval(), tokenizer=tokenizer, fmt=FMT)


@torch.inference_mode()
def plain(prior: Prior, prompt: str, answer: str, grammar: Grammar | None = None) -> float:
    """log p(answer | prompt), one text alone, without padding."""
    ids, labels = tokenize(prior.tokenizer, prompt, answer)
    logits = prior.model(input_ids=torch.tensor([ids])).logits[0].double()
    cursor = grammar.constraint({}).cursor() if grammar else None
    total = 0.0
    for place, label in enumerate(labels):
        if label == IGNORED:
            continue
        step = logits[place - 1]
        if cursor is not None:
            illegal = torch.ones(len(step), dtype=torch.bool)
            illegal[cursor.legal().ids] = False
            step = step.masked_fill(illegal, -math.inf)
            cursor.advance(label)
        total += step.log_softmax(0)[label].item()
    return total


class Toy(torch.nn.Module):
    """A model whose next token does not depend on what was before: `weights` (V,) of the tokens."""

    def __init__(self, weights: torch.Tensor) -> None:
        super().__init__()
        self.logits = torch.nn.Parameter(weights.log())
        self.config = SimpleNamespace(max_position_embeddings=512)

    def forward(self, input_ids: torch.Tensor, logits_to_keep: int, **_: Any) -> Any:
        shape = (len(input_ids), logits_to_keep, len(self.logits))
        return SimpleNamespace(logits=self.logits.expand(shape))


def test_scores_are_those_of_one_text_alone(prior: Prior) -> None:
    names = ("formula", "num_atoms")
    scores = log_likelihood(prior, CRYSTALS, conditions=names, batch_size=2)
    for structure, score in zip(CRYSTALS, scores, strict=True):
        formula = structure.composition.reduced_formula
        prompt = generation_prompt({"formula": formula, "num_atoms": len(structure)})
        assert score.log_likelihood == pytest.approx(
            plain(prior, prompt, encode(structure, FMT)), abs=1e-4
        )
        assert (
            score.num_tokens == 6 + 4 * len(structure) + 1
        )  # one a number or element, and the end


def test_the_grammar_shares_the_probability_out_among_legal_tokens(prior: Prior) -> None:
    grammar = Grammar(prior.tokenizer, FMT)
    free = log_likelihood(prior, CRYSTALS)
    bound = log_likelihood(prior, CRYSTALS, grammar=grammar)
    for structure, one, other in zip(CRYSTALS, free, bound, strict=True):
        assert other.log_likelihood > one.log_likelihood
        expected = plain(prior, generation_prompt({}), encode(structure, FMT), grammar)
        assert other.log_likelihood == pytest.approx(expected, abs=1e-4)
    twice = encode(NACL, FMT).replace("0.50", "0.00")  # an atom on another
    constraint = grammar.constraint({})
    [score] = score_texts(prior, [generation_prompt({})], [twice], constraints=[constraint])
    assert score.log_likelihood == -math.inf


def test_what_cannot_be_scored_is_named(prior: Prior) -> None:
    with pytest.raises(PriorError, match="unknown condition 'colour'"):
        log_likelihood(prior, [NACL], conditions=["colour"])
    with pytest.raises(PriorError, match="crystal 0 .NaCl. has no band_gap"):
        log_likelihood(prior, [NACL], conditions=["band_gap"])
    with pytest.raises(PriorError, match="the context of this model 512"):
        score_texts(prior, [generation_prompt({})], ["x" * 600])


def test_infill_with_one_token_an_element_is_the_models_own_softmax(prior: Prior) -> None:
    found = element_probabilities(prior, CRYSTALS, ["Na", "Ti", "C"], batch_size=2)
    for structure, mask, probabilities in zip(CRYSTALS, ["Na", "Ti", "C"], found, strict=True):
        assert sum(probabilities.values()) == pytest.approx(1)
        ids, _ = tokenize(
            prior.tokenizer, infill_prompt(mask_element(encode(structure, FMT), mask)), ""
        )
        with torch.inference_mode():
            logits = prior.model(input_ids=torch.tensor([ids[:-1]])).logits[0, -1]
        tokens = prior.tokenizer.convert_tokens_to_ids(list(SYMBOLS))
        expected = dict(zip(SYMBOLS, logits[tokens].softmax(0).tolist(), strict=True))
        assert probabilities == pytest.approx(expected, abs=1e-5)


def test_infill_with_several_tokens_an_element_is_the_score_of_each_string() -> None:
    prior = llama_prior()
    found = element_probabilities(prior, [NACL, CAC2], ["Na", "C"])
    for structure, mask, probabilities in zip([NACL, CAC2], ["Na", "C"], found, strict=True):
        prompt = infill_prompt(mask_element(encode(structure, FMT), mask))
        alone = torch.tensor([plain(prior, prompt, symbol) for symbol in SYMBOLS])
        expected = dict(zip(SYMBOLS, alone.softmax(0).tolist(), strict=True))
        assert probabilities == pytest.approx(expected, rel=1e-3, abs=1e-7)


def test_temperature_and_candidates_shape_the_distribution(prior: Prior) -> None:
    allowed = {"Li", "K", "Rb"}

    def at(temperature: float) -> dict[str, float]:
        return element_probabilities(
            prior, [NACL], ["Na"], temperature=temperature, candidates=[allowed]
        )[0]

    usual = at(1.0)
    assert usual.keys() == allowed
    best = max(usual, key=usual.__getitem__)
    assert next(iter(usual)) == best
    assert at(0)[best] == 1
    assert at(1e-3)[best] == pytest.approx(1)
    assert list(at(1e6).values()) == pytest.approx([1 / 3] * 3, abs=1e-4)
    squared = {symbol: chance**2 for symbol, chance in usual.items()}
    expected = {symbol: chance / sum(squared.values()) for symbol, chance in squared.items()}
    assert at(0.5) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"masks": ["K"]}, "K is not in the crystal"),
        ({"temperature": -1.0}, "temperature -1.0"),
        ({"temperature": math.nan}, "temperature nan"),
        ({"candidates": [[]]}, "no element may replace Na in NaCl"),
        ({"candidates": [["Xx"]]}, "unknown element Xx"),
    ],
)
def test_impossible_infilling_is_refused(
    prior: Prior, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(PriorError, match=message):
        element_probabilities(prior, [NACL], **{"masks": ["Na"], **options})


def test_replacing_an_element_moves_nothing() -> None:
    replaced = replace_element(CAC2, "C", "N")  # C is not the start of Ca
    assert [site.specie.symbol for site in replaced] == ["Ca", "N", "N"]
    assert replaced.lattice == CAC2.lattice
    assert (replaced.frac_coords == CAC2.frac_coords).all()
    assert [site.specie.symbol for site in CAC2] == ["Ca", "C", "C"]
    charged = Structure(NACL.lattice, ["Na+", "Cl-"], NACL.frac_coords)
    assert [site.specie.symbol for site in replace_element(charged, "Na", "K")] == ["K", "Cl"]
    with pytest.raises(PriorError, match="O is not in CaC2"):
        replace_element(CAC2, "O", "N")


def test_swaps_are_symmetric_and_follow_the_radii() -> None:
    swaps = allowed_swaps()
    assert swaps.keys() == set(SYMBOLS)
    for one, others in swaps.items():
        assert one not in others
        assert all(one in swaps[other] for other in others)
    # Shannon's crystal radii in Angstrom: Zr4+ 0.86, Hf4+ 0.85; Mg2+ 0.86, Zn2+ 0.88; Na+ 1.16,
    # K+ 1.52; Mg2+ 0.86 is as large as Zr4+ but of another charge.
    assert "Hf" in swaps["Zr"]
    assert "Zn" in swaps["Mg"]
    assert "K" not in swaps["Na"]
    assert "Zr" not in swaps["Mg"]
    assert not swaps["He"]


def test_ipt_of_models_that_can_be_calculated_by_hand() -> None:
    tokenizer = compact_tokenizer(FMT)
    weights = torch.ones(len(tokenizer))
    invariant = Prior(model=Toy(weights), tokenizer=tokenizer, fmt=FMT)
    [found] = increase_in_perplexity(invariant, [TIO2], seed=3)
    assert found.ipt == pytest.approx(0, abs=1e-6)
    assert found.mean_perplexity == pytest.approx(len(tokenizer), rel=1e-5)

    # One atom; coordinates below one half that follow a space are twice as likely as other tokens.
    low = [f" 0.{tick:02d}" for tick in range(50)]
    weights[tokenizer.convert_tokens_to_ids(low)] = 2.0
    knowing = Prior(model=Toy(weights), tokenizer=tokenizer, fmt=FMT)
    lone = Structure(Lattice.cubic(3), ["Po"], [[0, 0, 0]])
    [found] = increase_in_perplexity(knowing, [lone], num_translations=50, seed=0)
    # y and z are such tokens in 0, 1 or 2 of the 11 places: perplexity W * 2^(-k / 11).
    least = weights.sum().item() * 2 ** (-2 / 11)
    assert found.min_perplexity == pytest.approx(least, rel=1e-5)
    assert least < found.mean_perplexity < weights.sum().item()
    assert found.ipt == pytest.approx(1 - least / found.mean_perplexity, rel=1e-4)


def test_a_crystal_draws_the_same_translations_in_any_company(prior: Prior) -> None:
    together = increase_in_perplexity(prior, CRYSTALS, num_translations=3, seed=1)
    alone = increase_in_perplexity(prior, [TIO2], num_translations=3, seed=1, first_index=1)
    assert alone[0].mean_perplexity == pytest.approx(together[1].mean_perplexity, rel=1e-5)
    other = increase_in_perplexity(prior, [TIO2], num_translations=3, seed=2, first_index=1)
    assert other[0].mean_perplexity != pytest.approx(together[1].mean_perplexity, rel=1e-5)


def test_a_prompt_longer_than_the_context_is_refused() -> None:
    small = one_layer_prior(16)
    with pytest.raises(PriorError, match="the context of this model is 16"):
        element_probabilities(small, [TIO2], ["Ti"])


def test_a_scored_crystal_may_be_described_by_a_symbol_of_its_group(prior: Prior) -> None:
    by_symbol, by_number = (
        log_likelihood(prior, [NACL], conditions=["spacegroup"], properties=[{"spacegroup": group}])
        for group in ("Fm-3m", 225)
    )
    assert by_symbol == by_number
