"""How well generated crystals cover a reference set, and how far they are from a training set.

Source: Xie et al. 2021 (arXiv 2110.06197), appendix G for coverage; diversity and novelty from the
same features as Gruver et al. 2024 (arXiv 2402.04379) report them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.distance import cdist, pdist

from flowllm.metrics.fingerprints import Fingerprints
from flowllm.metrics.intervals import Estimate, rate

STRUCTURE_CUTOFF = 0.4  # for MP-20
COMPOSITION_CUTOFF = 10.0
NOVELTY_STRUCTURE_CUTOFF = 0.1
NOVELTY_COMPOSITION_CUTOFF = 2.0
_BLOCK = 512  # rows of a distance matrix at a time


@dataclass(frozen=True, kw_only=True)
class Nearest:
    """Distances between a set of samples and a reference set, each to the nearest of the other.

    The nearest in structure and the nearest in composition may be different crystals.

    Attributes:
        sample_structure, sample_composition: (N,), of each sample to the reference set; NaN for a
            sample without a fingerprint, infinite where the reference set has none.
        reference_structure, reference_composition: (M,), of each usable reference crystal to the
            samples.
    """

    sample_structure: NDArray[np.float64]
    sample_composition: NDArray[np.float64]
    reference_structure: NDArray[np.float64]
    reference_composition: NDArray[np.float64]

    @property
    def usable(self) -> NDArray[np.bool_]:
        """(N,), which samples have a fingerprint."""
        return ~np.isnan(self.sample_structure)


def nearest(samples: Fingerprints, reference: Fingerprints) -> Nearest:
    """Nearest distances in both directions between N samples and M reference crystals.

    A crystal without a structure fingerprint takes no part, on either side.
    """
    usable = samples.usable
    reference = reference[reference.usable]
    own = samples[usable]
    found = {}
    for name in ("structure", "composition"):
        to_reference = np.full(len(samples), np.nan)
        to_reference[usable], to_samples = _both_ways(getattr(own, name), getattr(reference, name))
        found[f"sample_{name}"] = to_reference
        found[f"reference_{name}"] = to_samples
    return Nearest(**found)


def covered(
    structure: NDArray[np.float64],
    composition: NDArray[np.float64],
    *,
    structure_cutoff: float = STRUCTURE_CUTOFF,
    composition_cutoff: float = COMPOSITION_CUTOFF,
) -> NDArray[np.bool_]:
    """(N,), whether both nearest distances lie within the cut-offs (never where one is NaN)."""
    return (structure <= structure_cutoff) & (composition <= composition_cutoff)


def coverage(
    distances: Nearest,
    *,
    num_generated: int | None = None,
    structure_cutoff: float = STRUCTURE_CUTOFF,
    composition_cutoff: float = COMPOSITION_CUTOFF,
) -> dict[str, Estimate]:
    """Coverage recall and precision, and the mean nearest distances (AMSD, AMCD).

    recall = |{r: min_s d_struct(s, r) <= 0.4 and min_s d_comp(s, r) <= 10}| / M
    precision = |{s: min_r d_struct(s, r) <= 0.4 and min_r d_comp(s, r) <= 10}| / num_generated

    The two minima are taken each for itself, as in the published code. The interval of the recall
    is that of a share of M reference crystals, the samples taken as given.

    Args:
        distances: from `nearest`.
        num_generated: the denominator of the precision; default: all samples, those without a
            fingerprint included. Give the number asked for where some failed before.
        structure_cutoff, composition_cutoff: those of Xie et al. 2021 for MP-20.
    """
    cutoffs = {"structure_cutoff": structure_cutoff, "composition_cutoff": composition_cutoff}
    usable = distances.usable
    of_samples = covered(distances.sample_structure, distances.sample_composition, **cutoffs)
    of_reference = covered(
        distances.reference_structure, distances.reference_composition, **cutoffs
    )
    count = len(usable) if num_generated is None else num_generated
    return {
        "coverage_recall": rate(int(of_reference.sum()), len(of_reference)),
        "coverage_precision": rate(int(of_samples.sum()), count),
        "amsd_recall": _mean(distances.reference_structure),
        "amsd_precision": _mean(distances.sample_structure[usable]),
        "amcd_recall": _mean(distances.reference_composition),
        "amcd_precision": _mean(distances.sample_composition[usable]),
    }


def feature_novelty(
    distances: Nearest,
    *,
    structure_cutoff: float = NOVELTY_STRUCTURE_CUTOFF,
    composition_cutoff: float = NOVELTY_COMPOSITION_CUTOFF,
) -> dict[str, Estimate]:
    """Share of samples that are farther than a cut-off from every crystal of a training set.

    structural: min_r d_struct > 0.1; compositional: min_r d_comp > 2; `feature_novelty`: either.
    Samples without a fingerprint are left out.
    """
    usable = distances.usable
    structural = distances.sample_structure[usable] > structure_cutoff
    compositional = distances.sample_composition[usable] > composition_cutoff
    count = int(usable.sum())
    return {
        "structural_feature_novelty": rate(int(structural.sum()), count),
        "compositional_feature_novelty": rate(int(compositional.sum()), count),
        "feature_novelty": rate(int((structural | compositional).sum()), count),
    }


def diversity(samples: Fingerprints) -> dict[str, Estimate]:
    """Mean distance over all pairs of samples, in structure and in composition."""
    samples = samples[samples.usable]
    values = {
        "structural_diversity": samples.structure,
        "compositional_diversity": samples.composition,
    }
    return {
        name: Estimate(
            value=float(pdist(vectors).mean()) if len(vectors) > 1 else None, count=len(vectors)
        )
        for name, vectors in values.items()
    }


def _both_ways(
    one: NDArray[np.float64], other: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Distance of each row to the nearest row of the other; infinite where the other is empty."""
    to_other = np.full(len(one), np.inf)
    to_one = np.full(len(other), np.inf)
    if len(one) and len(other):
        for start in range(0, len(one), _BLOCK):
            block = cdist(one[start : start + _BLOCK], other)  # (B, M)
            to_other[start : start + _BLOCK] = block.min(axis=1)
            np.minimum(to_one, block.min(axis=0), out=to_one)
    return to_other, to_one


def _mean(values: NDArray[np.float64]) -> Estimate:
    values = values[np.isfinite(values)]
    return Estimate(value=float(values.mean()) if len(values) else None, count=len(values))
