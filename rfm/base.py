"""The base distribution of the flow, drawn alike in training and in sampling.

`llm`      the prior's crystal, plus normal noise of width `position_sigma` wrapped onto the torus
           and of width `cell_sigma` on the standardised cell vector. Both 0 is the FlowLLM of
           Sriram et al. 2024 (arXiv 2410.23405).
`file`     the same from crystals of any other origin, which are not the prior's samples.
`uniform`  the base of FlowMM (Miller et al. 2024, arXiv 2406.04713): uniform positions, log-normal
           lengths fitted to the targets, angles uniform in [60, 120] degrees. No prior is used.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from rfm.errors import RefinerError
from rfm.lattice import StandardChart, metric_from_parameters, metric_to_matrix

_KINDS = ("llm", "uniform", "file")


@dataclass(kw_only=True)
class BaseConfig:
    """Which base the flow starts from.

    kind: `llm`, `uniform` or `file`, see the module docstring.
    position_sigma: width of the noise on fractional coordinates, in periods (not of `uniform`).
    cell_sigma: width of the noise on the standardised cell vector (not of `uniform`).
    """

    kind: str = "llm"
    position_sigma: float = 0.0
    cell_sigma: float = 0.0

    def __post_init__(self) -> None:
        if self.kind == "pairs":  # the name of `llm` in folders that were saved before
            self.kind = "llm"
        if self.kind not in _KINDS:
            raise RefinerError(f"unknown base {self.kind!r}; choose one of {', '.join(_KINDS)}")
        for name in ("position_sigma", "cell_sigma"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise RefinerError(f"{name} is {getattr(self, name)}; it must be 0 or positive")

    @property
    def from_crystals(self) -> bool:
        """Whether the flow starts from given crystals, and not from noise alone."""
        return self.kind != "uniform"


@dataclass(kw_only=True)
class Statistics:
    """What is learned from the pairs before training: six or three plain numbers each.

    mean, std: of the chart vectors of all base and target cells.
    log_length_mean, log_length_std: of the logarithms of a, b, c (Angstrom) of the target cells.
    """

    mean: list[float]
    std: list[float]
    log_length_mean: list[float]
    log_length_std: list[float]

    def __post_init__(self) -> None:
        for name, count in (("mean", 6), ("std", 6), ("log_length_mean", 3), ("log_length_std", 3)):
            values = getattr(self, name)
            if len(values) != count or not np.isfinite(values).all():
                raise RefinerError(f"statistics: {name} must be {count} finite numbers: {values}")
        if min(self.std) <= 0:
            raise RefinerError(f"statistics: std must be positive: {self.std}")

    def standard_chart(self, name: str) -> StandardChart:
        """The chart called `name`, standardised by these numbers."""
        return StandardChart(name, torch.tensor(self.mean), torch.tensor(self.std))


def noisy_base(
    frac_coords: np.ndarray, lattice: np.ndarray, base: BaseConfig, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """A given crystal with fresh noise, which does not shift it as a whole.

    Args:
        frac_coords: (n, 3) coordinates of the given crystal.
        lattice: (6,) its standardised cell vector.
        base: the widths of the noise.
        rng: where the noise comes from.

    Returns:
        float32 coordinates (n, 3) in [0, 1) and cell vector (6,).
    """
    noise = base.position_sigma * rng.standard_normal(frac_coords.shape)
    # A shift of the whole crystal means nothing, yet it could push an atom's displacement past half
    # a period, to the other side of the cell.
    coords = frac_coords + noise - noise.mean(0)
    vector = lattice + base.cell_sigma * rng.standard_normal(6)
    return _wrap(coords), vector.astype(np.float32)


def uniform_base(
    num_atoms: int, statistics: Statistics, cell: StandardChart, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """A crystal of FlowMM's base: float32 coordinates (num_atoms, 3) and cell vector (6,)."""
    coords = rng.random((num_atoms, 3))
    lengths = np.exp(rng.normal(statistics.log_length_mean, statistics.log_length_std))
    angles = rng.uniform(60.0, 120.0, 3)
    metric = metric_from_parameters(torch.from_numpy(lengths[None]), torch.from_numpy(angles[None]))
    vector = cell.encode(metric_to_matrix(metric))[0].numpy()
    return _wrap(coords), vector.astype(np.float32)


def _wrap(coords: np.ndarray) -> np.ndarray:
    wrapped = (coords - np.floor(coords)).astype(np.float32)
    wrapped[wrapped >= 1.0] = 0.0  # rounding up to one names the point zero
    return wrapped
