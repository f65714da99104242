"""Distances between the distributions of properties of generated and reference crystals.

Source: Xie et al. 2021 (arXiv 2110.06197), section 5.2: the earth mover's distance of density and
number of elements. Volume per atom is added here. For space groups see `flowllm.metrics.symmetry`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from pymatgen.core import Structure
from scipy.stats import wasserstein_distance

from flowllm.metrics.intervals import Estimate, bootstrap

PROPERTIES = ("density", "num_elements", "volume_per_atom")
_RESAMPLES = 200


def properties(structures: Sequence[Structure]) -> dict[str, NDArray[np.float64]]:
    """Return the compared properties of M crystals.

    Args:
        structures: M ordered crystals.

    Returns:
        Property -> (M,): `density` in g/cm^3, `num_elements`, `volume_per_atom` in Angstrom^3.
    """
    return {
        "density": np.array([float(s.density) for s in structures]),
        "num_elements": np.array([float(len(s.composition)) for s in structures]),
        "volume_per_atom": np.array([s.volume / len(s) for s in structures]),
    }


def property_distance(
    samples: NDArray[np.float64], reference: NDArray[np.float64], *, seed: int = 0
) -> Estimate:
    """Return the Wasserstein-1 distance between two samples of one property, in its unit.

    W(P, Q) = integral |F_P(x) - F_Q(x)| dx.

    The interval is a bootstrap over the samples with the reference fixed. A distance cannot be
    negative, so the distance of a small sample is biased upwards, and so is its interval.

    Args:
        samples: (N,).
        reference: (M,).
        seed: seed of the bootstrap.

    Returns:
        The distance with its interval; without a value if either side is empty.
    """
    if not (len(samples) and len(reference)):
        return Estimate(value=None, count=len(samples))
    return bootstrap(
        samples,
        lambda drawn: float(wasserstein_distance(drawn, reference)),
        seed=seed,
        resamples=_RESAMPLES,
    )
