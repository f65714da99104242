"""Intervals for what is measured on a finite number of crystals."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm

from flowllm.errors import UserError

CONFIDENCE = 0.95
_RESAMPLES = 500


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A measured number and how far it can be trusted.

    Attributes:
        value: the number; None where there was nothing to measure it on.
        low, high: ends of its 95% interval; None where there is none.
        count: crystals (or targets) that it was measured on.
        successes: for a rate, how many of `count`.
    """

    value: float | None
    low: float | None = None
    high: float | None = None
    count: int
    successes: int | None = None


def rate(successes: int, count: int) -> Estimate:
    """A share with its Wilson interval; without a value for a share of nothing."""
    if count == 0:
        return Estimate(value=None, count=0, successes=0)
    low, high = wilson(successes, count)
    return Estimate(
        value=successes / count, low=low, high=high, count=count, successes=int(successes)
    )


def wilson(successes: int, count: int, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Score interval of a binomial share p = k / n.

    (p + z^2/2n -+ z sqrt(p(1-p)/n + z^2/4n^2)) / (1 + z^2/n), z the normal quantile of
    (1 + confidence) / 2. Never empty and never outside [0, 1], also for k = 0 and k = n.

    Source: Wilson 1927, J. Am. Stat. Assoc. 22, 209.

    Raises:
        UserError: no trials, or not 0 <= successes <= count.
    """
    if not 0 <= successes <= count or count < 1:
        raise UserError(f"{successes} of {count} is no share; give 0 <= successes <= count >= 1")
    z = float(norm.ppf((1 + confidence) / 2))
    share = successes / count
    centre = share + z * z / (2 * count)
    spread = z * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    scale = 1 + z * z / count
    # Rounding must not put the ends of an exact 0 or 1 beside it.
    low = 0.0 if successes == 0 else (centre - spread) / scale
    high = 1.0 if successes == count else (centre + spread) / scale
    return low, high


def bootstrap(
    values: Sequence[float] | NDArray[Any],
    statistic: Callable[[NDArray[Any]], float],
    *,
    seed: int = 0,
    confidence: float = CONFIDENCE,
    resamples: int = _RESAMPLES,
) -> Estimate:
    """A statistic of `values` (N, ...) with its percentile bootstrap interval.

    The ends are quantiles of the statistic over `resamples` draws of N values with replacement,
    so they say how another sample of this size could have come out.

    Source: Efron 1979, Ann. Statist. 7, 1.
    """
    values = np.asarray(values)
    if len(values) == 0:
        return Estimate(value=None, count=0)
    value = float(statistic(values))
    if len(values) == 1:
        return Estimate(value=value, count=1)
    generator = np.random.default_rng(seed)
    drawn = [
        statistic(values[generator.integers(0, len(values), len(values))]) for _ in range(resamples)
    ]
    tail = (1 - confidence) / 2
    low, high = np.quantile(drawn, [tail, 1 - tail])
    return Estimate(value=value, low=float(low), high=float(high), count=len(values))
