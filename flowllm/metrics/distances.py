"""Distances between the distributions of properties of generated and of reference crystals.

Source: Xie et al. 2021 (arXiv 2110.06197), section 5.2: the earth mover's distance of density and
number of elements. Volume per atom and space group are added here.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import spglib
from numpy.typing import NDArray
from pymatgen.core import Structure
from scipy.stats import wasserstein_distance

from flowllm.evaluation.feature_store import VectorStore, structure_key
from flowllm.metrics.intervals import Estimate, bootstrap
from flowllm.metrics.symmetry import spacegroup_number

SYMPREC = 0.1  # Angstrom, of the space groups that are compared
PROPERTIES = ("density", "num_elements", "volume_per_atom", "spacegroup")
_RESAMPLES = 200


def properties(structures: Sequence[Structure]) -> dict[str, NDArray[np.float64]]:
    """What is compared of M crystals: property -> (M,).

    density in g/cm^3, number of elements, volume per atom in Angstrom^3, space group number at a
    tolerance of 0.1 Angstrom (NaN where spglib finds none), which is kept on the disk.
    """
    what = f"spacegroup {SYMPREC} {spglib.__version__}"
    keys = [structure_key(what, structure) for structure in structures]
    with VectorStore(1) as store:
        known = store.load(keys)
        new = {
            key: np.array([spacegroup_number(structure, symprec=SYMPREC) or np.nan])
            for key, structure in zip(keys, structures, strict=True)
            if key not in known
        }
        store.save(new)
    known |= new
    return {
        "density": np.array([float(s.density) for s in structures]),
        "num_elements": np.array([float(len(s.composition)) for s in structures]),
        "volume_per_atom": np.array([s.volume / len(s) for s in structures]),
        "spacegroup": np.array([known[key][0] for key in keys]),
    }


def property_distance(
    samples: NDArray[np.float64], reference: NDArray[np.float64], *, seed: int = 0
) -> Estimate:
    """Wasserstein-1 distance of two samples of one property, in its unit.

    W(P, Q) = integral |F_P(x) - F_Q(x)| dx. The numbers of space groups have an order but no
    scale: their distance says whether two sets differ, not in what.

    The interval is a bootstrap over the samples, the reference taken as given. A distance cannot
    fall below zero, so that of a small sample lies too high, and so does the interval.

    Args:
        samples: (N,); NaN is left out.
        reference: (M,); NaN is left out.
        seed: of the bootstrap.
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
