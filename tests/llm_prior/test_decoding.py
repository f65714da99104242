"""The decoding engine: every token is the draw from what a plain forward pass computes, whatever
else is in the batch."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM
from transformers.generation import TemperatureLogitsWarper, TopPLogitsWarper

from llm_prior import decoding
from llm_prior.cache import SlotCache, cache_argument
from llm_prior.decoding import Answer, decode_answers
from llm_prior.drawing import draw
from llm_prior.errors import PriorError
from llm_prior.model import Prior
from llm_prior.prompts import generation_prompt
from llm_prior.tries import Legal
from support import BUNDLED_PRIOR

ROOM = 96
REQUESTS: list[dict[str, Any]] = [
    {},
    {"formula": "NaCl", "num_atoms": 4},
    {},
    {"elements": "Ti,O", "spacegroup": 136},
    {"formula": "SrTiO3"},
    {},
    {"num_atoms": 3},
]


@cache
def prior(dtype: torch.dtype) -> Prior:
    return Prior.from_pretrained(BUNDLED_PRIOR, dtype=dtype)


def tokens_of(model: Prior, conditions: dict[str, Any]) -> tuple[int, ...]:
    return tuple(model.tokenizer("<s>" + generation_prompt(conditions))["input_ids"])


def answers_to(
    model: Prior, requests: list[dict[str, Any]], *, grammar: bool = False, room: int = ROOM
) -> list[Answer]:
    return [
        Answer(
            prompt=tokens_of(model, conditions),
            uniforms=np.random.default_rng(place).random(room),
            cursor=model.grammar.constraint(conditions).cursor() if grammar else None,
        )
        for place, conditions in enumerate(requests)
    ]


def run(
    model: torch.nn.Module,
    answers: list[Answer],
    *,
    slots: int = 3,
    temperature: float = 1.0,
    top_p: float = 0.9,
    eos_token_id: int = 2,
) -> list[list[int]]:
    done = decode_answers(
        model,
        deque(answers),
        eos_token_id=eos_token_id,
        slots=slots,
        temperature=temperature,
        top_p=top_p,
    )
    assert set(done) == set(answers)
    return [answer.tokens for answer in answers]


def greedy_of_transformers(
    model: torch.nn.Module, prompts: list[tuple[int, ...]], room: int, eos: int = 2
) -> list[list[int]]:
    longest = max(map(len, prompts))
    settings = GenerationConfig(
        max_new_tokens=room, do_sample=False, eos_token_id=eos, pad_token_id=0
    )
    output = model.generate(
        input_ids=torch.tensor([[0] * (longest - len(p)) + [*p] for p in prompts]),
        attention_mask=torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts]),
        generation_config=settings,
    )
    rows = output[:, longest:].tolist()
    return [row[: row.index(eos)] if eos in row else row for row in rows]


# --- the tokens ----------------------------------------------------------------------------------


def test_greedy_tokens_are_those_of_transformers() -> None:
    model = prior(torch.float32)
    answers = answers_to(model, REQUESTS)
    theirs = greedy_of_transformers(model.model, [a.prompt for a in answers], ROOM)
    assert run(model.model, answers, temperature=0) == theirs
    assert all(answer.complete for answer in answers)
    assert len({len(row) for row in theirs}) > 1  # they end at different times


@pytest.mark.parametrize("adapter", [False, True])
def test_other_models_of_the_family(adapter: bool) -> None:
    """Fewer heads of keys than of queries; a peft model whose adapter does something."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=50,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.3,
    )
    model = LlamaForCausalLM(config).double().eval()
    if adapter:
        lora = LoraConfig(target_modules=["q_proj", "v_proj"], init_lora_weights=False)
        model = get_peft_model(model, lora).double().eval()
    prompts = [(1, 5, 7), (3,), (4, 9), (1, 5, 7), (11, 12, 13, 14, 15, 16)]
    answers = [Answer(prompt=prompt, uniforms=np.zeros(30)) for prompt in prompts]
    theirs = greedy_of_transformers(model, prompts, 30, eos=8)
    assert run(model, answers, temperature=0, eos_token_id=8) == theirs
    assert [a.complete for a in answers] == [len(row) < 30 for row in theirs]


@pytest.mark.parametrize("grammar", [False, True])
def test_each_token_is_the_draw_from_a_plain_forward_pass(grammar: bool) -> None:
    model = prior(torch.float64)
    answers = answers_to(model, REQUESTS, grammar=grammar, room=150)
    run(model.model, answers, temperature=0.9, top_p=0.8)
    for answer, conditions in zip(answers, REQUESTS, strict=True):
        written = [*answer.tokens, 2]
        ids = torch.tensor([[*answer.prompt, *written]])
        with torch.inference_mode():
            logits = model.model(ids).logits[0, len(answer.prompt) - 1 : -1]
        if grammar:
            cursor = model.grammar.constraint(conditions).cursor()
            legal = torch.full_like(logits, -torch.inf)
            for row, token in zip(legal, written, strict=True):
                row[cursor.legal().ids] = 0
                cursor.advance(token)
            logits = logits + legal
        uniforms = torch.from_numpy(answer.uniforms[: len(written)])
        assert draw(logits, uniforms, temperature=0.9, top_p=0.8)[0].tolist() == written


def test_the_companions_of_an_answer_do_not_matter() -> None:
    model = prior(torch.float64)
    one, two, seven = (
        run(model.model, answers_to(model, REQUESTS, room=40), slots=slots) for slots in (1, 2, 7)
    )
    assert one == two == seven


def test_tokens_without_a_choice_are_fed_along(monkeypatch: pytest.MonkeyPatch) -> None:
    model = prior(torch.float64)
    requests = [{"formula": "Na3Cl", "num_atoms": 8}] * 3  # the same places are without a choice
    calls: list[tuple[int, ...]] = []
    hook = model.model.register_forward_pre_hook(
        lambda module, args, kwargs: calls.append(tuple(kwargs["input_ids"].shape)),
        with_kwargs=True,
    )
    try:
        along = run(model.model, answers_to(model, requests, grammar=True, room=150))
        passes = len(calls)
        calls.clear()
        monkeypatch.setattr(decoding._Batch, "_tokens_per_row", lambda self, pending: 1)
        alone = run(model.model, answers_to(model, requests, grammar=True, room=150))
    finally:
        hook.remove()
    assert along == alone
    assert len(along[0]) == 6 + 4 * 8
    # After the first element the other 7 and the end have no alternative; the end is never fed.
    assert (passes, len(calls)) == (6 + 4 * 8 - 7, 6 + 4 * 8)


# --- what it takes -------------------------------------------------------------------------------


def test_memory_and_work_are_bounded_by_the_slots(monkeypatch: pytest.MonkeyPatch) -> None:
    model = prior(torch.float32)
    caches: list[SlotCache] = []

    def remembered(*args: Any) -> SlotCache:
        caches.append(SlotCache(*args))
        return caches[-1]

    monkeypatch.setattr(decoding, "SlotCache", remembered)
    shapes: list[tuple[int, int]] = []
    hook = model.model.register_forward_pre_hook(
        lambda module, args, kwargs: shapes.append(tuple(kwargs["input_ids"].shape)),
        with_kwargs=True,
    )
    try:
        sizes = []
        for number in (4, 12):
            run(model.model, answers_to(model, [{}] * number, room=20), slots=4)
            sizes.append([layer.keys.numel() for layer in caches[-1].layers])
    finally:
        hook.remove()
    config = model.model.config
    heads = config.num_key_value_heads * config.head_dim
    assert sizes == [[4 * heads * 32] * config.num_hidden_layers] * 2  # 23 tokens, in steps of 16
    prompt = len(tokens_of(model, {}))
    assert [shape for shape in shapes if shape[1] > 1] == [(1, prompt)] * 2  # read once each time
    assert max(rows for rows, _ in shapes) == 4
    # 4 + 12 answers of at most 20 tokens, of which the prompt draws the first: no row idles.
    assert len(shapes) - 2 <= 19 + 3 * 19


def test_more_may_be_asked_for_while_answers_come() -> None:
    model = prior(torch.float32)
    first, second, third = answers_to(model, [{}, {}, {"formula": "NaCl"}])
    queue = deque([first, third])
    seen = []
    for answer in decode_answers(
        model.model, queue, eos_token_id=2, slots=1, temperature=1.0, top_p=1.0
    ):
        seen.append(answer)
        if answer is first:
            queue.append(second)
    assert seen == [first, third, second]


def test_the_last_token_that_fits_is_the_last() -> None:
    model = prior(torch.float32)
    answers = answers_to(model, [{}, {"num_atoms": 9}], room=7)
    run(model.model, answers)
    assert [(len(a.tokens), a.complete) for a in answers] == [(7, False)] * 2


def test_no_answers_no_passes() -> None:
    assert run(torch.nn.Linear(1, 1), []) == []


def test_half_precision_works() -> None:
    model = prior(torch.bfloat16)
    answers = answers_to(model, REQUESTS, grammar=True, room=150)
    run(model.model, answers)
    assert all(answer.complete for answer in answers)


def test_a_model_that_computes_nan_is_refused() -> None:
    model = Prior.from_pretrained(BUNDLED_PRIOR)
    model.model.model.norm.weight.data[0] = torch.nan
    with pytest.raises(PriorError, match="the model computes NaN"):
        run(model.model, answers_to(model, [{}]))


# --- draws ---------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    temperature=st.sampled_from([0.3, 0.7, 1.0, 2.0]),
    top_p=st.sampled_from([0.1, 0.5, 0.9, 0.999, 1.0]),
)
def test_draws_have_the_distribution_of_transformers(
    seed: int, temperature: float, top_p: float
) -> None:
    """Over an even grid of 2,000 uniforms each token is drawn its share of times, within one."""
    logits = torch.from_numpy(np.random.default_rng(seed).normal(0, 3, (1, 30)))
    logits[0, 3] = -torch.inf
    scores = TemperatureLogitsWarper(temperature)(None, logits)
    if top_p < 1:
        scores = TopPLogitsWarper(top_p)(None, scores)
    shares = torch.softmax(scores, -1)[0].numpy()
    grid = (torch.arange(2000, dtype=torch.float64) + 0.5) / 2000
    drawn, rests = draw(logits.expand(2000, -1), grid, temperature=temperature, top_p=top_p)
    counts = np.bincount(drawn.numpy(), minlength=30)
    assert np.abs(counts - 2000 * shares).max() <= 1.01
    assert not counts[shares == 0].any()
    for token in np.flatnonzero(counts > 20):  # what is left of the uniforms is uniform
        left = np.sort(rests[drawn == token].numpy())
        assert np.abs(left - (np.arange(len(left)) + 0.5) / len(left)).max() <= 1.01 / len(left)


def test_the_ends_of_the_unit_interval_draw_what_is_possible() -> None:
    logits = torch.tensor([[-torch.inf, 0.0, 1.0, -torch.inf]]).expand(2, -1)
    ends = torch.tensor([0.0, np.nextafter(1.0, 0.0)], dtype=torch.float64)
    drawn, rests = draw(logits, ends, temperature=1.0, top_p=1.0)
    assert drawn.tolist() == [1, 2]
    assert ((rests >= 0) & (rests < 1)).all()


@dataclass
class FewAccepted:
    """A rule whose candidates are all tokens."""

    few: torch.Tensor
    vocabulary: int

    def legal(self) -> Legal:
        return Legal(self.few, None)

    def candidates(self) -> Legal:
        return Legal(torch.arange(self.vocabulary), None)

    def accepts(self, token: int) -> bool:
        return token in self.few

    def advance(self, token: int) -> None:
        assert token in self.few


def test_candidates_do_not_change_the_distribution() -> None:
    """Over an even grid each legal token is drawn as often as by a softmax over the legal ones."""
    model = prior(torch.float64)
    legal = torch.arange(3, len(model.tokenizer), 37)
    grid = (np.arange(2000) + 0.5) / 2000
    rule = FewAccepted(legal, len(model.tokenizer))
    answers = [Answer(prompt=(1, 5), uniforms=np.array([u]), cursor=rule) for u in grid]
    drawn = run(model.model, answers, slots=2000, temperature=1.5, top_p=1.0)
    with torch.inference_mode():
        logits = model.model(torch.tensor([[1, 5]])).logits[0, -1]
    shares = torch.softmax(logits[legal] / 1.5, -1).numpy()
    counts = np.bincount([row[0] for row in drawn], minlength=len(logits))[legal.numpy()]
    assert counts.sum() == 2000
    # Each refused token spreads its own part of the grid over all legal ones.
    assert np.abs(counts / 2000 - shares).max() < 0.02
    assert shares.max() > 0.025


# --- versions of transformers --------------------------------------------------------------------


class OldModel(torch.nn.Module):
    """A model as transformers up to 5.23 has them."""

    def forward(self, input_ids: Any, past_key_values: Any = None, **options: Any) -> None: ...


class NewModel(torch.nn.Module):
    """A model as transformers from 5.24 on has them."""

    def forward(self, input_ids: Any, cache: Any = None, **options: Any) -> None: ...


class Wrapper(torch.nn.Module):
    """A model around another, as those of peft, whose own arguments tell nothing."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def get_base_model(self) -> torch.nn.Module:
        return self.model

    def forward(self, *args: Any, **options: Any) -> None: ...


@pytest.mark.parametrize("wrap", [lambda model: model, Wrapper], ids=["plain", "wrapped"])
@pytest.mark.parametrize(("kind", "name"), [(OldModel, "past_key_values"), (NewModel, "cache")])
def test_the_cache_goes_in_under_the_name_that_the_model_takes(
    kind: Any, name: str, wrap: Any
) -> None:
    assert cache_argument(wrap(kind())) == name


def test_decoding_warns_of_nothing(recwarn: pytest.WarningsRecorder) -> None:
    """transformers 5.24 warns when a cache comes in under its old name."""
    model = prior(torch.float32)
    run(model.model, answers_to(model, [{}, {}], room=3))
    assert not list(recwarn)
