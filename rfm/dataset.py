"""Pairs of crystals as training data: a base from a prior or a file, and its target.

With `BaseConfig.symmetry` `keep`, a pair whose target has the space group of its base is made
exactly symmetric, and its noise and the velocities of its atoms are averaged over the group, so
that the whole path is symmetric as in an integration that keeps the group (`rfm.symmetry`). Pairs
whose base has a group that the target does not share are left out: no symmetric path leads from
their base to their target, and such paths, long and different for each pair, made up most of the
loss. A pair whose base has no symmetry is drawn as it is.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from pymatgen.core import Lattice, Structure
from torch import Tensor

from rfm.averages import BlockBatch, average_cells
from rfm.base import noisy_base, uniform_base
from rfm.config import BaseConfig, Statistics
from rfm.errors import RefinerError
from rfm.lattice import StandardChart, chart
from rfm.symmetry import SYMPREC, Symmetry, find_symmetry

logger = logging.getLogger(__name__)

# A cell with a smaller share of the volume a b c counts as flat.
_SMALLEST_VOLUME = 1e-6
# A spread below this means the cells do not vary there; dividing by it would only amplify rounding.
_SMALLEST_STD = 1e-6
# Periods; a way that is not its own average over the group is off by much more.
_SYMMETRIC_WAY = 1e-6


@dataclass(frozen=True, kw_only=True)
class PairedCrystal:
    """A base crystal and the target it should flow to, of n atoms in the same order.

    Attributes:
        id: name of the crystal, kept through batching.
        atomic_numbers: (n,) integers.
        base_frac_coords: (n, 3); None where there is no base crystal.
        base_lattice: (3, 3) rows a, b, c in Angstrom; None where there is no base crystal.
        target_frac_coords: (n, 3), aligned to the base (`rfm.alignment`).
        target_lattice: (3, 3) rows a, b, c in Angstrom, in the basis nearest to the base's.
    """

    id: str
    atomic_numbers: np.ndarray
    base_frac_coords: np.ndarray | None
    base_lattice: np.ndarray | None
    target_frac_coords: np.ndarray
    target_lattice: np.ndarray

    @property
    def base(self) -> Structure | None:
        """The base crystal, or None."""
        if self.base_lattice is None or self.base_frac_coords is None:
            return None
        return self._structure(self.base_lattice, self.base_frac_coords)

    @property
    def target(self) -> Structure:
        """The target crystal, in the base's order of atoms."""
        return self._structure(self.target_lattice, self.target_frac_coords)

    def _structure(self, lattice: np.ndarray, frac_coords: np.ndarray) -> Structure:
        return Structure(Lattice(lattice), self.atomic_numbers.tolist(), frac_coords)

    def symmetric(self) -> tuple[PairedCrystal, Symmetry | None] | None:
        """Return the pair made exactly symmetric, with the symmetry of the base.

        Returns:
            The pair and the symmetry. The pair as it is, and None, if the base has no symmetry.
            None alone if the target does not share the symmetry, or the shortest path between the
            two is not symmetric (for atoms that are half a period apart along some axis).
        """
        base, target = self.base, self.target
        symmetry = None if base is None else find_symmetry(base)
        if symmetry is None or symmetry.trivial:
            return self, None
        if not symmetry.holds(target, SYMPREC):
            return None
        assert base is not None
        base, target = symmetry.symmetrised(base), symmetry.symmetrised(target)
        way = target.frac_coords - base.frac_coords
        way -= np.rint(way)
        if np.abs(symmetry.blocks.average(way) - way).max() > _SYMMETRIC_WAY:
            return None
        pair = replace(
            self,
            base_frac_coords=base.frac_coords,
            base_lattice=base.lattice.matrix,
            target_frac_coords=target.frac_coords,
            target_lattice=target.lattice.matrix,
        )
        return pair, symmetry


class PairDataset:
    """Draws of base, target and time from a list of pairs.

    The constructor turns all cells into standardised chart vectors, once. A draw depends on nothing
    but its index and its generator.

    Args:
        pairs: at least one. With `base.symmetry` `keep`, those without a symmetric path are left
            out, and the log counts them.
        chart_name: representation of the cell, see `rfm.lattice`.
        base: base distribution; None is the pairs' base without noise.
        statistics: statistics of the training pairs, for a validation set; None computes them from
            the given pairs.

    Attributes:
        base: base distribution.
        ids: names of the pairs.
        statistics: statistics of the cells.
        cell: standardised chart of the cells.

    Raises:
        RefinerError: if there are no pairs; the arrays of a pair do not fit together, or hold a
            number that is not finite or no element; a cell has no volume; or a base is missing
            where `base.kind` is not `uniform`; or no pair can be used with `base.symmetry` `keep`.
    """

    def __init__(
        self,
        pairs: Sequence[PairedCrystal],
        *,
        chart_name: str = "logmetric",
        base: BaseConfig | None = None,
        statistics: Statistics | None = None,
    ) -> None:
        if not pairs:
            raise RefinerError("the data set holds no pairs; check the file of pairs")
        self.base = base or BaseConfig()
        for pair in pairs:
            _check(pair, needs_base=self.base.from_crystals)
        groups: list[Symmetry | None] = [None] * len(pairs)
        if self.base.symmetry == "keep":
            symmetric = [found for pair in pairs if (found := pair.symmetric()) is not None]
            if len(symmetric) < len(pairs):
                logger.info(
                    "%d of %d pairs are left out: no path that keeps the group of the base leads "
                    "to the target",
                    len(pairs) - len(symmetric),
                    len(pairs),
                )
            if not symmetric:
                raise RefinerError(
                    "no target has the space group of its base; give other pairs, or set "
                    "base.symmetry to free"
                )
            pairs, groups = [pair for pair, _ in symmetric], [group for _, group in symmetric]
        self._blocks = [g if g is None else g.blocks for g in groups]
        self._metric_averages = [g if g is None else g.metric_average for g in groups]
        self.ids = [pair.id for pair in pairs]
        self._sizes = np.array([len(pair.atomic_numbers) for pair in pairs])
        self._starts = np.cumsum(self._sizes) - self._sizes
        self._numbers = np.concatenate([pair.atomic_numbers for pair in pairs]).astype(np.int64)
        self._target_coords = np.concatenate([pair.target_frac_coords for pair in pairs])

        to_vector = chart(chart_name).to_vector
        target_matrices = torch.from_numpy(np.stack([p.target_lattice for p in pairs])).double()
        target = to_vector(target_matrices)
        vectors = target
        if self.base.from_crystals:
            bases = [pair.base_frac_coords for pair in pairs if pair.base_frac_coords is not None]
            cells = [pair.base_lattice for pair in pairs if pair.base_lattice is not None]
            self._base_coords = np.concatenate(bases)  # of all pairs, as `_check` has ensured
            base_matrices = torch.from_numpy(np.stack(cells)).double()
            prior = to_vector(base_matrices)
            vectors = torch.cat([prior, target])
        self.statistics = statistics or _statistics(vectors, target_matrices)
        self.cell = StandardChart.from_statistics(chart_name, self.statistics)
        self._target_lattice = self.cell.standardise(target).float().numpy()
        if self.base.from_crystals:
            self._base_lattice = self.cell.standardise(prior).float().numpy()

    def __len__(self) -> int:
        """Return the number of pairs."""
        return len(self.ids)

    def size(self, index: int, rng: np.random.Generator | None = None) -> int:
        """Return the number of atoms of a pair.

        Args:
            index: number of the pair.
            rng: not used, as every draw has the same size; batching passes it to all data sets.
        """
        return int(self._sizes[index])

    def draw(self, index: int, rng: np.random.Generator) -> dict[str, Any]:
        """Return one pair with a fresh base and time.

        Args:
            index: number of the pair.
            rng: source of the random numbers.

        Returns:
            `ids` str; `atomic_numbers` (n,) int64; `base_frac_coords`, `target_frac_coords` (n, 3),
            `base_lattice`, `target_lattice` (6,) standardised, float32; `t` float in [0, 1).
            With `base.symmetry` `keep`, `blocks` (`rfm.symmetry.Blocks`, or None without symmetry).
            They are plain arrays because making a `torch_geometric.data.Data` costs more than the
            rest of a draw. The keys are arguments of `Refiner.forward`; `Trainer` drops others.
        """
        start = self._starts[index]
        atoms = slice(start, start + self._sizes[index])
        blocks, metric_average = self._blocks[index], self._metric_averages[index]
        if self.base.from_crystals:
            coords, lattice = noisy_base(
                self._base_coords[atoms], self._base_lattice[index], self.base, rng, blocks
            )
            if self.base.cell_sigma > 0 and metric_average is not None:
                noisy, average = torch.from_numpy(lattice), torch.from_numpy(metric_average)
                lattice = average_cells(noisy[None], average[None], self.cell)[0].numpy()
        else:
            coords, lattice = uniform_base(self.size(index), self.statistics, self.cell, rng)
        item = {
            "ids": self.ids[index],
            "atomic_numbers": self._numbers[atoms],
            "base_frac_coords": coords,
            "target_frac_coords": self._target_coords[atoms],
            "base_lattice": lattice,
            "target_lattice": self._target_lattice[index],
            "t": rng.random(),
        }
        return item | {"blocks": blocks} if self.base.symmetry == "keep" else item


def collate(items: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return draws of B crystals with N atoms in all as keyword arguments of `Refiner.forward`.

    Args:
        items: draws of a `PairDataset`, at least one.

    Returns:
        `ids` list of B str; `num_atoms` (B,), `atomic_numbers` (N,) int64; `base_frac_coords`,
        `target_frac_coords` (N, 3), `base_lattice`, `target_lattice` (B, 6), `t` (B,) float32. If
        the draws have them, `blocks`: fields of a `rfm.averages.BlockBatch`.
    """

    def joined(key: str) -> Tensor:
        return torch.from_numpy(np.concatenate([item[key] for item in items]))

    def stacked(key: str) -> Tensor:
        return torch.from_numpy(np.stack([item[key] for item in items]))

    sizes = [len(item["atomic_numbers"]) for item in items]
    batch = {
        "ids": [item["ids"] for item in items],
        "num_atoms": torch.tensor(sizes),
        "atomic_numbers": joined("atomic_numbers"),
        "base_frac_coords": joined("base_frac_coords").float(),
        "target_frac_coords": joined("target_frac_coords").float(),
        "base_lattice": stacked("base_lattice"),
        "target_lattice": stacked("target_lattice"),
        "t": torch.tensor([item["t"] for item in items], dtype=torch.float32),
    }
    if "blocks" in items[0]:
        batch["blocks"] = vars(BlockBatch.of([item["blocks"] for item in items], sizes))
    return batch


def _statistics(vectors: Tensor, target_matrices: Tensor) -> Statistics:
    """Return the statistics of chart vectors (V, 6) and target lattices (P, 3, 3)."""
    log_lengths = torch.linalg.vector_norm(target_matrices, dim=-1).log()  # (P, 3)
    std = vectors.std(0, correction=0)
    return Statistics(
        mean=vectors.mean(0).tolist(),
        std=torch.where(std > _SMALLEST_STD, std, 1.0).tolist(),
        log_length_mean=log_lengths.mean(0).tolist(),
        log_length_std=log_lengths.std(0, correction=0).tolist(),
    )


def _check(pair: PairedCrystal, *, needs_base: bool) -> None:
    """Raise `RefinerError` if the arrays of a pair cannot be used."""
    n = len(pair.atomic_numbers)
    if n == 0:
        raise RefinerError(f"pair {pair.id!r} has no atoms; leave it out")
    if np.min(pair.atomic_numbers) < 1:
        raise RefinerError(
            f"pair {pair.id!r} has the atomic number {np.min(pair.atomic_numbers)}, which no "
            "element has; leave it out"
        )
    arrays = {
        "target_frac_coords": (pair.target_frac_coords, (n, 3)),
        "target_lattice": (pair.target_lattice, (3, 3)),
    }
    if needs_base:
        if pair.base_frac_coords is None or pair.base_lattice is None:
            raise RefinerError(f"pair {pair.id!r} has no base crystal; add one or use base uniform")
        arrays["base_frac_coords"] = (pair.base_frac_coords, (n, 3))
        arrays["base_lattice"] = (pair.base_lattice, (3, 3))
    for name, (array, shape) in arrays.items():
        if np.shape(array) != shape:
            raise RefinerError(
                f"pair {pair.id!r}: {name} has shape {np.shape(array)}, expected {shape}"
            )
        if not np.isfinite(array).all():
            raise RefinerError(f"pair {pair.id!r}: {name} holds a number that is not finite")
        if name.endswith("lattice") and not _has_volume(array):
            raise RefinerError(f"pair {pair.id!r}: {name} has no volume")


def _has_volume(lattice: np.ndarray) -> bool:
    """Return False if a lattice (3, 3) is flat or holds a number too large."""
    with np.errstate(over="ignore", invalid="ignore"):  # a damaged file may hold 1e200
        box = np.linalg.norm(lattice, axis=1).prod()
        return bool(abs(np.linalg.det(lattice)) > _SMALLEST_VOLUME * box)
