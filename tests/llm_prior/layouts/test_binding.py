"""Constrained decoding of wyckoff texts with any tokenizer."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pytest
from pymatgen.core import Structure
from transformers import PreTrainedTokenizerBase

from llm_prior import PriorError, TextFormat
from llm_prior.layouts import layout_of
from llm_prior.layouts.binding import TokenConstraint, TokenGrammar
from llm_prior.layouts.wyckoff import WyckoffLayout
from llm_prior.tokenizer import compact_tokenizer
from llm_prior.wyckoff import actual_group
from prior_support import LLAMA, byte_tokenizer, llama_tokenizer

FMT = TextFormat(layout="wyckoff")
MAKERS: dict[str, Callable[[], PreTrainedTokenizerBase]] = {
    "compact": lambda: compact_tokenizer(FMT),
    "bytes": byte_tokenizer,
    "llama": llama_tokenizer,
}


def layout() -> WyckoffLayout:
    found = layout_of(FMT)
    assert isinstance(found, WyckoffLayout)
    return found


@cache
def made(name: str) -> tuple[PreTrainedTokenizerBase, TokenGrammar]:
    tokenizer = MAKERS[name]()
    return tokenizer, layout().grammar(tokenizer)


@pytest.fixture(params=list(MAKERS))
def name(request: pytest.FixtureRequest) -> str:
    if request.param == "llama" and not LLAMA.exists():
        pytest.skip("the LLaMA-2 vocabulary is not at ../shared/tokenizers")
    return request.param


def answer_ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """The tokens of a text where it stands, behind a prompt."""
    prompt = layout().prompt({})
    whole = tokenizer(prompt + text, add_special_tokens=False)["input_ids"]
    start = len(tokenizer(prompt, add_special_tokens=False)["input_ids"])
    return [*whole[start:], tokenizer.eos_token_id]


def walk(constraint: TokenConstraint, rng: np.random.Generator, eos: int) -> list[int]:
    """A text of evenly drawn legal tokens, with the end as soon as it may come."""
    cursor = constraint.cursor()
    tokens: list[int] = []
    while not cursor.finished:
        ids = cursor.legal().ids.numpy()
        tokens.append(eos if eos in ids else int(rng.choice(ids)))
        cursor.advance(tokens[-1])
    assert len(tokens) <= constraint.max_tokens
    return tokens[:-1]


def of(structure: Structure) -> tuple[str, dict[str, Any]]:
    """The text of a crystal, and the conditions that it meets."""
    described = layout().describe(structure)
    known = described.conditions({})
    return described.text(), {key: known[key] for key in ("formula", "num_atoms", "spacegroup")}


def test_every_token_of_a_real_text_is_legal(name: str, crystals: list[Structure]) -> None:
    tokenizer, grammar = made(name)
    for structure in crystals[::2]:
        text, conditions = of(structure)
        cursor = grammar.constraint(conditions).cursor()
        for token in answer_ids(tokenizer, text):
            legal = cursor.legal()
            assert token in legal.ids, (text, tokenizer.decode([token]))
            assert (legal.only is not None) == (len(legal.ids) == 1)
            cursor.advance(token)
        assert cursor.finished


def test_whatever_is_written_has_the_atoms_and_the_group(
    name: str, crystals: list[Structure]
) -> None:
    tokenizer, grammar = made(name)
    rng = np.random.default_rng(0)
    for structure in crystals[1::4]:
        _, conditions = of(structure)
        tokens = walk(grammar.constraint(conditions), rng, tokenizer.eos_token_id)
        reading = layout().read(tokenizer.decode(tokens))
        assert reading.crystal is not None
        assert reading.structure.composition.reduced_formula == conditions["formula"]
        assert len(reading.structure) == conditions["num_atoms"]
        assert reading.crystal.spacegroup == conditions["spacegroup"]
        assert actual_group(reading.structure) == conditions["spacegroup"]
        apart = reading.structure.distance_matrix + 9 * np.eye(len(reading.structure))
        assert apart.min() >= 0.5 - 1e-6


@pytest.mark.parametrize(
    ("conditions", "excluded"),
    [
        ({}, ()),
        ({"elements": "Na,Cl", "num_atoms": "3-5"}, ()),
        ({"formula": "Na2O"}, ()),
        ({"num_atoms": 4, "spacegroup": "P6_3/mmc"}, ("Na", "Cl")),
    ],
)
def test_partial_conditions_are_met(conditions: dict[str, Any], excluded: tuple[str, ...]) -> None:
    tokenizer, grammar = made("compact")
    constraint = grammar.constraint(conditions, exclude_elements=excluded)
    rng = np.random.default_rng(1)
    for _ in range(2):
        reading = layout().read(tokenizer.decode(walk(constraint, rng, tokenizer.eos_token_id)))
        assert layout().refusal(reading, conditions) is None
        assert not set(excluded) & {element.symbol for element in reading.structure.elements}


def test_a_value_that_may_end_or_go_on_allows_both() -> None:
    """Group 22 may become 221, and the line of B that of Ba."""
    tokenizer, grammar = made("bytes")
    cursor = grammar.constraint({"num_atoms": 2}).cursor()

    def legal() -> set[str]:
        return {tokenizer.decode([token]) for token in cursor.legal().ids.tolist()}

    def write(text: str) -> None:
        for token in tokenizer(text, add_special_tokens=False)["input_ids"]:
            cursor.advance(token)

    write("22")
    assert {"\n", "1", "5"} <= legal()
    write("1\nB")
    assert {"a", "e", "i", " "} <= legal()
    write(" ")
    assert "a" in legal() and "i" not in legal()  # letters now


def test_a_token_that_may_not_come_is_refused() -> None:
    tokenizer, grammar = made("compact")
    cursor = grammar.constraint({"formula": "NaCl", "num_atoms": 2, "spacegroup": 225}).cursor()
    legal = cursor.legal()
    assert legal.only == tokenizer.get_vocab()["225"]
    with pytest.raises(ValueError, match="may not come here"):
        cursor.advance(tokenizer.get_vocab()["224"])
    for word in ("225", "\nNa", " a", "\nCl", " b", "\n5.6", "</s>"):
        cursor.advance(tokenizer.get_vocab()[word])
    assert cursor.finished
    with pytest.raises(ValueError, match="the sequence is finished"):
        cursor.legal()


@pytest.mark.parametrize(
    ("conditions", "message"),
    [
        ({"formula": "NaCl", "num_atoms": 2, "spacegroup": 230}, "exactly space group 230; groups"),
        ({"formula": "NaCl", "num_atoms": 2, "spacegroup": "Ia-3d"}, "groups that can: .*225"),
        ({"spacegroup": 231}, "spacegroup 231 is not a whole number from 1 to 230"),
        ({"num_atoms": 21}, "this model writes at most 20"),
    ],
)
def test_what_no_crystal_meets_is_refused_at_once(conditions: dict[str, Any], message: str) -> None:
    _, grammar = made("compact")
    for check in (grammar.constraint, layout().check):
        with pytest.raises(PriorError, match=message):
            check(conditions)


def test_a_precision_with_too_many_values_is_refused() -> None:
    fine = layout_of(TextFormat(layout="wyckoff", length_decimals=3))
    with pytest.raises(PriorError, match="text.length_decimals 3 is too fine for the text to be"):
        fine.grammar(byte_tokenizer())
    with pytest.raises(PriorError, match="this tokenizer has no eos_token"):
        layout().grammar(byte_tokenizer(eos_token=None))


def test_a_grammar_that_remembers_another_request_writes_the_same_texts() -> None:
    tokenizer, used = made("compact")
    fresh = layout().grammar(tokenizer)
    for conditions in ({}, {"num_atoms": 6}, {}):
        texts = [
            [
                walk(grammar.constraint(conditions), np.random.default_rng(k), eos_of(tokenizer))
                for k in range(3)
            ]
            for grammar in (used, used, fresh)
        ]
        assert texts[0] == texts[1] == texts[2]
    assert used.constraint({}) is used.constraint({})
    assert used.constraint({}) is not used.constraint({}, exclude_elements=["Pb"])


def eos_of(tokenizer: PreTrainedTokenizerBase) -> int:
    assert isinstance(tokenizer.eos_token_id, int)
    return tokenizer.eos_token_id
