"""Distances between the distributions of properties of generated and reference crystals.

Source: Xie et al. 2021 (arXiv 2110.06197), section 5.2: the earth mover's distance of density and
number of elements. Volume per atom and space group are added here.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from pymatgen.core import Structure
from scipy.stats import wasserstein_distance

from flowllm.metrics.intervals import Estimate, bootstrap
from flowllm.metrics.symmetry import spacegroup_number

SYMPREC = 0.1  # Angstrom, for the space groups that are compared
PROPERTIES = ("density", "num_elements", "volume_per_atom", "spacegroup")
_RESAMPLES = 200


def properties(
    structures: Sequence[Structure], *, spacegroups: NDArray[np.float64] | None = None
) -> dict[str, NDArray[np.float64]]:
    """Return the compared properties of M crystals.

    Args:
        structures: M ordered crystals.
        spacegroups: (M,), results of `comparable_spacegroup` where they are known already; None
            computes them.

    Returns:
        Property -> (M,): `density` in g/cm^3, `num_elements`, `volume_per_atom` in Angstrom^3,
        `spacegroup`.
    """
    if spacegroups is None:
        spacegroups = np.array([comparable_spacegroup(s) for s in structures], dtype=np.float64)
    return {
        "density": np.array([float(s.density) for s in structures]),
        "num_elements": np.array([float(len(s.composition)) for s in structures]),
        "volume_per_atom": np.array([s.volume / len(s) for s in structures]),
        "spacegroup": spacegroups,
    }


def comparable_spacegroup(structure: Structure) -> float:
    """Return the space group number at a tolerance of 0.1 Angstrom.

    Args:
        structure: an ordered crystal.

    Returns:
        1 to 230; NaN if spglib finds no space group.
    """
    return float(spacegroup_number(structure, symprec=SYMPREC) or np.nan)


def property_distance(
    samples: NDArray[np.float64], reference: NDArray[np.float64], *, seed: int = 0
) -> Estimate:
    """Return the Wasserstein-1 distance between two samples of one property, in its unit.

    W(P, Q) = integral |F_P(x) - F_Q(x)| dx. Space group numbers have an order but no scale: their
    distance shows that two sets differ, but not in which respect.

    The interval is a bootstrap over the samples with the reference fixed. A distance cannot be
    negative, so the distance of a small sample is biased upwards, and so is its interval.

    Args:
        samples: (N,); NaN is left out.
        reference: (M,); NaN is left out.
        seed: seed of the bootstrap.

    Returns:
        The distance with its interval; without a value if either side is empty.
    """
    samples = samples[~np.isnan(samples)]
    reference = reference[~np.isnan(reference)]
    if not (len(samples) and len(reference)):
        return Estimate(value=None, count=len(samples))
    return bootstrap(
        samples,
        lambda drawn: float(wasserstein_distance(drawn, reference)),
        seed=seed,
        resamples=_RESAMPLES,
    )
