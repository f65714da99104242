"""Constrained decoding: every text is a crystal that meets the request, and none is ruled out."""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pymatgen.core import Lattice, Structure
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from llm_prior.errors import PriorError
from llm_prior.grammar import Constraint, Cursor, Grammar
from llm_prior.prompts import BY_NAME, generation_prompt, known_conditions
from llm_prior.text import SYMBOLS, TextFormat, closes_a_cell, decode, encode
from llm_prior.tokenizer import compact_tokenizer
from prior_support import FMT, LLAMA, llama_tokenizer, real_crystals

ROCKSALT = Structure(Lattice.cubic(5.64), ["Na", "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]])


def byte_level() -> PreTrainedTokenizerBase:
    """A GPT-2 kind of tokenizer, with numbers of several digits in a token."""
    rng = random.Random(0)
    texts = [
        generation_prompt({})
        + "\n".join(f"{symbol}\n0.{rng.randrange(100):02d} 0.{rng.randrange(20):02d} 0.00 12.5 109"
                    for symbol in SYMBOLS[:60])
        for _ in range(30)
    ]  # fmt: skip
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=["<pad>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>")


COARSE, FINE = TextFormat(coord_decimals=1, max_atoms=1000), TextFormat(coord_decimals=3)
MAKERS: dict[str, tuple[Callable[[], PreTrainedTokenizerBase], TextFormat]] = {
    "compact": (lambda: compact_tokenizer(FMT), FMT),
    "compact-3": (lambda: compact_tokenizer(FINE), FINE),
    "byte-level": (byte_level, FMT),
    "llama": (llama_tokenizer, FMT),
}


@cache
def made(name: str) -> tuple[PreTrainedTokenizerBase, Grammar]:
    make, fmt = MAKERS[name]
    tokenizer = make()
    return tokenizer, Grammar(tokenizer, fmt)


@pytest.fixture(scope="module", params=list(MAKERS))
def name(request: pytest.FixtureRequest) -> str:
    if request.param == "llama" and not LLAMA.exists():
        pytest.skip("the LLaMA-2 vocabulary is not at ../shared/tokenizers")
    return request.param


def ids_of(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def answer_ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """The tokens of a crystal's text where it stands, behind a prompt."""
    prompt = generation_prompt({})
    return ids_of(tokenizer, prompt + text)[len(ids_of(tokenizer, prompt)) :]


def walk(constraint: Constraint, choose: Callable[[torch.Tensor], int]) -> list[int]:
    cursor, ids = constraint.cursor(), []
    while not cursor.finished:
        legal = cursor.legal()
        assert (legal.only is not None) == (len(legal.ids) == 1)
        token = choose(legal.ids) if legal.only is None else legal.only
        cursor.advance(token)
        ids.append(token)
    return ids


def accepts(grammar: Grammar, conditions: dict[str, Any], ids: list[int]) -> bool:
    cursor = grammar.constraint(conditions).cursor()
    for token in ids:
        if token not in cursor.legal().ids:
            return False
        cursor.advance(token)
    return cursor.finished


def after(cursor: Cursor, ids: list[int]) -> Cursor:
    for token in ids:
        cursor.advance(token)
    return cursor


# pymatgen orders formulas by electronegativity, which some elements lack; it says so once each.
ignores_electronegativity = pytest.mark.filterwarnings("ignore:No Pauling electronegativity")
symbols = st.lists(st.sampled_from(SYMBOLS), min_size=1, max_size=5, unique=True)


@st.composite
def requests(draw: st.DrawFn) -> dict[str, Any]:
    """Conditions that a crystal of at most 20 atoms can meet."""
    conditions: dict[str, Any] = {}
    elements = draw(symbols)
    amounts = [draw(st.integers(1, 4)) for _ in elements]
    atoms = sum(amounts)
    if draw(st.booleans()):
        conditions["elements"] = elements
    if draw(st.booleans()):
        low, high = draw(st.integers(1, atoms)), draw(st.integers(atoms, 20))
        conditions["num_atoms"] = draw(st.sampled_from([atoms, f"{low}-{high}", (low, high)]))
    if draw(st.booleans()):
        conditions["formula"] = "".join(f"{x}{n}" for x, n in zip(elements, amounts, strict=True))
    if draw(st.booleans()):
        conditions["spacegroup"] = 225
    return conditions


# --- what is written decodes and meets the request -----------------------------------------------


@ignores_electronegativity
@settings(deadline=None, max_examples=20)
@given(conditions=requests(), seed=st.integers(0, 2**32))
def test_every_walk_is_the_text_of_a_crystal_that_was_asked_for(
    name: str, conditions: dict[str, Any], seed: int
) -> None:
    tokenizer, grammar = made(name)
    fmt, rng = grammar.fmt, np.random.default_rng(seed)
    constraint = grammar.constraint(conditions, exclude_elements=[])
    ids = walk(constraint, lambda legal: int(rng.choice(legal)))
    assert ids[-1] == tokenizer.eos_token_id and len(ids) <= constraint.max_tokens
    text = tokenizer.decode(ids[:-1], skip_special_tokens=True)
    structure = decode(text, fmt)
    assert encode(structure, fmt) == text  # the layout, its precision, and like atoms together
    for condition, value in conditions.items():
        attribute = BY_NAME[condition]
        if attribute.derive is not None:
            assert attribute.holds_for(structure, value)
            if "-" not in attribute.render(value):
                assert attribute.render(attribute.derive(structure)) == attribute.render(value)
    # The tokens are those of training: the model has seen no other spelling.
    prompt = generation_prompt(conditions)
    assert ids_of(tokenizer, prompt + text) == ids_of(tokenizer, prompt) + ids[:-1]


def test_excluded_elements_are_never_written() -> None:
    tokenizer, grammar = made("compact")
    kept = ["H", "Na", "Og"]
    constraint = grammar.constraint({}, exclude_elements=[s for s in SYMBOLS if s not in kept])
    rng, seen = np.random.default_rng(0), set()
    for _ in range(20):
        ids = walk(constraint, lambda legal: int(rng.choice(legal)))
        seen |= set(tokenizer.decode(ids[:-1]).split("\n")[2::2])
    assert seen == set(kept)


def test_a_cell_can_be_filled_to_the_last_place() -> None:
    tokenizer = compact_tokenizer(COARSE)
    constraint = Grammar(tokenizer, COARSE).constraint({"num_atoms": 1000})
    text = tokenizer.decode(walk(constraint, lambda legal: int(legal[0]))[:-1])
    assert len(decode(text, COARSE)) == 1000 == len(set(text.split("\n")[3::2]))


@settings(deadline=None, max_examples=50)
@given(first=st.integers(5, 175), second=st.integers(5, 175))
def test_exactly_the_angles_that_close_a_cell_are_legal(first: int, second: int) -> None:
    tokenizer, grammar = made("compact")
    closing = [c for c in range(5, 176) if closes_a_cell((first, second, c))]
    start = after(grammar.constraint({}).cursor(), ids_of(tokenizer, "5.6 5.6 5.6"))
    ids = ids_of(tokenizer, f"5.6 5.6 5.6\n{first} {second} 90")[3:-1]
    if not closing:
        with pytest.raises(ValueError, match="may not come here"):
            after(start, ids)
        return
    legal = after(start, ids).legal().ids.tolist()
    spelled = {ids_of(tokenizer, f"5.6 5.6 5.6\n90 90 {c}")[5] for c in closing}
    assert set(legal) == spelled


def test_an_atom_never_stands_on_an_earlier_one() -> None:
    tokenizer, grammar = made("llama" if LLAMA.exists() else "byte-level")
    head = "5.6 5.6 5.6\n90 90 90\nNa\n0.25 0.50 0.75\nNa\n0.25 0.50 0.7"
    whole = answer_ids(tokenizer, head + "5")
    cursor = after(grammar.constraint({}).cursor(), whole[:-1])
    assert whole[-1] not in cursor.legal().ids
    with pytest.raises(ValueError, match="may not come here"):
        cursor.advance(whole[-1])
    assert accepts(grammar, {}, [*answer_ids(tokenizer, head + "6"), tokenizer.eos_token_id])


# --- and nothing that training writes is ruled out -----------------------------------------------

lengths = st.tuples(*[st.floats(0.5, 60)] * 3)
coords = st.tuples(*[st.integers(0, 999)] * 3)


@ignores_electronegativity
@settings(deadline=None, max_examples=15)
@given(
    lengths=lengths,
    angles=st.tuples(*[st.integers(5, 175)] * 3).filter(closes_a_cell),
    sites=st.lists(coords, min_size=1, max_size=20, unique_by=lambda s: tuple(x // 10 for x in s)),
    elements=st.lists(st.sampled_from(SYMBOLS[:20]), min_size=20, max_size=20),
)
def test_every_crystal_may_be_written(
    name: str, lengths: Any, angles: Any, sites: Any, elements: Any
) -> None:
    tokenizer, grammar = made(name)
    lattice = Lattice.from_parameters(*lengths, *angles)
    frac_coords = [[(x // 10) / 100 for x in site] for site in sites]
    structure = Structure(lattice, elements[: len(sites)], frac_coords)
    ids = [*answer_ids(tokenizer, encode(structure, grammar.fmt)), tokenizer.eos_token_id]
    assert accepts(grammar, known_conditions(structure, {}), ids)


@ignores_electronegativity
def test_real_crystals_may_be_written() -> None:
    tokenizer, grammar = made("compact")
    for structure, _ in real_crystals():
        text = encode(structure, FMT)
        ids = [*ids_of(tokenizer, text), tokenizer.eos_token_id]
        assert accepts(grammar, known_conditions(structure, {}), ids), text


# --- what is forced ------------------------------------------------------------------------------


def test_only_says_where_there_is_no_choice() -> None:
    tokenizer, grammar = made("compact")
    cursor = grammar.constraint({"formula": "NaCl", "num_atoms": 2}).cursor()
    forced = []
    for token in [*ids_of(tokenizer, encode(ROCKSALT, FMT)), tokenizer.eos_token_id]:
        legal = cursor.legal()
        if legal.only is not None:
            forced.append(tokenizer.decode([legal.only]))
        cursor.advance(token)
    assert forced == ["\nCl", tokenizer.eos_token]


def test_the_first_block_decides_how_many_formula_units() -> None:
    tokenizer, grammar = made("compact")
    cursor = grammar.constraint({"formula": "Na2O"}).cursor()
    after(cursor, ids_of(tokenizer, "5.6 5.6 5.6\n90 90 90\nNa\n0.00 0.00 0.00"))
    next_lines = []
    for z in (10, 20, 30, 40):
        next_lines.append([tokenizer.decode([i]) for i in cursor.legal().ids.tolist()])
        after(cursor, ids_of(tokenizer, f"\nNa\n0.00 0.00 0.{z}"))
    assert [sorted(lines) for lines in next_lines] == [["\nNa"], ["\nNa", "\nO"]] * 2
    after(cursor, ids_of(tokenizer, "\nNa\n0.00 0.00 0.50\nO\n0.50 0.00 0.00"))
    assert tokenizer.decode([cursor.legal().only or 0]) == "\nO"


def test_a_range_restricts_the_number_of_formula_units() -> None:
    _, grammar = made("compact")
    rule = grammar.constraint({"formula": "TiO2", "num_atoms": "5-14"}).rule
    assert rule.multiples == {2, 3, 4}


@pytest.mark.parametrize("elements", [None, "Na"])
def test_a_crystal_may_end_at_every_number_of_atoms_in_a_range(elements: str | None) -> None:
    tokenizer, grammar = made("compact")
    conditions = {"num_atoms": "2-4"} | ({"elements": elements} if elements else {})
    cursor = after(
        grammar.constraint(conditions).cursor(), ids_of(tokenizer, "5.6 5.6 5.6\n90 90 90")
    )
    may_end, must_end = [], []
    for z in (10, 20, 30, 40):
        after(cursor, ids_of(tokenizer, f"\nNa\n0.00 0.00 0.{z}"))
        legal = cursor.legal()
        may_end.append(tokenizer.eos_token_id in legal.ids)
        must_end.append(legal.only == tokenizer.eos_token_id)
    assert may_end == [False, True, True, True]
    assert must_end == [False, False, False, True]


# --- requests that cannot be met -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("conditions", "excluded", "message"),
    [
        ({"formula": "Na20Cl"}, [], "21 atoms, this model writes at most 20"),
        ({"formula": "Na2O", "num_atoms": 4}, [], "give a multiple of 3"),
        ({"num_atoms": 21}, [], "too many"),
        (
            {"num_atoms": "15-25"},
            [],
            "num_atoms 15-25 ends at 25 atoms, .* at most 20 .*; .* range",
        ),
        (
            {"num_atoms": (22, 25)},
            [],
            "num_atoms 22-25 ends at 25 atoms, .* at most 20 .*; .* range",
        ),
        ({"formula": "TiO2", "num_atoms": "4-5"}, [], "4-5 atoms are no .* a range that holds one"),
        ({"elements": "Na,Cl,K", "num_atoms": "1-2"}, [], "cannot have the elements Cl, K, Na"),
        ({"elements": "Na,Cl,K", "num_atoms": 2}, [], "cannot have the elements"),
        ({"formula": "NaCl", "elements": "Na,K"}, [], "give the formula alone"),
        ({"formula": "NaCl"}, ["K", "Cl"], "formula NaCl cannot do without the excluded Cl"),
        ({"elements": ["Na", "Cl"]}, ["Na"], "cannot do without the excluded Na"),
        ({}, ["Xx"], "unknown element 'Xx'"),
        ({}, SYMBOLS, "every element is excluded"),
        ({"colour": "red"}, [], "unknown condition"),
    ],
)
def test_a_request_that_cannot_be_met_is_refused(
    conditions: dict[str, Any], excluded: list[str], message: str
) -> None:
    with pytest.raises(PriorError, match=message) as caught:
        made("compact")[1].constraint(conditions, exclude_elements=excluded)
    assert "\n" not in str(caught.value)


def test_the_reduced_formula_counts_not_the_one_given() -> None:
    tokenizer, grammar = made("compact")
    ids = [*ids_of(tokenizer, encode(ROCKSALT, FMT)), tokenizer.eos_token_id]
    assert accepts(grammar, {"formula": "Na4Cl4"}, ids)
    one = Structure(Lattice.cubic(3), ["O"], [[0, 0, 0]])
    ids = [*ids_of(tokenizer, encode(one, FMT)), tokenizer.eos_token_id]
    assert accepts(grammar, {"formula": "O2"}, ids)


# --- tokenizers that will not do -----------------------------------------------------------------


def characters(alphabet: str, *merged: str) -> PreTrainedTokenizerBase:
    vocabulary = {token: i for i, token in enumerate(["<unk>", "</s>", *merged, *alphabet])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    pattern = "|".join([*merged, r"[\s\S]"])
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(pattern), "isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>", unk_token="<unk>")


PRINTABLE = "".join(map(chr, range(32, 127)))


@pytest.mark.parametrize(
    ("tokenizer", "fmt", "message"),
    [
        (lambda: characters(PRINTABLE), FMT, "no token|not reproduce"),
        (lambda: characters(PRINTABLE + "\n", "0\n"), FMT, "joins"),
        (lambda: characters(PRINTABLE + "\n"), TextFormat(coord_decimals=6), "too fine"),
    ],
    ids=["no newline", "tokens across fields", "six decimals"],
)
def test_a_tokenizer_that_will_not_do_is_refused(
    tokenizer: Callable[[], PreTrainedTokenizerBase], fmt: TextFormat, message: str
) -> None:
    with pytest.raises(PriorError, match=message):
        Grammar(tokenizer(), fmt)
