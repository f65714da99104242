"""Coverage of a reference set, diversity, and novelty by distances between fingerprints.

Source: Xie et al. 2021 (arXiv 2110.06197), appendix G, for coverage; Gruver et al. 2024 (arXiv
2402.04379) for diversity and novelty from the same features.
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
_BLOCK = 512  # rows of the distance matrix in memory at a time


@dataclass(frozen=True, kw_only=True)
class NearestDistances:
    """Distances from each crystal of one set to the nearest crystal of another.

    The nearest in structure and the nearest in composition may be different crystals.

    Attributes:
        sample_structure: (N,), structure distance of each sample to the reference set; NaN for a
            sample without a fingerprint, infinite if the reference set has none.
        sample_composition: (N,), the same for the composition.
        reference_structure: (M,), structure distance of each usable reference crystal to the
            samples; infinite if the samples have no fingerprint.
        reference_composition: (M,), the same for the composition.
    """

    sample_structure: NDArray[np.float64]
    sample_composition: NDArray[np.float64]
    reference_structure: NDArray[np.float64]
    reference_composition: NDArray[np.float64]

    @property
    def usable(self) -> NDArray[np.bool_]:
        """(N,), whether a sample has a fingerprint."""
        return ~np.isnan(self.sample_structure)


def nearest_distances(samples: Fingerprints, reference: Fingerprints) -> NearestDistances:
    """Return the nearest distances in both directions.

    A crystal without a structure fingerprint takes no part on either side.

    Args:
        samples: scaled fingerprints of N crystals.
        reference: scaled fingerprints of M crystals.

    Returns:
        The distances.
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
    return NearestDistances(**found)


def covered(
    structure: NDArray[np.float64],
    composition: NDArray[np.float64],
    *,
    structure_cutoff: float = STRUCTURE_CUTOFF,
    composition_cutoff: float = COMPOSITION_CUTOFF,
) -> NDArray[np.bool_]:
    """Return whether both nearest distances lie within the cut-offs.

    Args:
        structure: (N,), distances in structure; NaN is outside.
        composition: (N,), distances in composition; NaN is outside.
        structure_cutoff: largest distance in structure.
        composition_cutoff: largest distance in composition.

    Returns:
        (N,).
    """
    return (structure <= structure_cutoff) & (composition <= composition_cutoff)


def coverage(
    distances: NearestDistances,
    *,
    num_generated: int | None = None,
    structure_cutoff: float = STRUCTURE_CUTOFF,
    composition_cutoff: float = COMPOSITION_CUTOFF,
) -> dict[str, Estimate]:
    """Return coverage recall and precision, and the mean nearest distances (AMSD, AMCD).

    recall = |{r: min_s d_struct(s, r) <= 0.4 and min_s d_comp(s, r) <= 10}| / M
    precision = |{s: min_r d_struct(s, r) <= 0.4 and min_r d_comp(s, r) <= 10}| / num_generated

    The two minima are taken independently, as in the published code. The interval of the recall is
    the interval of a share of M reference crystals with the samples fixed.

    Args:
        distances: from `nearest_distances`.
        num_generated: denominator of the precision, the number of requested crystals; None takes
            all samples, those without a fingerprint included.
        structure_cutoff: largest distance in structure; the default is Xie et al.'s for MP-20.
        composition_cutoff: largest distance in composition; the default is Xie et al.'s.

    Returns:
        `coverage_recall`, `coverage_precision`, and `amsd_recall`, `amsd_precision` (structure),
        `amcd_recall`, `amcd_precision` (composition).
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
    distances: NearestDistances,
    *,
    structure_cutoff: float = NOVELTY_STRUCTURE_CUTOFF,
    composition_cutoff: float = NOVELTY_COMPOSITION_CUTOFF,
) -> dict[str, Estimate]:
    """Return the share of samples farther than a cut-off from every crystal of a training set.

    structural: min_r d_struct > 0.1; compositional: min_r d_comp > 2.

    Args:
        distances: from `nearest_distances` to the training set; samples without a fingerprint are
            left out.
        structure_cutoff: cut-off in structure.
        composition_cutoff: cut-off in composition.

    Returns:
        `structural_feature_novelty`, `compositional_feature_novelty`, and `feature_novelty` for
        samples that are novel in either.
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
    """Return the mean distance over all pairs of samples.

    Args:
        samples: scaled fingerprints; those without a structure fingerprint are left out.

    Returns:
        `structural_diversity` and `compositional_diversity`.
    """
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
    """Return distances of each row to the nearest of the other; infinite if that is empty."""
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
