from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from flowllm.errors import UserError
from flowllm.metrics.intervals import bootstrap, rate, wilson


@given(st.integers(1, 5000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_equals_scipy_and_ends_within_0_and_1(case):
    successes, count = case
    low, high = wilson(successes, count)
    theirs = binomtest(successes, count).proportion_ci(method="wilson")
    assert (low, high) == pytest.approx((theirs.low, theirs.high), abs=1e-12)
    assert 0 <= low <= successes / count <= high <= 1


@pytest.mark.parametrize(("successes", "count"), [(0, 5), (3, 10), (81, 263), (29, 29)])
def test_wilson_equals_its_formula(successes, count):
    z, p = 1.959963984540054, successes / count  # quantile of (1 + 0.95) / 2
    centre = p + z * z / (2 * count)
    spread = z * (p * (1 - p) / count + z * z / (4 * count * count)) ** 0.5
    expected = ((centre - spread) / (1 + z * z / count), (centre + spread) / (1 + z * z / count))
    assert wilson(successes, count) == pytest.approx(expected, abs=1e-12)
    assert wilson(0, 5)[0] == 0 and wilson(29, 29)[1] == 1


def test_a_share_of_nothing_has_no_value():
    assert rate(0, 0).value is None
    with pytest.raises(UserError, match="3 of 2"):
        wilson(3, 2)


def test_bootstrap_of_a_mean_is_about_two_standard_errors():
    values = np.random.default_rng(0).normal(5, 2, size=400)
    estimate = bootstrap(values, np.mean, seed=1)
    half = 1.96 * values.std() / 20
    assert estimate.value == values.mean()
    assert estimate.low == pytest.approx(values.mean() - half, abs=0.05)
    assert estimate.high == pytest.approx(values.mean() + half, abs=0.05)
    assert estimate == bootstrap(values, np.mean, seed=1)
    assert bootstrap(values[:1], np.mean).low is None
    assert bootstrap([], np.mean).value is None


@pytest.mark.parametrize("statistic", [np.mean, np.median, lambda drawn: float(drawn.std())])
def test_a_bootstrap_interval_holds_quantiles_of_resampled_values(statistic):
    values = np.random.default_rng(3).normal(5, 2, size=401)
    generator = np.random.default_rng(7)
    drawn = [statistic(values[generator.integers(0, 401, 401)]) for _ in range(500)]
    estimate = bootstrap(values, statistic, seed=7)
    assert (estimate.low, estimate.high) == pytest.approx(tuple(np.quantile(drawn, [0.025, 0.975])))
