"""Crystal structure prediction: how often and how closely target crystals are found.

Distances are pymatgen's `StructureMatcher.get_rms_dist`: the root mean square displacement of
matched sites in units of (volume / atoms)^(1/3).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from pymatgen.core import Structure
from pymatgen.core.structure_matcher import StructureMatcher

from flowllm.crystals.crystal import UNREADABLE, ignore_missing_electronegativity
from flowllm.crystals.lattices import comparable, unskewed
from flowllm.metrics.intervals import Estimate, bootstrap, rate
from flowllm.metrics.uniqueness import Tolerances

CSP_TOLERANCES = Tolerances(ltol=0.3, stol=0.5, angle_tol=10)


@ignore_missing_electronegativity()
def rms_distance(
    one: Structure,
    other: Structure,
    *,
    tolerances: Tolerances = CSP_TOLERANCES,
) -> float | None:
    """Return the normalised root mean square displacement between two crystals.

    Args:
        one: an ordered crystal.
        other: an ordered crystal.
        tolerances: tolerances of the match.

    Returns:
        The displacement in units of (V/N)^(1/3); None if the crystals do not match.
    """
    if one.composition.reduced_formula != other.composition.reduced_formula:
        return None
    if not (comparable(one) and comparable(other)):
        return None
    matcher = StructureMatcher(
        ltol=tolerances.ltol, stol=tolerances.stol, angle_tol=tolerances.angle_tol
    )
    try:
        found = matcher.get_rms_dist(unskewed(one), unskewed(other))
    except UNREADABLE:
        return None
    return None if found is None else float(found[0])


def paired_distances(
    targets: Mapping[str, Structure],
    samples: Sequence[tuple[str, Structure | None]],
    *,
    tolerances: Tolerances = CSP_TOLERANCES,
) -> NDArray[np.float64]:
    """Return for each target the smallest distance to the samples made for it.

    Args:
        targets: M crystals by name.
        samples: name of the target and crystal (None: failed), in any order and number.
        tolerances: tolerances of the match.

    Returns:
        (M,), in the order of `targets`; NaN where no sample matches.
    """
    made: dict[str, list[Structure]] = defaultdict(list)
    for name, structure in samples:
        if structure is not None:
            made[name].append(structure)
    return np.array([_closest(target, made[name], tolerances) for name, target in targets.items()])


def everyone_to_reference(
    targets: Sequence[Structure],
    samples: Sequence[Structure],
    *,
    tolerances: Tolerances = CSP_TOLERANCES,
) -> NDArray[np.float64]:
    """Return for each target the smallest distance to any sample of its formula.

    A target with several polymorphs counts as found whichever sample of its formula finds it.

    Source: Martirossyan et al. 2025 (arXiv 2509.12178).

    Args:
        targets: M crystals.
        samples: any number of crystals.
        tolerances: tolerances of the match.

    Returns:
        (M,); NaN where no sample matches.
    """
    by_formula: dict[str, list[Structure]] = defaultdict(list)
    for structure in samples:
        by_formula[structure.composition.reduced_formula].append(structure)
    return np.array(
        [
            _closest(target, by_formula[target.composition.reduced_formula], tolerances)
            for target in targets
        ]
    )


def match_metrics(distances: NDArray[np.float64], *, seed: int = 0) -> dict[str, Estimate]:
    """Return match rate and RMSE.

    match rate = |{t: some sample of t matches}| / M; RMSE = mean over the matched targets of the
    smallest distance (Xie et al. 2021, section 5.1; Jiao et al. 2023, "DiffCSP", for k samples).
    The published code also counts an invalid sample as a miss; here only the match counts.

    Args:
        distances: (M,), from `paired_distances`.
        seed: seed of the bootstrap interval of the mean.

    Returns:
        `match_rate` and `rmse`.
    """
    found = distances[~np.isnan(distances)]
    return {
        "match_rate": rate(len(found), len(distances)),
        "rmse": bootstrap(found, np.mean, seed=seed),
    }


def metre(
    distances: NDArray[np.float64], *, stol: float = CSP_TOLERANCES.stol, seed: int = 0
) -> dict[str, Estimate]:
    """Return METRe and cRMSE.

    METRe = |{t: any sample matches t}| / M; cRMSE = mean over all targets of the smallest distance,
    `stol` for a target without a match. Source: Martirossyan et al. 2025 (arXiv 2509.12178).

    Args:
        distances: (M,), from `everyone_to_reference`.
        stol: distance that a target without a match counts with.
        seed: seed of the bootstrap interval of the mean.

    Returns:
        `metre` and `crmse`.
    """
    found = int((~np.isnan(distances)).sum())
    return {
        "metre": rate(found, len(distances)),
        "crmse": bootstrap(np.nan_to_num(distances, nan=stol), np.mean, seed=seed),
    }


def _closest(target: Structure, samples: Sequence[Structure], tolerances: Tolerances) -> float:
    found = [rms_distance(sample, target, tolerances=tolerances) for sample in samples]
    return min((d for d in found if d is not None), default=float("nan"))
