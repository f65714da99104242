from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from flowllm.errors import UserError
from flowllm.metrics.intervals import bootstrap, rate, wilson


@given(st.integers(1, 5000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_is_scipys(case):
    successes, count = case
    low, high = wilson(successes, count)
    theirs = binomtest(successes, count).proportion_ci(method="wilson")
    assert (low, high) == pytest.approx((theirs.low, theirs.high), abs=1e-12)
    assert 0 <= low <= successes / count <= high <= 1


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
