"""The batched state of the refiner: many crystals in one set of flat tensors.

The module also checks the structures that enter a batch, splits many crystals into batches of
bounded memory, and lists the pairs of atoms within the crystals of a batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from pymatgen.core import Element, Structure
from torch import Tensor

from rfm.averages import SymmetryBatch
from rfm.config import RefinerConfig
from rfm.errors import Failure, RefinerError
from rfm.lattice import StandardChart
from rfm.symmetry import Symmetry
from rfm.torus import wrap

# MP-20 has 113 pairs a crystal on average: about 140 crystals at a time.
MAX_EDGES = 16_384


@dataclass(frozen=True, kw_only=True)
class CrystalBatch:
    """B crystals with N atoms in all, the atoms of a crystal next to each other.

    Attributes:
        atomic_numbers: (N,) int64, 1 is hydrogen.
        frac_coords: (N, 3) float, fractional coordinates in [0, 1).
        lattice: (B, 6) float, standardised chart vectors of the cells (`StandardChart`).
        num_atoms: (B,) int64, at least 1.
        batch: (N,) int64, index of the crystal of each atom, ascending.
        symmetry: averages over the groups that the crystals keep; None if any motion is allowed.
    """

    atomic_numbers: Tensor
    frac_coords: Tensor
    lattice: Tensor
    num_atoms: Tensor
    batch: Tensor
    symmetry: SymmetryBatch | None = None

    @property
    def num_crystals(self) -> int:
        """Number of crystals B."""
        return self.num_atoms.shape[0]

    def to(self, device: torch.device | str) -> CrystalBatch:
        """Return the batch on another device.

        Args:
            device: device of all tensors.
        """
        parts = {name: part.to(device) for name, part in vars(self).items() if part is not None}
        return CrystalBatch(**parts)

    def at(self, frac_coords: Tensor, lattice: Tensor) -> CrystalBatch:
        """Return the same crystals with other positions and cells.

        Args:
            frac_coords: (N, 3) new coordinates.
            lattice: (B, 6) new cell vectors.
        """
        return replace(self, frac_coords=frac_coords, lattice=lattice)

    @classmethod
    def from_structures(
        cls,
        structures: Sequence[Structure],
        cell: StandardChart,
        groups: Sequence[Symmetry | None] = (),
    ) -> CrystalBatch:
        """Return a float32 batch; sites keep their order.

        Args:
            structures: at least one ordered crystal.
            cell: chart of the cell vectors.
            groups: symmetry that each crystal has and keeps, None for a crystal that may move in
                any way; empty if all may.

        Raises:
            RefinerError: if there are no structures, or one has no sites, a disordered site, a
                species that is not an element, or a cell without volume.
        """
        if not structures:
            raise RefinerError("no structures given; a batch needs at least one")
        numbers = [atomic_numbers(structure, index) for index, structure in enumerate(structures)]
        coords = np.concatenate([structure.frac_coords for structure in structures])  # (N, 3)
        matrices = torch.from_numpy(np.stack([s.lattice.matrix for s in structures])).double()
        flat = (~(torch.linalg.det(matrices).abs() > 0)).nonzero().flatten().tolist()
        if flat:
            raise RefinerError(f"structure {flat[0]} has a cell without volume; leave it out")
        sizes = [len(z) for z in numbers]
        num_atoms = torch.tensor(sizes)
        kept = any(group is not None for group in groups)
        return cls(
            atomic_numbers=torch.from_numpy(np.concatenate(numbers)),
            # Wrapped in float64 first: float32 keeps only 7 digits of a coordinate far from zero.
            frac_coords=wrap(wrap(torch.from_numpy(coords).double()).float()),
            lattice=cell.encode(matrices).float(),
            num_atoms=num_atoms,
            batch=torch.repeat_interleave(num_atoms),
            symmetry=SymmetryBatch.of(groups, sizes, cell) if kept else None,
        )


def atomic_numbers(structure: Structure, index: int = 0) -> np.ndarray:
    """Return the atomic numbers (n,) int64 of an ordered structure.

    Args:
        structure: crystal of n sites.
        index: number of the structure in error messages.

    Raises:
        RefinerError: if there are no sites, a site is disordered, or a species is not an element.
    """
    if len(structure) == 0:
        raise RefinerError(f"structure {index} has no sites; leave it out")
    if not structure.is_ordered:
        raise RefinerError(f"structure {index} has a disordered site; order it first")
    numbers = []
    for species in structure.species:
        element = getattr(species, "element", species)
        if not isinstance(element, Element):
            raise RefinerError(f"structure {index} holds {species}, which is not an element")
        numbers.append(element.Z)
    return np.array(numbers, dtype=np.int64)


def refusal(config: RefinerConfig, structure: Structure, index: int) -> tuple[Failure, str] | None:
    """Return the reason why a structure cannot enter a batch, or None if it can.

    Args:
        config: settings of the refiner, which bound the size and the elements.
        structure: any crystal.
        index: number of the structure in the message.

    Returns:
        The reason and a one-line message, or None.
    """
    try:
        numbers = atomic_numbers(structure, index)
    except RefinerError as error:
        return Failure.BAD_INPUT, str(error)
    largest = config.max_atoms
    if largest is not None and len(numbers) > largest:
        detail = f"structure {index} has {len(numbers)} atoms; the refiner knows up to {largest}"
        return Failure.TOO_MANY_ATOMS, detail
    heaviest = config.network.max_atomic_number
    matrix = structure.lattice.matrix
    if numbers.max() > heaviest:
        detail = f"structure {index} has an element above the network's limit Z = {heaviest}"
    elif not (np.isfinite(structure.frac_coords).all() and np.isfinite(matrix).all()):
        detail = f"structure {index} holds a number that is not finite"
    elif not abs(np.linalg.det(matrix)) > 0:
        detail = f"structure {index} has a cell without volume"
    else:
        return None
    return Failure.BAD_INPUT, detail


def pack(sizes: Sequence[int], max_edges: int = MAX_EDGES) -> list[list[int]]:
    """Return the indices of crystals in batches of like sizes with bounded pairs of atoms.

    The network works on the n^2 pairs of atoms within each crystal, and its memory grows with their
    sum. The largest crystals come first, so that a crystal that does not fit shows at once.

    Args:
        sizes: number of atoms of each crystal.
        max_edges: largest sum of n^2 over a batch; a larger crystal is alone in its batch.

    Raises:
        RefinerError: if max_edges is below 1.
    """
    if max_edges < 1:
        raise RefinerError(f"max_edges is {max_edges}; at least one is needed")
    batches: list[list[int]] = []
    room = 0
    for place in np.argsort(-np.asarray(sizes, dtype=np.int64), kind="stable").tolist():
        edges = sizes[place] ** 2
        if not batches or edges > room:
            batches.append([])
            room = max_edges
        batches[-1].append(place)
        room -= edges
    return batches


class AtomPairs(NamedTuple):
    """All P unordered pairs {i, j}, i < j, of atoms of the same crystal, sorted by i, then j.

    Attributes:
        first: (P,) int64, atom i.
        second: (P,) int64, atom j.
        crystal: (P,) int64, crystal of the two.
    """

    first: Tensor
    second: Tensor
    crystal: Tensor


def atom_pairs(num_atoms: Tensor) -> AtomPairs:
    """Return the pairs of atoms of a batch; a crystal of one atom has none.

    Args:
        num_atoms: (B,) number of atoms of each crystal.
    """
    batch = torch.repeat_interleave(num_atoms)  # (N,)
    atoms = torch.arange(batch.shape[0], device=batch.device)  # (N,)
    last_atom = num_atoms.cumsum(0) - 1  # (B,)
    later = last_atom[batch] - atoms  # (N,) atoms of the crystal after each
    first = torch.repeat_interleave(later)  # (P,)
    first_pair = later.cumsum(0) - later  # (N,)
    rank = torch.arange(first.shape[0], device=first.device) - first_pair[first]  # (P,)
    return AtomPairs(first=first, second=first + 1 + rank, crystal=batch[first])
