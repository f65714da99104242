"""Measured numbers with confidence intervals, computed by SciPy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from flowllm.errors import UserError

CONFIDENCE = 0.95
_RESAMPLES = 500
_DRAWN_AT_ONCE = 2_000_000  # values; bounds the memory of a bootstrap


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A measured number with its confidence interval.

    Attributes:
        value: the number; None if there was nothing to measure.
        low, high: ends of its 95% interval; None if it has none.
        count: number of crystals (or targets) measured.
        successes: for a rate, the numerator over `count`.
    """

    value: float | None
    low: float | None = None
    high: float | None = None
    count: int
    successes: int | None = None


def rate(successes: int, count: int) -> Estimate:
    """Return a share with its Wilson interval.

    Args:
        successes: numerator.
        count: denominator.

    Returns:
        The share; without a value if `count` is 0.

    Raises:
        UserError: if not 0 <= successes <= count.
    """
    if count == 0:
        return Estimate(value=None, count=0, successes=0)
    low, high = wilson(successes, count)
    return Estimate(
        value=successes / count, low=low, high=high, count=count, successes=int(successes)
    )


def wilson(successes: int, count: int, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Return the score interval of a binomial share p = k / n.

    (p + z^2/2n -+ z sqrt(p(1-p)/n + z^2/4n^2)) / (1 + z^2/n), where z is the normal quantile of
    (1 + confidence) / 2. It is never empty and lies in [0, 1], also for k = 0 and k = n.

    Source: Wilson 1927, J. Am. Stat. Assoc. 22, 209.

    Args:
        successes: k.
        count: n, at least 1.
        confidence: probability with which intervals of repeated experiments cover p.

    Returns:
        Lower and upper end.

    Raises:
        UserError: if not 0 <= successes <= count, or if count is 0.
    """
    if not 0 <= successes <= count or count < 1:
        raise UserError(f"{successes} of {count} is no share; give 0 <= successes <= count >= 1")
    interval = stats.binomtest(int(successes), int(count)).proportion_ci(
        confidence, method="wilson"
    )
    share = successes / count
    # SciPy rounds: the interval of an exact 0 or 1 must still end there.
    low = min(max(float(interval.low), 0.0), share)
    high = max(min(float(interval.high), 1.0), share)
    return low, high


def bootstrap(
    values: Sequence[float] | NDArray[Any],
    statistic: Callable[..., Any],
    *,
    seed: int = 0,
    confidence: float = CONFIDENCE,
    resamples: int = _RESAMPLES,
) -> Estimate:
    """Return a statistic with its percentile bootstrap interval.

    The ends are quantiles of the statistic over draws of N values with replacement. They show how
    far the result of another sample of this size could lie.

    Source: Efron 1979, Ann. Statist. 7, 1.

    Args:
        values: (N,).
        statistic: function of an array (N,), or of an array and `axis` like `numpy.mean`.
        seed: seed of the draws.
        confidence: probability between the two quantiles.
        resamples: number of draws.

    Returns:
        The statistic; without a value for N = 0, without an interval for N = 1.
    """
    values = np.asarray(values)
    if len(values) == 0:
        return Estimate(value=None, count=0)
    value = float(statistic(values))
    if len(values) == 1:
        return Estimate(value=value, count=1)
    interval = stats.bootstrap(
        (values,),
        statistic,
        n_resamples=resamples,
        batch=max(1, _DRAWN_AT_ONCE // len(values)),
        confidence_level=confidence,
        method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return Estimate(
        value=value, low=float(interval.low), high=float(interval.high), count=len(values)
    )
