"""SevenNet (Park et al. 2024, J. Chem. Theory Comput. 20, 4857) on batches.

Importing this module imports sevenn.
"""

from __future__ import annotations

from collections.abc import Sequence

import sevenn._keys as keys
import torch
from ase import Atoms
from sevenn.atom_graph_data import AtomGraphData
from sevenn.train.dataload import unlabeled_atoms_to_graph
from sevenn.util import load_checkpoint
from torch_geometric.loader.dataloader import Collater

from flowllm.energy.single_points import BatchCalculator, SinglePoint

_VOIGT = [0, 1, 2, 4, 5, 3]  # of its order xx, yy, zz, xy, yz, zx
_ATOMS_ON_CPU, _ATOMS_ON_GPU = 64, 1024


class SevenNetPotential(BatchCalculator):
    """A published SevenNet.

    Args:
        weights: name of weights in the package, `7net-0`.
        device: of torch.
    """

    def __init__(self, weights: str, *, device: str = "cpu") -> None:
        super().__init__()
        # Not its ASE calculator, which warns of accelerators for GPUs.
        self.model = load_checkpoint(weights).build_model()
        self.model.set_is_batch_data(True)
        self.model.to(device).eval().requires_grad_(False)
        self.device = device
        self.batch_atoms = _ATOMS_ON_CPU if device == "cpu" else _ATOMS_ON_GPU

    def evaluate(self, batch: Sequence[Atoms]) -> list[SinglePoint]:
        """Return energy, forces and stress of each crystal; see `BatchCalculator.evaluate`."""
        graphs = [
            AtomGraphData.from_numpy_dict(unlabeled_atoms_to_graph(atoms, self.model.cutoff))
            for atoms in batch
        ]
        joined = Collater([], follow_batch=None, exclude_keys=None)(graphs).to(self.device)
        with torch.enable_grad():
            found = self.model(joined)
        energies, forces, stresses = (
            found[key].detach().cpu().double()
            for key in (keys.PRED_TOTAL_ENERGY, keys.PRED_FORCE, keys.PRED_STRESS)
        )
        return [
            SinglePoint(
                energy=float(energies[i]),
                forces=of_crystal.numpy(),
                stress=-stresses[i][_VOIGT].numpy(),
            )
            for i, of_crystal in enumerate(torch.split(forces, [len(a) for a in batch]))
        ]
