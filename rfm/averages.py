"""Averages over the groups of a batch: motions of atoms, and cells; see `rfm.symmetry`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from rfm.lattice import COLS, ROWS, StandardChart
from rfm.symmetry import Blocks, Symmetry


@dataclass(frozen=True, kw_only=True)
class BlockBatch:
    """The averages over motions of atoms of B crystals with N atoms; see `Blocks`.

    Attributes:
        atoms: (E,) int64, atom i of each nonzero block.
        sources: (E,) int64, atom j.
        matrices: (E, 3, 3) float32.
    """

    atoms: Tensor
    sources: Tensor
    matrices: Tensor

    @classmethod
    def of(cls, blocks: Sequence[Blocks | None], num_atoms: Sequence[int]) -> BlockBatch:
        """Return the averages of a batch.

        Args:
            blocks: of B crystals; None for a crystal that may move in any way.
            num_atoms: (B,) numbers of atoms.
        """
        starts = np.cumsum(num_atoms) - num_atoms
        parts = [
            Blocks.identity(n) if block is None else block
            for block, n in zip(blocks, num_atoms, strict=True)
        ]
        counts = [len(part.atoms) for part in parts]
        shift = np.repeat(starts, counts)  # (E,)
        return cls(
            atoms=torch.from_numpy(np.concatenate([part.atoms for part in parts]) + shift),
            sources=torch.from_numpy(np.concatenate([part.sources for part in parts]) + shift),
            matrices=torch.from_numpy(np.concatenate([part.matrices for part in parts])).float(),
        )

    def to(self, device: torch.device | str) -> BlockBatch:
        """Return the averages on another device.

        Args:
            device: device of all tensors.
        """
        return BlockBatch(**{name: tensor.to(device) for name, tensor in vars(self).items()})

    def average(self, motions: Tensor) -> Tensor:
        """Return the averages over the groups of motions (N, 3) of atoms, in periods.

        Args:
            motions: (N, 3) velocities or displacements.
        """
        moving = motions.index_select(0, self.sources).unsqueeze(-2)  # (E, 1, 3)
        # No matrix product, which autocast would round to bfloat16.
        moved = (self.matrices.to(motions.dtype) * moving).sum(-1)  # (E, 3)
        return torch.zeros_like(motions).index_add(0, self.atoms, moved)


@dataclass(frozen=True, kw_only=True)
class SymmetryBatch:
    """The symmetries of B crystals; see `rfm.symmetry`.

    Attributes:
        groups: B symmetries; None for a crystal that may move in any way.
        cell: chart of the cell vectors.
        blocks: averages over motions of atoms.
        crystals: (C,) int64, the crystals whose group constrains the cell.
        metric_average: (C, 6, 6) float64, see `Symmetry.metric_average`.
    """

    groups: tuple[Symmetry | None, ...]
    cell: StandardChart
    blocks: BlockBatch
    crystals: Tensor
    metric_average: Tensor

    @classmethod
    def of(
        cls, groups: Sequence[Symmetry | None], num_atoms: Sequence[int], cell: StandardChart
    ) -> SymmetryBatch:
        """Return the symmetries of a batch.

        Args:
            groups: of B crystals; None for a crystal that may move in any way.
            num_atoms: (B,) numbers of atoms.
            cell: chart of the cell vectors.
        """
        averages = {
            k: group.metric_average
            for k, group in enumerate(groups)
            if group is not None and not np.allclose(group.metric_average, np.eye(6))
        }
        return cls(
            groups=tuple(groups),
            cell=cell,
            blocks=BlockBatch.of([g if g is None else g.blocks for g in groups], num_atoms),
            crystals=torch.tensor(list(averages), dtype=torch.int64),
            metric_average=torch.from_numpy(np.array([*averages.values()]).reshape(-1, 6, 6)),
        )

    def to(self, device: torch.device | str) -> SymmetryBatch:
        """Return the symmetries on another device.

        Args:
            device: device of all tensors.
        """
        return replace(
            self,
            blocks=self.blocks.to(device),
            crystals=self.crystals.to(device),
            metric_average=self.metric_average.to(device),
        )

    def average_cells(self, lattice: Tensor) -> Tensor:
        """Return the cells with their metric tensors averaged over the groups.

        Args:
            lattice: (B, 6) standardised cell vectors.

        Returns:
            (B, 6); NaN where the average is not finite.
        """
        chosen = lattice.index_select(0, self.crystals)  # (C, 6)
        averages = average_cells(chosen, self.metric_average, self.cell)
        return lattice.index_copy(0, self.crystals, averages)


def average_cells(lattice: Tensor, metric_average: Tensor, cell: StandardChart) -> Tensor:
    """Return cells with their metric tensors averaged over groups.

    Args:
        lattice: (C, 6) standardised cell vectors.
        metric_average: (C, 6, 6) float64, see `Symmetry.metric_average`.
        cell: chart of the cell vectors.

    Returns:
        (C, 6), of the type of `lattice`; NaN where the average is not finite.
    """
    finite = lattice.isfinite().all(-1, keepdim=True)
    metric = cell.metric(torch.where(finite, lattice, 0.0).double())  # (C, 3, 3)
    six = (metric_average @ metric[:, ROWS, COLS].unsqueeze(-1)).squeeze(-1)  # (C, 6)
    finite = finite & six.isfinite().all(-1, keepdim=True)
    average = torch.eye(3).to(six).repeat(len(six), 1, 1)
    six = torch.where(finite, six, average[:, ROWS, COLS])
    average[:, ROWS, COLS] = average[:, COLS, ROWS] = six
    return torch.where(finite, cell.from_metric(average), torch.nan).to(lattice.dtype)
