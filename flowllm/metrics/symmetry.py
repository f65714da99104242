"""Symmetry of a set of crystals: share of P1, space groups and free parameters.

Space groups are found by spglib at a tolerance of 0.1 Angstrom. A crystal whose symmetry search
fails has no group: it is counted, and left out of the other figures. All other crystals take part,
invalid ones included.

Distances to a reference have a `..._reference` beside them: the distance of as many crystals drawn
from the reference itself. It is above 0, since a finite sample never has the exact distribution; a
set within its interval cannot be told from the reference by this distance. The interval of the
distance itself is that of a bootstrap, moved so that the mean of the draws lies at the distance:
drawing from a sample adds noise, which only makes distances larger.

Sources: Kazeev et al. 2025 ("WyFormer", arXiv 2503.02407) for the share of P1, the chi-square
statistic of space groups (there without the crystals whose group the reference lacks) and the
distance of the numbers of free parameters; LeMat-GenBench (arXiv 2512.04562) for the Jensen-Shannon
distance of space groups.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray
from pymatgen.core import Structure
from scipy.spatial.distance import jensenshannon
from scipy.stats import wasserstein_distance

from flowllm.crystals.lattices import comparable, unskewed
from flowllm.metrics.intervals import CONFIDENCE, Estimate, bootstrap, rate
from flowllm.metrics.prototypes import Prototype
from llm_prior.spacegroups import NUM_SPACEGROUPS
from llm_prior.wyckoff import actual_group

_RESAMPLES = 200

Integers = NDArray[np.int64]
Distance = Callable[[Integers, Integers], float]


def spacegroup_number(structure: Structure, *, symprec: float) -> int | None:
    """Return the number of the space group by spglib.

    Args:
        structure: an ordered crystal.
        symprec: tolerance of positions in Angstrom; the angle tolerance is spglib's default.

    Returns:
        International number, 1 to 230; None if spglib finds no space group, or a lattice vector is
        shorter than 1 Angstrom.
    """
    return actual_group(unskewed(structure), symprec) if comparable(structure) else None


def symmetry_metrics(
    samples: Sequence[Prototype | None],
    reference: Sequence[Prototype | None] | None = None,
    *,
    seed: int = 0,
) -> dict[str, Estimate]:
    """Return the symmetry of a set of crystals, and its distance to a reference set.

    Args:
        samples: prototypes of N crystals; None where the symmetry search failed.
        reference: prototypes of M crystals; None leaves the comparison out.
        seed: seed of the bootstrap and of the draws from the reference.

    Returns:
        Estimates by name:

        - `symmetry_found`: share of crystals with a space group;
        - `p1`: share of the crystals with a group that have the group P1;
        - `spacegroup_js_distance`: see `js_distance`;
        - `spacegroup_chi_square`: see `chi_square`;
        - `free_parameters`: mean number of free parameters, see `Prototype`;
        - `free_parameters_distance`: earth mover's distance of their distributions;
        - `NAME_reference`: the same figure of the reference, or for a distance the distance of N
            crystals drawn from the reference, with the interval of 95% of the draws.
    """
    groups, parameters = _arrays(samples)
    metrics = {
        "symmetry_found": rate(len(groups), len(samples)),
        "p1": _p1(groups),
        "free_parameters": bootstrap(parameters, np.mean, seed=seed),
    }
    if reference is None:
        return metrics
    known_groups, known_parameters = _arrays(reference)
    metrics["p1_reference"] = _p1(known_groups)
    metrics["free_parameters_reference"] = bootstrap(known_parameters, np.mean, seed=seed)
    comparisons: list[tuple[str, Distance, Integers, Integers]] = [
        ("spacegroup_js_distance", js_distance, groups, known_groups),
        ("spacegroup_chi_square", chi_square, groups, known_groups),
        ("free_parameters_distance", wasserstein_distance, parameters, known_parameters),
    ]
    for name, distance, own, known in comparisons:
        metrics[name], metrics[f"{name}_reference"] = _compare(distance, own, known, seed)
    return metrics


def js_distance(samples: Integers, reference: Integers) -> float:
    """Return the Jensen-Shannon distance between two distributions of space groups.

    sqrt((KL(P, M) + KL(Q, M)) / 2) with M = (P + Q) / 2 and logarithms to base 2: 0 for equal
    distributions, 1 for groups that never coincide.

    Sources: Endres & Schindelin 2003, IEEE Trans. Inf. Theory 49, 1858; used for space groups by
    LeMat-GenBench (arXiv 2512.04562).

    Args:
        samples: (N,) numbers of space groups, N at least 1.
        reference: (M,), M at least 1.

    Returns:
        The distance, in [0, 1].
    """
    return float(jensenshannon(_shares(samples), _shares(reference), base=2))


def chi_square(samples: Integers, reference: Integers) -> float:
    """Return the chi-square statistic between two distributions of space groups.

    sum_g (p_g - q_g)^2 / q_g over the groups of both, with shares p_g in the samples and q_g in the
    reference. If the reference lacks a group, 1/2 is added to its count of every group, the
    correction of Haldane and Anscombe. For N samples of the reference's own distribution the
    statistic is about (number of groups - 1) / N: compare sets of one size.

    Sources: WyFormer (arXiv 2503.02407), which leaves out samples with other groups and so has no
    zero counts; Anscombe 1956, Biometrika 43, 461 for the correction.

    Args:
        samples: (N,) numbers of space groups, N at least 1.
        reference: (M,) numbers of space groups, M at least 1.

    Returns:
        The statistic, 0 or more.
    """
    own, known = _counts(samples), _counts(reference)
    there = (own > 0) | (known > 0)
    expected = known[there] + (0.5 if (known[there] == 0).any() else 0.0)
    expected /= expected.sum()
    gaps = own[there] / len(samples) - expected
    return float((gaps**2 / expected).sum())


def _arrays(found: Sequence[Prototype | None]) -> tuple[Integers, Integers]:
    known = [p for p in found if p is not None]
    return (
        np.array([p.spacegroup for p in known], dtype=np.int64),
        np.array([p.free_parameters for p in known], dtype=np.int64),
    )


def _p1(groups: Integers) -> Estimate:
    return rate(int((groups == 1).sum()), len(groups))


def _shares(groups: Integers) -> NDArray[np.float64]:
    return _counts(groups) / len(groups)


def _counts(groups: Integers) -> NDArray[np.float64]:
    return np.bincount(groups, minlength=NUM_SPACEGROUPS + 1).astype(np.float64)


def _compare(
    distance: Distance, samples: Integers, reference: Integers, seed: int
) -> tuple[Estimate, Estimate]:
    """Return the distance of the samples, and that of as many crystals of the reference."""
    count = len(samples)
    if not (count and len(reference)):
        return (Estimate(value=None, count=count),) * 2
    value = float(distance(samples, reference))
    rng = np.random.default_rng(seed)
    own, known = (
        np.array([distance(rng.choice(pool, count), reference) for _ in range(_RESAMPLES)])
        for pool in (samples, reference)
    )
    found = Estimate(value=value, count=count)
    if count > 1:
        low, high = _ends(value + own - own.mean())
        found = Estimate(value=value, low=max(low, 0.0), high=high, count=count)
    low, high = _ends(known)
    return found, Estimate(value=float(known.mean()), low=low, high=high, count=count)


def _ends(values: NDArray[np.float64]) -> tuple[float, float]:
    low, high = np.quantile(values, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(low), float(high)
