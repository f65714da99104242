"""The scale on which distances between compositions are measured."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flowllm.errors import UserError
from flowllm.metrics.fingerprints import NUM_COMPOSITION, Fingerprints


@dataclass(frozen=True, kw_only=True)
class CompositionScale:
    """Mean and standard deviation of each magpie feature over some set of crystals.

    Published cut-offs and distances belong to the constants of Xie et al. 2021 (CDVAE), which are
    the statistics of no set at hand: those of MP-20 have standard deviations that differ by up to
    a third. `read_scale` takes them from a file.

    Attributes:
        means: (132,).
        stds: (132,), positive.
        source: what they are of, for people.
    """

    means: NDArray[np.float64]
    stds: NDArray[np.float64]
    source: str

    @classmethod
    def over(cls, prints: Fingerprints, name: str) -> CompositionScale:
        """That of a set of crystals; features that do not vary in it keep their own unit.

        An element without a value for a feature is left out of that feature's mean.
        """
        known = ~np.isnan(prints.composition)  # (N, 132)
        count = np.maximum(known.sum(axis=0), 1)
        means = np.where(known, prints.composition, 0.0).sum(axis=0) / count
        squares = np.where(known, prints.composition - means, 0.0) ** 2
        stds = np.sqrt(squares.sum(axis=0) / count)
        # A constant column has a deviation of rounding errors, by which nothing may be divided.
        varies = stds > 1e-9 * np.maximum(np.abs(means), 1.0)
        return cls(
            means=means,
            stds=np.where(varies, stds, 1.0),
            source=f"mean and standard deviation over {name}",
        )

    def __call__(self, prints: Fingerprints) -> Fingerprints:
        """Fingerprints with (x - mean) / standard deviation; 0, the mean, for an unknown value."""
        scaled = np.nan_to_num((prints.composition - self.means) / self.stds, nan=0.0)
        return Fingerprints(structure=prints.structure, composition=scaled)


def read_scale(path: str | Path) -> CompositionScale:
    """A scale from a JSON file with `means` and `stds`, 132 numbers each in matminer's order.

    Raises:
        UserError: no such file, or another content.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such file; check the path")
    try:
        content = json.loads(path.read_bytes())
        means, stds = (_numbers(content[name]) for name in ("means", "stds"))
    except (ValueError, KeyError, TypeError):
        raise UserError(
            f"{path} is no composition scale; give a JSON object with means and stds, "
            f"{NUM_COMPOSITION} numbers each"
        ) from None
    if not (stds > 0).all():
        raise UserError(f"{path}: a standard deviation is not above 0; mend the file")
    return CompositionScale(means=means, stds=stds, source=path.name)


def _numbers(values: Any) -> NDArray[np.float64]:
    numbers = np.array(values, dtype=np.float64)
    if numbers.shape != (NUM_COMPOSITION,) or not np.isfinite(numbers).all():
        raise ValueError
    return numbers
