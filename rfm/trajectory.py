"""The path of a crystal from base to end, to be looked at."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from rfm.batch import CrystalBatch
from rfm.lattice import StandardChart


@dataclass(frozen=True, kw_only=True)
class Trajectory:
    """F states of a crystal of n atoms, in the order of time.

    t: (F,) from 0, the base with its noise, to 1.
    frac_coords: (F, n, 3) in [0, 1).
    lattice: (F, 3, 3) rows a, b, c in Angstrom, a along x and b in the xy plane.

    A state whose cell does not close is left out. A crystal that was lost on the way stands still
    from there on.
    """

    t: np.ndarray
    frac_coords: np.ndarray
    lattice: np.ndarray


class Recorder:
    """Keeps the states of a batch; `integrate` takes it as `record`."""

    def __init__(self) -> None:
        self._times: list[float] = []
        self._coords: list[Tensor] = []
        self._lattices: list[Tensor] = []
        self._num_atoms: list[int] = []

    def __call__(self, t: float, state: CrystalBatch) -> None:
        """Keep a state, in main memory."""
        self._times.append(t)
        self._coords.append(state.frac_coords.cpu())
        self._lattices.append(state.lattice.cpu())
        self._num_atoms = state.num_atoms.tolist()

    def trajectories(self, cell: StandardChart) -> list[Trajectory]:
        """One for each crystal of the batch, in order."""
        times = np.array(self._times)
        vectors = torch.stack(self._lattices).double()  # (F, B, 6)
        matrices = cell.decode(vectors.flatten(0, 1)).unflatten(0, vectors.shape[:2]).numpy()
        closed = np.isfinite(matrices).all((2, 3))  # (F, B)
        paths = torch.stack(self._coords).double().split(self._num_atoms, dim=1)
        return [
            Trajectory(
                t=times[closed[:, k]],
                frac_coords=path.numpy()[closed[:, k]],
                lattice=matrices[closed[:, k], k],
            )
            for k, path in enumerate(paths)
        ]
