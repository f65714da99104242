"""Sampling from the prior: what is accepted is what was asked for, and draws are the seed's."""

from __future__ import annotations

import random
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pymatgen.core import Lattice, Structure

from llm_prior import proposals
from llm_prior.dataset import TaskMix
from llm_prior.errors import PriorError
from llm_prior.model import Architecture, BaseModel, Prior
from llm_prior.prompts import generation_prompt
from llm_prior.proposals import (
    Proposal,
    Question,
    check_conditions,
    composition_conditions,
    longest_answer,
    propose,
    warn_of_untrained,
)
from llm_prior.text import SYMBOLS, TextFormat, encode
from support import ROOT

BUNDLED = ROOT / "flowllm" / "hub" / "bundled" / "prior"
FMT = TextFormat()
CELL = "5.6 5.6 5.6\n90 90 90\n"
NACL = CELL + "Na\n0.00 0.00 0.00\nCl\n0.50 0.50 0.50"
FREE = {"constrain": False}
Answer = tuple[str, bool]


@pytest.fixture(scope="module")
def prior() -> Iterator[Prior]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield Prior.from_pretrained(BUNDLED)
    torch.set_num_threads(threads)


@cache
def tiny_prior(context: int, **fmt: int) -> Prior:
    architecture = Architecture(
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=context,
    )
    return Prior.build(BaseModel(architecture=architecture), TextFormat(**fmt))


class Script:
    """Texts in the order in which they are asked for, in place of a language model."""

    def __init__(self, *rounds: Sequence[str | Answer]) -> None:
        self.answers = [a if isinstance(a, tuple) else (a, True) for r in rounds for a in r]
        self.questions: list[Question] = []

    def __call__(
        self, prior: Prior, queue: deque[Question], **options: Any
    ) -> Iterator[tuple[int, str, bool]]:
        while queue:
            question = queue.popleft()
            text, complete = self.answers[len(self.questions)]
            self.questions.append(question)
            yield question.place, text, complete


def ask(script: Script, requests: list[dict[str, Any]], **options: Any) -> list[Proposal]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(proposals, "generate_texts", script)
        return propose(tiny_prior(512), requests, seed=0, **(FREE | options))


# --- draws ---------------------------------------------------------------------------------------


def test_the_seed_decides_the_texts_and_nothing_else_is_touched(prior: Prior) -> None:
    requests = [{}, {"formula": "NaCl"}] * 2
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    first = propose(prior, requests, seed=0)
    torch.manual_seed(7)
    torch.rand(3)
    outside = torch.get_rng_state()
    assert propose(prior, requests, seed=0) == first
    assert torch.equal(torch.get_rng_state(), outside)
    torch.set_rng_state(before[0])
    assert np.array_equal(np.random.get_state()[1], before[1]) and random.getstate() == before[2]
    assert first[0].text != first[2].text  # one prompt, two draws


def test_every_seed_place_and_attempt_has_draws_of_its_own() -> None:
    uniforms = set()
    for seed in (0, 1, 2**32, 2**64 + 1):
        script = Script(["no crystal"] * 4)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(proposals, "generate_texts", script)
            propose(tiny_prior(512), [{}, {}], seed=seed, max_attempts=2, constrain=False)
        uniforms |= {tuple(question.uniforms) for question in script.questions}
    assert len(uniforms) == 4 * 4


def test_a_request_is_answered_alike_whatever_follows_it(prior: Prior) -> None:
    requests = [{"formula": "NaCl"}, {}, {"num_atoms": 3}]
    alone = propose(prior, requests[:1], seed=4)
    assert propose(prior, requests, seed=4)[:1] == alone
    assert propose(prior, requests, seed=4, slots=1)[:1] == alone


CONDITIONS: list[dict[str, Any]] = [
    {},
    {"formula": "NaCl"},
    {"formula": "NaCl", "num_atoms": 4},
    {"elements": "O,Ti"},
    {"num_atoms": 2},
]


@pytest.mark.parametrize("constrain", [False, True])
def test_what_is_accepted_is_what_was_asked_for(prior: Prior, constrain: bool) -> None:
    requests = [conditions for conditions in CONDITIONS for _ in range(2)]
    excluded = ["F", "H"]
    proposals = propose(
        prior, requests, seed=0, max_attempts=4, constrain=constrain, exclude_elements=excluded
    )
    for conditions, proposal in zip(requests, proposals, strict=True):
        accepted = proposal.structure is not None
        assert proposal.prompt == generation_prompt(conditions)
        assert 1 <= proposal.attempts <= 4 and (accepted or proposal.attempts == 4)
        assert sum(proposal.rejects.values()) == proposal.attempts - accepted
        if not accepted:
            continue
        atoms = Counter(site.specie.symbol for site in proposal.structure)
        assert sum(atoms.values()) == conditions.get("num_atoms", sum(atoms.values()))
        assert atoms.keys().isdisjoint(excluded)
        if "formula" in conditions:
            assert atoms["Na"] == atoms["Cl"] == sum(atoms.values()) / 2
        if "elements" in conditions:
            assert set(atoms) == {"Ti", "O"}
    if constrain:
        assert all(proposal.attempts == 1 and proposal.structure for proposal in proposals)


def test_even_a_model_that_knows_nothing_answers_with_what_was_asked_for() -> None:
    proposals = propose(tiny_prior(512), CONDITIONS, seed=0, temperature=1.5, top_p=1.0)
    assert [(p.attempts, p.structure is None) for p in proposals] == [(1, False)] * len(CONDITIONS)


def test_nothing_asked_nothing_drawn(prior: Prior) -> None:
    assert propose(prior, [], seed=0) == []


# --- attempts ------------------------------------------------------------------------------------


def test_only_the_refused_are_asked_again_and_every_refusal_is_counted() -> None:
    wrong = NACL.replace("Cl", "Br")
    script = Script(
        [NACL, (NACL, False), "Na"],
        [NACL.replace("Na", "Xx"), wrong],
        [NACL, wrong],
    )
    right, late, never = ask(script, [{"formula": "ClNa"}] * 3, max_attempts=3)
    assert [question.place for question in script.questions] == [0, 1, 2, 1, 2, 1, 2]
    assert (right.attempts, late.attempts, never.attempts) == (1, 3, 3)
    assert right.rejects == {}
    assert late.rejects == {"truncated": 1, "unknown_element": 1}
    assert never.rejects == {"line_count": 1, "other_formula": 2}
    assert right.structure == late.structure and len(right.structure) == 2
    assert (never.structure, never.text) == (None, wrong)


def test_the_likeliest_text_is_asked_for_once() -> None:
    script = Script(["no crystal"])
    (proposal,) = ask(script, [{}], temperature=0, max_attempts=10)
    assert (proposal.attempts, proposal.structure) == (1, None)


@pytest.mark.parametrize(
    ("conditions", "reason"),
    [
        ({"formula": "NaCl2"}, "other_formula"),
        ({"elements": "Na"}, "other_elements"),
        ({"num_atoms": 3}, "other_num_atoms"),
        ({"spacegroup": 1, "band_gap": 3, "e_above_hull": 0}, None),  # cannot be read off a crystal
    ],
)
def test_a_crystal_that_misses_a_condition_is_refused_by_its_name(
    conditions: dict[str, Any], reason: str | None
) -> None:
    (proposal,) = ask(Script([NACL]), [conditions], max_attempts=1)
    assert proposal.rejects == ({reason: 1} if reason else {})


# pymatgen writes the reduced formula of these with twice the atoms (O2, K2O2), so that a reduced
# formula is not always the smallest unit.
AMOUNTS = st.dictionaries(
    st.sampled_from(["H", "O", "N", "F", "Cl", "K", "Na", "Hg"]) | st.sampled_from(SYMBOLS),
    st.integers(1, 5),
    min_size=1,
    max_size=4,
)


def text_of(amounts: dict[str, int]) -> str:
    species = [symbol for symbol, count in amounts.items() for _ in range(count)]
    coords = np.arange(len(species))[:, None] / len(species) * np.ones(3)
    return encode(Structure(Lattice.cubic(5), species, coords), FMT)


@pytest.mark.filterwarnings("ignore:No Pauling electronegativity")  # He, Ne, Ar
@settings(max_examples=60, deadline=None)
@given(amounts=AMOUNTS, other=AMOUNTS)
def test_composition_conditions_fix_every_atom(
    amounts: dict[str, int], other: dict[str, int]
) -> None:
    formula = "".join(f"{symbol}{count}" for symbol, count in amounts.items())
    conditions = composition_conditions(formula)
    assert conditions["num_atoms"] == sum(amounts.values())
    check_conditions(conditions, FMT)
    exact, another = ask(
        Script([text_of(amounts), text_of(other)]), [conditions] * 2, max_attempts=1
    )
    assert exact.structure is not None
    assert (another.structure is not None) == (amounts == other)


@pytest.mark.parametrize(
    ("formula", "atoms"),
    [("O", ["O"]), ("O", ["O"] * 3), ("K1O1", ["K", "O"]), ("KO", ["K", "K", "O", "O"])],
)
def test_a_formula_that_pymatgen_doubles_can_be_asked_for(formula: str, atoms: list[str]) -> None:
    check_conditions({"formula": formula, "num_atoms": len(atoms)}, FMT)
    script = Script([text_of(Counter(atoms))])
    (proposal,) = ask(script, [{"formula": formula}], max_attempts=1)
    assert proposal.structure is not None


# --- what is refused -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("conditions", "message"),
    [
        ({"formula": "Na11Cl10"}, "formula Na11Cl10 has 21 atoms, this model writes at most 20"),
        ({"num_atoms": 21}, "21 atoms are too many, this model writes at most 20"),
        ({"formula": "TiO2", "num_atoms": 4}, "4 atoms are no whole .* units of TiO2; .* of 3"),
        ({"formula": "TiO2", "elements": "Na,Cl"}, "formula TiO2 is not of the elements Cl, Na"),
        ({"elements": "Na,Cl", "num_atoms": 1}, "1 atoms cannot have the elements Cl, Na; give"),
        ({"colour": "red"}, "unknown condition 'colour'; known are formula, elements"),
        ({"spacegroup": 231}, "spacegroup 231 is not a whole number from 1 to 230"),
    ],
)
def test_what_no_crystal_can_meet_is_refused_before_a_draw(
    conditions: dict[str, Any], message: str
) -> None:
    with pytest.raises(PriorError, match=message):
        check_conditions(conditions, FMT)
    with pytest.raises(PriorError, match=message):
        ask(Script(), [{}, conditions])


@pytest.mark.parametrize(
    "conditions",
    [
        {"formula": "Na10Cl10"},
        {"formula": "NaCl", "num_atoms": 20},
        {"formula": "TiO2", "elements": ["Ti", "O"], "num_atoms": "6"},
        {"elements": "Na,Cl", "num_atoms": 2},
    ],
)
def test_what_a_crystal_can_meet_passes(conditions: dict[str, Any]) -> None:
    check_conditions(conditions, FMT)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"temperature": -0.1}, "temperature -0.1 is no number from 0"),
        ({"temperature": 1e-40}, "temperature 1e-40 is too small"),
        ({"temperature": float("nan")}, "temperature nan is no number"),
        ({"temperature": float("inf")}, "temperature inf is no number"),
        ({"top_p": 0.0}, r"top_p 0.0 is not in \(0, 1\]"),
        ({"top_p": 1.1}, "top_p 1.1 is not in"),
        ({"top_p": float("nan")}, "top_p nan is not in"),
        ({"max_attempts": 0}, "max_attempts 0 must be at least 1"),
        ({"seed": -1}, "seed -1 is negative"),
        ({"slots": 0}, "slots 0 must be at least 1"),
        ({"exclude_elements": ["Xx"]}, "unknown element 'Xx'"),
    ],
)
def test_impossible_settings_are_refused(setting: dict[str, Any], message: str) -> None:
    with pytest.raises(PriorError, match=message):
        propose(tiny_prior(512), [{}], **({"seed": 0} | setting))


@pytest.mark.parametrize("constrain", [False, True])
def test_a_prompt_that_leaves_no_room_in_the_context_is_refused(constrain: bool) -> None:
    prior = tiny_prior(50, max_atoms=4)
    assert propose(prior, [{}], seed=0, max_attempts=1, constrain=constrain)[0].attempts == 1
    with pytest.raises(PriorError, match="a prompt of .* tokens and a crystal of up to .* exceed"):
        propose(
            prior,
            [{"elements": "Na,Mg,Ti,O", "e_above_hull": 123456.78}],
            seed=0,
            constrain=constrain,
        )


def test_a_condition_that_the_model_never_saw_is_named(caplog: pytest.LogCaptureFixture) -> None:
    prior = Prior(model=torch.nn.Identity(), tokenizer=None, fmt=FMT)
    warn_of_untrained(prior, {"band_gap": 1.0})  # nothing is recorded
    prior.info["conditions"] = ["formula", "num_atoms"]
    warn_of_untrained(prior, {"formula": "NaCl", "num_atoms": 2})
    assert not caplog.records
    warn_of_untrained(prior, {"formula": "NaCl", "band_gap": 1.0, "spacegroup": 1})
    (record,) = caplog.records
    assert "never trained with band_gap and spacegroup" in record.getMessage()


def test_a_task_that_the_model_never_saw_is_named(caplog: pytest.LogCaptureFixture) -> None:
    prior = Prior(model=torch.nn.Identity(), tokenizer=None, fmt=FMT)
    prior.info["recipe"] = {"tasks": asdict(TaskMix())}
    warn_of_untrained(prior)
    warn_of_untrained(prior, infill=True)
    assert not caplog.records
    mix = TaskMix(infill=0, unconditional=0, formula=0.5, composition=0.5)
    prior.info["recipe"] = {"tasks": asdict(mix)}
    warn_of_untrained(prior, {"formula": "NaCl"})
    assert not caplog.records
    warn_of_untrained(prior, infill=True)
    warn_of_untrained(prior)
    assert [record.getMessage().split(" and will")[0] for record in caplog.records] == [
        "this model was never trained with infilling",
        "this model was never trained with a prompt without conditions",
    ]


# --- the token limit -----------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(
    lengths=st.tuples(*[st.floats(0.1, 39)] * 3),
    symbols=st.lists(st.sampled_from(SYMBOLS), min_size=20, max_size=20),
    seed=st.integers(0, 99),
)
def test_the_largest_crystal_fits_into_the_token_limit(
    lengths: tuple[float, float, float], symbols: list[str], seed: int
) -> None:
    prior = tiny_prior(512)
    coords = np.random.default_rng(seed).random((20, 3))
    lattice = Lattice.from_parameters(*lengths, 100, 110, 95)
    text = encode(Structure(lattice, symbols, coords), FMT)
    tokens = prior.tokenizer(text, add_special_tokens=False)["input_ids"]
    assert len(tokens) + 1 <= longest_answer(prior)
    assert longest_answer(prior) <= 1.2 * len(tokens)


def test_an_answer_cut_off_by_the_token_limit_is_known_as_such(
    prior: Prior, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(proposals, "longest_answer", lambda prior: 9)
    (proposal,) = propose(prior, [{}], seed=0, max_attempts=2, constrain=False)
    assert proposal.rejects == {"truncated": 2} and proposal.text
