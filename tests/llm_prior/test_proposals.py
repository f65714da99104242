"""Sampling from the prior: what is accepted is what was asked for, and draws are the seed's."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pymatgen.core import Lattice, Structure

from llm_prior import proposals
from llm_prior.errors import PriorError
from llm_prior.model import Prior
from llm_prior.prompts import generation_prompt
from llm_prior.proposals import longest_answer, propose
from llm_prior.text import SYMBOLS, encode
from prior_support import FMT, NACL, Script, ask, one_layer_prior

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
            propose(one_layer_prior(512), [{}, {}], seed=seed, max_attempts=2, constrain=False)
        uniforms |= {tuple(question.uniforms) for question in script.questions}
    assert len(uniforms) == 4 * 4


def test_a_request_draws_by_its_index_in_the_larger_run(prior: Prior) -> None:
    requests = [{"formula": "NaCl"}, {}, {"num_atoms": 3}, {}]
    together = propose(prior, requests, seed=4)
    parts = [propose(prior, requests[k:][:2], seed=4, indices=(k, k + 1)) for k in (0, 2)]
    assert [p.text for part in parts for p in part] == [p.text for p in together]

    whole, part = Script(["no crystal"] * 8), Script(["no crystal"] * 4)
    ask(whole, [{}] * 4, max_attempts=2)
    ask(part, [{}] * 2, max_attempts=2, indices=[3, 1])
    drawn = {(q.place, tuple(q.uniforms)) for q in whole.questions}
    assert all(((3, 1)[q.place], tuple(q.uniforms)) in drawn for q in part.questions)


def test_later_calls_go_on_with_the_attempts_of_earlier_ones() -> None:
    whole, first, rest = (Script(["no crystal"] * n) for n in (5, 2, 3))
    (all_,) = ask(whole, [{}], max_attempts=5)
    ask(first, [{}], max_attempts=2)
    (left,) = ask(rest, [{}], max_attempts=5, first_attempts=[2])
    assert (all_.attempts, left.attempts) == (5, 3)
    parts = [*first.questions, *rest.questions]
    assert [tuple(q.uniforms) for q in parts] == [tuple(q.uniforms) for q in whole.questions]


def test_every_request_is_reported_once_when_it_is_accepted_or_given_up() -> None:
    reported: list[int] = []
    seen: list[int] = []

    class Watched(Script):
        def __call__(self, *args: Any, **options: Any) -> Any:
            for answer in super().__call__(*args, **options):
                seen.append(len(reported))
                yield answer

    script = Watched([NACL, "no crystal", "no crystal"], [NACL, "no crystal"], ["no crystal"])
    ask(script, [{}] * 3, max_attempts=3, on_finished=reported.append)
    assert reported == [1, 1, 1]
    assert seen == [0, 1, 1, 1, 2, 2]  # the second at its second attempt, the third at its last


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
    proposals = propose(one_layer_prior(512), CONDITIONS, seed=0, temperature=1.5, top_p=1.0)
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


# --- what is refused -----------------------------------------------------------------------------


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
        ({"first_attempts": [0, 0, 0]}, "3 first attempts for . request"),
        ({"first_attempts": [10], "max_attempts": 10}, "first attempt 10 is not in 0 to 9; raise"),
        ({"first_attempts": [-1], "max_attempts": 10}, "first attempt -1 is not in 0 to 9"),
        ({"seed": -1}, "seed -1 is negative"),
        ({"indices": [-1]}, "index -1 is negative"),
        ({"indices": [0, 1]}, "2 indices for 1 requests; give one index for each"),
        ({"slots": 0}, "slots 0 must be at least 1"),
        ({"exclude_elements": ["Xx"]}, "unknown element 'Xx'"),
    ],
)
def test_impossible_settings_are_refused(setting: dict[str, Any], message: str) -> None:
    with pytest.raises(PriorError, match=message):
        propose(one_layer_prior(512), [{}], **({"seed": 0} | setting))


@pytest.mark.parametrize("constrain", [False, True])
def test_a_prompt_that_leaves_no_room_in_the_context_is_refused(constrain: bool) -> None:
    prior = one_layer_prior(50, max_atoms=4)
    assert propose(prior, [{}], seed=0, max_attempts=1, constrain=constrain)[0].attempts == 1
    with pytest.raises(PriorError, match="a prompt of .* tokens and a crystal of up to .* exceed"):
        propose(
            prior,
            [{"elements": "Na,Mg,Ti,O", "e_above_hull": 123456.78}],
            seed=0,
            constrain=constrain,
        )


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
    prior = one_layer_prior(512)
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
