"""Scaling of composition features before distances between compositions are taken."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from flowllm.metrics.fingerprints import Fingerprints


@dataclass(frozen=True, kw_only=True)
class CompositionScale:
    """Mean and standard deviation of each magpie feature over a set of crystals.

    Published cut-offs and distances belong to the constants of Xie et al. 2021 (CDVAE). These are
    not the statistics of MP-20, whose standard deviations differ from them by up to a third.
    `flowllm.evaluation.features.read_scale` reads constants from a file.

    Attributes:
        means: (132,).
        stds: (132,), positive.
        source: name of the set or file, for people.
    """

    means: NDArray[np.float64]
    stds: NDArray[np.float64]
    source: str

    @classmethod
    def over(cls, prints: Fingerprints, name: str) -> CompositionScale:
        """Return the scale of a set of crystals.

        A feature without variation in the set keeps its unit. An unknown value (NaN) is left out
        of the mean of its feature.

        Args:
            prints: unscaled fingerprints of N crystals.
            name: name of the set.

        Returns:
            The scale.
        """
        known = ~np.isnan(prints.composition)  # (N, 132)
        count = np.maximum(known.sum(axis=0), 1)
        means = np.where(known, prints.composition, 0.0).sum(axis=0) / count
        squares = np.where(known, prints.composition - means, 0.0) ** 2
        stds = np.sqrt(squares.sum(axis=0) / count)
        # The deviation of a constant column is rounding error and must not become a divisor.
        varies = stds > 1e-9 * np.maximum(np.abs(means), 1.0)
        return cls(
            means=means,
            stds=np.where(varies, stds, 1.0),
            source=f"mean and standard deviation over {name}",
        )

    def __call__(self, prints: Fingerprints) -> Fingerprints:
        """Return fingerprints with the composition features scaled to (x - mean) / std.

        Args:
            prints: unscaled fingerprints.

        Returns:
            New fingerprints; an unknown value becomes 0, the mean.
        """
        scaled = np.nan_to_num((prints.composition - self.means) / self.stds, nan=0.0)
        return Fingerprints(structure=prints.structure, composition=scaled)
