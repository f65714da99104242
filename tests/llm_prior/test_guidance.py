"""Classifier-free guidance: the logits that are drawn from, its limits 0 and 1, refusals."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import asdict
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_prior import Prior, TaskMix, propose
from llm_prior.decoding import Answer, decode_answers
from llm_prior.drawing import draw
from llm_prior.prompts import generation_prompt
from prior_support import refused
from support import BUNDLED_PRIOR

ROOT = BUNDLED_PRIOR.parents[1]
EOS = 2
CONDITIONS: list[dict[str, Any]] = [
    {"formula": "NaCl", "num_atoms": 4},
    {"e_above_hull": 0.05},
    {"elements": "Ti,O", "spacegroup": 136},
    {"e_above_hull": 0.05},
    {"band_gap": 1.5},
]


@cache
def bundled(layout: str, dtype: torch.dtype = torch.float32) -> Prior:
    return Prior.from_pretrained(ROOT / layout / "prior", dtype=dtype)


def answers(model: Prior, *, room: int, grammar: bool = False) -> list[Answer]:
    def tokens(conditions: dict[str, Any]) -> tuple[int, ...]:
        text = "<s>" + generation_prompt(conditions, model.fmt.layout)
        return tuple(model.tokenizer(text)["input_ids"])

    return [
        Answer(
            prompt=tokens(conditions),
            unconditional=tokens({}),
            uniforms=np.random.default_rng(place).random(room),
            cursor=model.grammar.constraint(conditions).cursor() if grammar else None,
        )
        for place, conditions in enumerate(CONDITIONS)
    ]


def run(
    model: torch.nn.Module, queue: list[Answer], *, slots: int = 3, **options: float
) -> list[list[int]]:
    settings: Any = {"temperature": 0.8, "top_p": 0.9, **options}
    done = decode_answers(model, deque(queue), eos_token_id=EOS, slots=slots, **settings)
    assert set(done) == set(queue)
    return [answer.tokens for answer in queue]


@torch.inference_mode()
def naive(model: torch.nn.Module, answer: Answer, *, guidance: float, **sampling: float) -> Any:
    """Write an answer with two plain passes over whole sequences for every token."""
    tokens: list[int] = []
    assert answer.unconditional is not None
    for uniform in answer.uniforms:
        conditional, unconditional = (
            model(torch.tensor([[*prompt, *tokens]])).logits[:, -1]
            for prompt in (answer.prompt, answer.unconditional)
        )
        logits = (1 - guidance) * unconditional + guidance * conditional
        if answer.cursor is not None:
            legal = answer.cursor.legal()
            allowed = [legal.only] if legal.only is not None else legal.ids.tolist()
            masked = torch.full_like(logits, -torch.inf)
            masked[:, allowed] = logits[:, allowed]
            logits = masked
        token = int(draw(logits, torch.tensor([uniform]), **sampling)[0])
        if answer.cursor is not None:
            answer.cursor.advance(token)
        if token == EOS:
            break
        tokens.append(token)
    return tokens


# --- the logits ----------------------------------------------------------------------------------


@settings(max_examples=6, deadline=None)
@given(guidance=st.floats(0, 6))
def test_tokens_are_drawn_from_the_guided_logits(guidance: float) -> None:
    model = bundled("wyckoff", torch.float64).model
    prior = bundled("wyckoff", torch.float64)
    found = run(model, answers(prior, room=8), guidance=guidance)
    sampling = {"temperature": 0.8, "top_p": 0.9}
    expected = [naive(model, a, guidance=guidance, **sampling) for a in answers(prior, room=8)]
    assert found == expected


@pytest.mark.parametrize("layout", ["wyckoff", "sites"])
def test_the_likeliest_legal_token_of_the_guided_logits_is_taken(layout: str) -> None:
    prior = bundled(layout, torch.float64)
    options = {"guidance": 2.5, "temperature": 0.0, "top_p": 1.0}
    found = run(prior.model, answers(prior, room=120, grammar=True), **options)
    expected = [naive(prior.model, a, **options) for a in answers(prior, room=120, grammar=True)]
    assert found == expected
    assert len({tuple(tokens) for tokens in found}) > 2


@pytest.mark.parametrize("guidance", [0.0, 0.5, 3.0])
def test_the_slots_change_nothing(guidance: float) -> None:
    prior = bundled("wyckoff", torch.float64)
    one, two, seven = (
        run(prior.model, answers(prior, room=40), slots=slots, guidance=guidance)
        for slots in (1, 2, 7)
    )
    assert one == two == seven


def test_half_precision_works() -> None:
    prior = bundled("wyckoff", torch.bfloat16)
    queue = answers(prior, room=150, grammar=True)
    run(prior.model, queue, guidance=2.0)
    assert all(answer.complete for answer in queue)


def test_an_answer_without_an_unconditional_prompt_cannot_be_guided() -> None:
    (answer, *_) = answers(bundled("wyckoff"), room=3)
    answer.unconditional = None
    with pytest.raises(ValueError, match="needs the prompt without conditions"):
        run(bundled("wyckoff").model, [answer], guidance=2.0)


# --- the limits ----------------------------------------------------------------------------------


def shapes_of(prior: Prior, **options: float) -> tuple[list[list[int]], list[tuple[int, ...]]]:
    shapes: list[tuple[int, ...]] = []
    hook = prior.model.register_forward_pre_hook(
        lambda module, args, kwargs: shapes.append(tuple(kwargs["input_ids"].shape)),
        with_kwargs=True,
    )
    try:
        queue = answers(prior, room=30)
        if not options:
            for answer in queue:
                answer.unconditional = None
        return run(prior.model, queue, **options), shapes
    finally:
        hook.remove()


def test_weight_one_is_plain_sampling_at_its_cost() -> None:
    prior = bundled("wyckoff")
    plain, passes = shapes_of(prior)
    assert shapes_of(prior, guidance=1.0) == (plain, passes)
    guided, more = shapes_of(prior, guidance=2.0)
    assert guided != plain
    assert max(rows for rows, tokens in more if tokens == 1) == 2 * 3  # slots


@pytest.mark.parametrize("layout", ["wyckoff", "sites"])
def test_weight_one_gives_the_proposals_of_no_weight(layout: str) -> None:
    plain = propose(bundled(layout), CONDITIONS, seed=3, temperature=1.0)
    again = propose(bundled(layout), CONDITIONS, seed=3, temperature=1.0, guidance=1)
    assert [(p.prompt, p.text) for p in again] == [(p.prompt, p.text) for p in plain]


@pytest.mark.parametrize("layout", ["wyckoff", "sites"])
def test_weight_zero_leaves_the_conditions_out_of_the_prompt(layout: str) -> None:
    requests = [{"e_above_hull": 0.05}, {"band_gap": 2.0}] * 3
    without = propose(bundled(layout), [{}] * 6, seed=3, temperature=1.0)
    found = propose(bundled(layout), requests, seed=3, temperature=1.0, guidance=0)
    assert [(p.prompt, p.text) for p in found] == [(p.prompt, p.text) for p in without]


@pytest.mark.parametrize("guidance", [0.0, 3.0])
def test_what_the_grammar_enforces_stays_enforced(guidance: float) -> None:
    request = {"formula": "SrTiO3", "num_atoms": 5, "spacegroup": 221}
    found = propose(bundled("wyckoff"), [request] * 4, seed=0, guidance=guidance)
    for proposal in found:
        assert proposal.structure is not None and proposal.text.startswith("221\n")
        assert proposal.structure.composition.formula == "Sr1 Ti1 O3"


def test_any_weight_above_0_follows_the_conditions() -> None:
    """Without the grammar, the elements in the prompt are met more often."""
    requests = [{"elements": elements} for elements in ("Ti,O", "Mn,Ga", "K,Au", "Ba,Bi")] * 6
    met = []
    for guidance in (0.0, 1.0, 2.0):
        found = propose(
            bundled("wyckoff"),
            requests,
            seed=1,
            guidance=guidance,
            temperature=1.0,
            top_p=1.0,
            max_attempts=1,
            constrain=False,
        )
        met.append(sum(proposal.structure is not None for proposal in found))
    assert 2 * met[0] < min(met[1:])


def test_a_guided_request_draws_by_its_index() -> None:
    options: dict[str, Any] = {"seed": 5, "guidance": 2.0, "temperature": 1.0}
    together = propose(bundled("wyckoff"), CONDITIONS, **options)
    texts: dict[int, str] = {}
    for part in ((0, 1), (4, 2, 3)):
        requests = [CONDITIONS[k] for k in part]
        found = propose(bundled("wyckoff"), requests, indices=part, slots=1, **options)
        texts |= {k: proposal.text for k, proposal in zip(part, found, strict=True)}
    assert [texts[k] for k in range(5)] == [proposal.text for proposal in together]


# --- refusals ------------------------------------------------------------------------------------


@pytest.mark.parametrize("guidance", [-0.1, math.nan, math.inf, 1e6])
def test_a_bad_weight_is_refused(guidance: float) -> None:
    refused(
        lambda: propose(bundled("wyckoff"), CONDITIONS, seed=0, guidance=guidance),
        f"guidance {guidance} is not from 0 to 100; 1 samples as usual",
    )


@pytest.mark.parametrize("request_", [{}, {"num_atoms": "3-8"}, {"spacegroup": "225,227"}])
@pytest.mark.parametrize("guidance", [0, 2])
def test_guidance_needs_a_condition_in_the_prompt(
    guidance: float, request_: dict[str, Any]
) -> None:
    refused(
        lambda: propose(bundled("wyckoff"), [request_], seed=0, guidance=guidance),
        f"guidance {guidance} weighs the conditions of the prompt, and this one has none; give",
    )


def test_a_model_that_knows_no_prompt_without_conditions_is_refused() -> None:
    known = bundled("wyckoff")
    tasks = asdict(TaskMix(infill=0, unconditional=0, formula=0.5, composition=0.5))
    prior = Prior(
        model=known.model,
        tokenizer=known.tokenizer,
        fmt=known.fmt,
        info={"recipe": {"tasks": tasks}},
    )
    refused(
        lambda: propose(prior, CONDITIONS, seed=0, guidance=2.0),
        "never trained with prompts without conditions, which guidance compares with; leave guid",
        "or train with tasks.unconditional above 0",
    )
    assert propose(prior, CONDITIONS, seed=0, max_attempts=1)
    prior.info.clear()  # nothing is recorded
    assert propose(prior, CONDITIONS, seed=0, max_attempts=1, guidance=2.0)
