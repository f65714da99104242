"""Scores of candidates, and the probabilities that they correspond to."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowllm.prediction.scores import Weights, fitted

shares = st.floats(0, 1)
numbers = st.floats(-5, 5)


@given(shares, shares, shares)
def test_the_log_probability_is_that_of_the_mixture(share: float, one: float, other: float) -> None:
    weights = Weights(template_share=share, energy_width=0.01)
    total = share * one + (1 - share) * other
    found = weights.log_probability(one, other)
    assert found == (math.log(total) if total > 0 else -math.inf)


def test_a_single_source_counts_alone() -> None:
    weights = Weights(template_share=0.7, energy_width=0.01)
    assert weights.log_probability(0.5, None) == math.log(0.5)
    assert weights.log_probability(None, 0.25) == math.log(0.25)


@given(st.lists(st.tuples(numbers, numbers), min_size=1, max_size=8), st.floats(0.005, 1))
def test_the_probability_weighs_sources_and_energies(
    rows: list[tuple[float, float]], width: float
) -> None:
    weights = Weights(template_share=0.5, energy_width=width)
    logs, energies = np.array(rows).T
    chances = weights.probabilities(weights.scores(logs, energies))
    assert chances.sum() == pytest.approx(1)
    expected = logs - energies / width
    for i in range(len(rows)):
        for j in range(len(rows)):
            if min(chances[i], chances[j]) > 1e-100:
                ratio = math.log(chances[i] / chances[j])
                assert ratio == pytest.approx(expected[i] - expected[j], abs=1e-6)
    order = np.argsort(weights.scores(logs, energies), kind="stable")
    assert np.all(np.diff(chances[order]) <= 1e-12)


@given(st.lists(numbers, min_size=2, max_size=8))
def test_without_energies_the_probability_is_that_of_the_sources(logs: list[float]) -> None:
    weights = Weights(template_share=0.5, energy_width=0.02)
    chances = weights.probabilities(weights.scores(logs))
    np.testing.assert_allclose(chances, np.exp(logs) / np.exp(logs).sum(), atol=1e-9)


@given(st.lists(numbers, min_size=2, max_size=8), st.floats(-10, 10))
def test_a_common_energy_changes_no_probability(energies: list[float], shift: float) -> None:
    weights = Weights(template_share=0.5, energy_width=0.1)
    logs = np.zeros(len(energies))
    one = weights.probabilities(weights.scores(logs, energies))
    other = weights.probabilities(weights.scores(logs, np.array(energies) + shift))
    np.testing.assert_allclose(one, other, atol=1e-9)


def test_the_fitted_weights_use_both_sources() -> None:
    assert 0 < fitted().template_share < 1
    assert 0 < fitted().energy_width < 0.5
