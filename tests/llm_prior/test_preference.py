"""Direct preference optimisation against plain loops, and on a handful of pairs."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_prior.dataset import IGNORED, tokenize
from llm_prior.errors import PriorError
from llm_prior.model import Prior
from llm_prior.preference import (
    Preference,
    PreferenceCollator,
    PreferenceDataset,
    draw_texts,
    preference_loss,
    preference_objective,
)
from llm_prior.prompts import generation_prompt
from llm_prior.scoring import score_texts
from prior_support import small_prior
from support import BUNDLED_PRIOR

PROMPTS = [generation_prompt({}), generation_prompt({"formula": "NaCl"})]
TEXTS = [
    "5.6 5.6 5.6\n90 90 90\nNa\n0.00 0.00 0.00\nCl\n0.50 0.50 0.50",
    "4.1 4.1 4.1\n60 60 60\nCs\n0.00 0.00 0.00",
    "3.9 3.9 3.9\n90 90 90\nSr\n0.00 0.00 0.00\nTi\n0.50 0.50 0.50\nO\n0.50 0.50 0.00",
    "6.0 7.0 8.0\n80 85 95\nMg\n0.10 0.20 0.30\nO\n0.45 0.55 0.65",
]
places = st.integers(0, len(TEXTS) - 1)
preferences = st.builds(
    lambda prompt, chosen, rejected, reference: Preference(
        prompt=prompt,
        chosen=TEXTS[chosen],
        rejected=TEXTS[rejected],
        reference=reference,
        ids=("a", "b"),
    ),
    st.sampled_from(PROMPTS),
    places,
    places,
    st.floats(-20, 20),
)


@pytest.fixture(scope="module")
def prior() -> Prior:
    prior = small_prior()
    torch.manual_seed(1)
    with torch.no_grad():  # far from even, so that a mistake shows
        for weight in prior.model.parameters():
            weight.add_(0.2 * torch.randn_like(weight))
    prior.model.eval()
    return prior


def nats(prior: Prior, prompt: str, text: str) -> float:
    """log p(text | prompt) token by token, one text alone."""
    ids, labels = tokenize(prior.tokenizer, prompt, text)
    with torch.no_grad():
        logits = prior.model(input_ids=torch.tensor([ids])).logits[0].double()
    told = [place for place, label in enumerate(labels) if label != IGNORED]
    return sum(logits[place - 1].log_softmax(0)[labels[place]].item() for place in told)


def batch_of(prior: Prior, pairs: list[Preference]) -> dict[str, Any]:
    data = PreferenceDataset(pairs, prior.tokenizer)
    rng: Any = None  # nothing is drawn
    assert all(data.size(k, rng) > 10 for k in range(len(data)))
    batch = PreferenceCollator(prior.tokenizer.pad_token_id)(
        [data.draw(k, rng) for k in range(len(data))]
    )
    assert batch.pop("ids") == ["a"] * len(pairs) + ["b"] * len(pairs)
    return batch


@settings(max_examples=40, deadline=None)
@given(
    pairs=st.lists(preferences, min_size=1, max_size=5),
    beta=st.floats(0.01, 5),
)
def test_the_loss_is_that_of_a_plain_loop(
    prior: Prior, pairs: list[Preference], beta: float
) -> None:
    losses = []
    for pair in pairs:
        chosen = nats(prior, pair.prompt, pair.chosen)
        rejected = nats(prior, pair.prompt, pair.rejected)
        margin = beta * (chosen - rejected - pair.reference)
        losses.append(math.log1p(math.exp(-margin)) if margin > -500 else -margin)
    expected = sum(losses) / len(losses)
    objective = preference_objective(beta=beta)
    found = objective(prior.model, batch_of(prior, pairs)).item()
    assert found == pytest.approx(expected, rel=1e-4, abs=1e-4)


@given(st.floats(-1e4, 1e4), st.floats(-1e4, 1e4), st.floats(1e-3, 10))
def test_the_loss_of_one_pair_is_finite_positive_and_falls_with_its_margin(
    difference: float, reference: float, beta: float
) -> None:
    def loss(value: float) -> float:
        arguments = torch.tensor([value]).double(), torch.tensor([reference]).double()
        return preference_loss(*arguments, beta=beta).item()

    assert 0 <= loss(difference) < math.inf
    assert loss(difference + 1) <= loss(difference)
    assert loss(reference) == pytest.approx(math.log(2))


def test_a_handful_of_pairs_is_learnt() -> None:
    prior = small_prior(seed=2)
    pairs = [(PROMPTS[0], TEXTS[0], TEXTS[1]), (PROMPTS[0], TEXTS[2], TEXTS[3])]

    def scored() -> torch.Tensor:
        prompts = [prompt for prompt, _, _ in pairs] * 2
        texts = [chosen for _, chosen, _ in pairs] + [rejected for _, _, rejected in pairs]
        scores = score_texts(prior, prompts, texts)
        return torch.tensor([score.log_likelihood for score in scores]).reshape(2, -1)

    before = scored()
    told = [
        Preference(prompt=p, chosen=c, rejected=r, reference=float(q), ids=("a", "b"))
        for (p, c, r), q in zip(pairs, before[0] - before[1], strict=True)
    ]
    objective = preference_objective(beta=0.1)
    optimizer = torch.optim.Adam(prior.model.parameters(), lr=3e-3)
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        loss = objective(prior.model, batch_of(prior, told))
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    chosen, rejected = scored() - before
    assert losses[0] == pytest.approx(math.log(2), abs=1e-4)
    assert losses[-1] < losses[0] / 2
    assert (chosen - rejected > 20).all()
    assert (chosen > 0).all()


def test_texts_are_drawn_from_the_model_without_constraint_and_alike_for_one_seed() -> None:
    prior = Prior.from_pretrained(BUNDLED_PRIOR)
    requests: list[dict[str, Any]] = [{}, {"formula": "NaCl"}] * 6
    drawn = draw_texts(prior, requests, seed=1)
    assert 8 <= len(drawn) <= 12  # a text may be cut off
    assert {prompt for prompt, _ in drawn} == set(PROMPTS)
    assert draw_texts(prior, requests, seed=1) == drawn != draw_texts(prior, requests, seed=2)


def test_no_pair_is_refused() -> None:
    with pytest.raises(PriorError, match="there is no pair of texts"):
        PreferenceDataset([], small_prior().tokenizer)
