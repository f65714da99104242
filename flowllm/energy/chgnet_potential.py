"""CHGNet (Deng et al. 2023, Nat. Mach. Intell. 5, 1031) on batches, with one pass backward.

The package's own calculator takes one crystal, builds its graph in Python loops, and
differentiates twice, keeping what second derivatives would need. Here the graph is built with
arrays, and forces and stresses of the batch come from one pass. Importing this module imports
chgnet.
"""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from ase import Atoms
from chgnet.graph import CrystalGraph
from chgnet.graph.crystalgraph import TORCH_DTYPE
from chgnet.model.model import BatchedGraph, CHGNet
from numpy.typing import NDArray
from pymatgen.optimization.neighbors import find_points_in_spheres

from flowllm.energy.single_points import BatchCalculator, SinglePoint, voigt

_TOLERANCE = 1e-8  # Angstrom, of the search for neighbours
# The best of 32 to 512 on one CPU thread; larger batches leave its caches.
_ATOMS_ON_CPU, _ATOMS_ON_GPU = 64, 2048


class CHGNetPotential(BatchCalculator):
    """A published CHGNet.

    Args:
        weights: name of weights in the package, `0.3.0` or `r2scan`.
        device: of torch.
    """

    def __init__(self, weights: str, *, device: str = "cpu") -> None:
        super().__init__()
        # `BatchedGraph` converts volumes with gradients to numbers; torch 2.13 warns of it.
        warnings.filterwarnings("ignore", "Converting a tensor with requires_grad", UserWarning)
        with contextlib.redirect_stdout(io.StringIO()):  # it prints its size
            self.model = CHGNet.load(model_name=weights, use_device=device, verbose=False)
        self.model.eval().requires_grad_(False)
        self.device = device
        self.batch_atoms = _ATOMS_ON_CPU if device == "cpu" else _ATOMS_ON_GPU

    def evaluate(self, batch: Sequence[Atoms]) -> list[SinglePoint]:
        """Return energy, forces and stress of each crystal; see `BatchCalculator.evaluate`.

        Raises:
            ValueError: if an atom has no neighbour within 6 Angstrom.
        """
        with torch.enable_grad():
            graphs, joined = self._joined(batch, stress=True)
            per_atom = self.model._compute(joined)["e"]
            sizes = torch.tensor([len(atoms) for atoms in batch], device=per_atom.device)
            gradients = torch.autograd.grad(
                (per_atom * sizes).sum(), [*joined.atom_positions, *joined.strains]
            )
        energies = (per_atom.detach() + self.model.composition_model(graphs)).double() * sizes
        by_position, by_strain = gradients[: len(batch)], gradients[len(batch) :]
        return [
            SinglePoint(
                energy=energy,
                forces=-_array(by_position[i]),
                stress=voigt(_array(by_strain[i]) / batch[i].cell.volume),
            )
            for i, energy in enumerate(energies.tolist())
        ]

    def energies_per_atom(self, batch: Sequence[Atoms]) -> list[float]:
        """Return the energy of each crystal, eV/atom, without forces and stresses.

        Args:
            batch: periodic crystals.

        Raises:
            ValueError: if an atom has no neighbour within 6 Angstrom.
        """
        with torch.no_grad():
            graphs, joined = self._joined(batch, stress=False)
            per_atom = self.model._compute(joined)["e"] + self.model.composition_model(graphs)
        energies: list[float] = per_atom.double().tolist()
        return energies

    def _joined(
        self, batch: Sequence[Atoms], *, stress: bool
    ) -> tuple[list[CrystalGraph], BatchedGraph]:
        """Return the graph of each crystal, and one of all for the network."""
        model = self.model
        converter = model.graph_converter
        cutoffs = converter.atom_graph_cutoff, converter.bond_graph_cutoff
        graphs = [crystal_graph(atoms, *cutoffs).to(self.device) for atoms in batch]
        joined = BatchedGraph.from_graphs(
            graphs,
            bond_basis_expansion=model.bond_basis_expansion,
            angle_basis_expansion=model.angle_basis_expansion,
            compute_stress=stress,
        )
        return graphs, joined


def crystal_graph(atoms: Atoms, atom_cutoff: float, bond_cutoff: float) -> CrystalGraph:
    """Return the graph that CHGNet takes: the one of its converter, up to the order of the bonds.

    Args:
        atoms: a periodic crystal.
        atom_cutoff: longest bond, Angstrom.
        bond_cutoff: longest bond of an angle, Angstrom.

    Returns:
        The graph on the CPU.

    Raises:
        ValueError: if an atom has no bond, or a bond is found from one of its ends only.
    """
    positions = np.ascontiguousarray(atoms.positions)
    cell = np.ascontiguousarray(atoms.cell.array)
    found = find_points_in_spheres(
        positions,
        positions,
        r=float(atom_cutoff),
        pbc=np.ones(3, dtype=np.int64),
        lattice=cell,
        tol=_TOLERANCE,
    )
    centers, neighbors, images, lengths = found
    is_bond = (centers != neighbors) | (lengths > _TOLERANCE)
    centers, neighbors, lengths = centers[is_bond], neighbors[is_bond], lengths[is_bond]
    images = images[is_bond].astype(np.int64)
    if alone := len(atoms) - len(np.unique(centers)):
        raise ValueError(
            f"{alone} of {len(atoms)} atoms have no neighbor within {atom_cutoff:g} Angstrom"
        )

    # Every bond is there from both ends; a pair of them is one undirected bond.
    backward = _reversed_bonds(centers, neighbors, images)
    forward = np.arange(len(centers))
    is_first = forward < backward
    undirected = np.cumsum(is_first) - 1
    undirected = np.where(is_first, undirected, undirected[backward])
    first, second = _angles(centers, lengths, bond_cutoff)
    angles = np.stack(
        [centers[first], undirected[first], first, undirected[second], second], axis=1
    )
    return CrystalGraph(
        atomic_number=_integers(atoms.numbers),
        atom_frac_coord=_floats(atoms.get_scaled_positions(wrap=False)),
        atom_graph=_integers(np.stack([centers, neighbors], axis=1)),
        atom_graph_cutoff=atom_cutoff,
        neighbor_image=_floats(images),
        directed2undirected=_integers(undirected),
        undirected2directed=_integers(forward[is_first]),
        bond_graph=_integers(angles),
        bond_graph_cutoff=bond_cutoff,
        lattice=_floats(cell),
    )


def _reversed_bonds(
    centers: NDArray[np.integer], neighbors: NDArray[np.integer], images: NDArray[np.integer]
) -> NDArray[np.integer]:
    """Return the index of each bond as seen from its other end."""
    reach = int(np.abs(images).max(initial=0))
    base = 2 * reach + 1
    place = np.array([base * base, base, 1])
    atoms = int(centers.max(initial=0)) + 1
    keys = (centers * atoms + neighbors) * base**3 + (images + reach) @ place
    reversed_keys = (neighbors * atoms + centers) * base**3 + (reach - images) @ place
    order = np.argsort(keys)
    where = np.searchsorted(keys[order], reversed_keys)
    backward: NDArray[np.integer] = order[np.minimum(where, len(order) - 1)]
    if not np.array_equal(keys[backward], reversed_keys):
        raise ValueError("a bond as long as the cutoff has one end only")
    return backward


def _angles(
    centers: NDArray[np.integer], lengths: NDArray[np.floating], cutoff: float
) -> tuple[NDArray[np.integer], NDArray[np.integer]]:
    """Return all ordered pairs of different bonds at one atom, both within the cutoff."""
    short = np.flatnonzero(lengths < cutoff)
    short = short[np.argsort(centers[short], kind="stable")]
    counts = np.bincount(centers[short])
    of_atom = counts[centers[short]]  # partners of each bond, itself among them
    start = (np.cumsum(counts) - counts)[centers[short]]
    ends = np.cumsum(of_atom)
    within = np.arange(ends[-1] if len(ends) else 0) - np.repeat(ends - of_atom, of_atom)
    first = np.repeat(np.arange(len(short)), of_atom)
    second = np.repeat(start, of_atom) + within
    differ = first != second
    return short[first[differ]], short[second[differ]]


def _integers(values: Any) -> torch.Tensor:
    return torch.as_tensor(np.asarray(values), dtype=torch.int32)


def _floats(values: Any) -> torch.Tensor:
    return torch.as_tensor(np.asarray(values), dtype=TORCH_DTYPE)


def _array(values: torch.Tensor) -> NDArray[np.floating]:
    array: NDArray[np.floating] = values.detach().cpu().double().numpy()
    return array
