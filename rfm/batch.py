"""The batched state of the refiner: many crystals in one set of flat tensors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from pymatgen.core import Element, Lattice, Structure
from torch import Tensor

from rfm.errors import RefinerError
from rfm.lattice import StandardChart
from rfm.torus import wrap


@dataclass(frozen=True, kw_only=True)
class CrystalBatch:
    """B crystals with N atoms in all, the atoms of a crystal next to each other.

    atomic_numbers: (N,) int64, 1 is hydrogen.
    frac_coords: (N, 3) float, fractional coordinates in [0, 1).
    lattice: (B, 6) float, the standardised chart vector of the cell (`StandardChart`).
    num_atoms: (B,) int64, at least 1.
    batch: (N,) int64, the crystal of each atom, ascending.
    """

    atomic_numbers: Tensor
    frac_coords: Tensor
    lattice: Tensor
    num_atoms: Tensor
    batch: Tensor

    @property
    def num_crystals(self) -> int:
        """B."""
        return self.num_atoms.shape[0]

    def to(self, device: torch.device | str) -> CrystalBatch:
        """The same batch on another device."""
        return CrystalBatch(**{name: value.to(device) for name, value in vars(self).items()})

    def at(self, frac_coords: Tensor, lattice: Tensor) -> CrystalBatch:
        """The same crystals with other positions (N, 3) and cells (B, 6)."""
        return replace(self, frac_coords=frac_coords, lattice=lattice)

    @classmethod
    def from_structures(cls, structures: Sequence[Structure], cell: StandardChart) -> CrystalBatch:
        """Build a float32 batch; sites keep their order.

        Raises:
            RefinerError: no structures, one without sites, a disordered site or one that is not an
                element, or a cell without volume.
        """
        if not structures:
            raise RefinerError("no structures given; a batch needs at least one")
        numbers = [atomic_numbers(structure, index) for index, structure in enumerate(structures)]
        coords = np.concatenate([structure.frac_coords for structure in structures])
        matrices = torch.from_numpy(np.stack([s.lattice.matrix for s in structures])).double()
        flat = (~(torch.linalg.det(matrices).abs() > 0)).nonzero().flatten().tolist()
        if flat:
            raise RefinerError(f"structure {flat[0]} has a cell without volume; leave it out")
        num_atoms = torch.tensor([len(z) for z in numbers])
        return cls(
            atomic_numbers=torch.from_numpy(np.concatenate(numbers)),
            # Wrapped in float64 first: float32 keeps only 7 digits of a coordinate far from zero.
            frac_coords=wrap(wrap(torch.from_numpy(coords).double()).float()),
            lattice=cell.encode(matrices).float(),
            num_atoms=num_atoms,
            batch=torch.repeat_interleave(num_atoms),
        )

    def to_structures(self, cell: StandardChart) -> list[Structure]:
        """Structures in the chart's own orientation (a along x, b in the xy plane), sites in order.

        Raises:
            RefinerError: a crystal's numbers are not finite or its cell does not close.
        """
        matrices = cell.decode(self.lattice.double()).cpu().numpy()
        coords = np.split(self.frac_coords.double().cpu().numpy(), self._cuts())
        numbers = np.split(self.atomic_numbers.cpu().numpy(), self._cuts())
        structures = []
        for index, (matrix, frac, z) in enumerate(zip(matrices, coords, numbers, strict=True)):
            if not (np.isfinite(matrix).all() and np.isfinite(frac).all()):
                raise RefinerError(f"crystal {index} is not finite or its cell does not close")
            species = [Element.from_Z(int(number)) for number in z]
            structures.append(Structure(Lattice(matrix), species, frac))
        return structures

    def _cuts(self) -> np.ndarray:
        return np.cumsum(self.num_atoms.cpu().numpy())[:-1]


def atomic_numbers(structure: Structure, index: int = 0) -> np.ndarray:
    """Atomic numbers (n,) int64 of an ordered structure; `index` names it in an error.

    Raises:
        RefinerError: no sites, a disordered site, or a species that is not an element.
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


class Edges(NamedTuple):
    """All ordered pairs (i, j), i != j, of atoms of the same crystal, sorted by i, then j.

    source: (E,) int64, i. target: (E,) int64, j. crystal: (E,) int64, their crystal.
    degree: (N,) int64, pairs that start at each atom, which is the number of atoms less one.
    """

    source: Tensor
    target: Tensor
    crystal: Tensor
    degree: Tensor


def edges(num_atoms: Tensor) -> Edges:
    """Pairs of the crystals with num_atoms (B,) atoms; a crystal of one atom has none."""
    first_atom = num_atoms.cumsum(0) - num_atoms  # (B,)
    batch = torch.repeat_interleave(num_atoms)  # (N,)
    degree = num_atoms[batch] - 1  # (N,)
    source = torch.repeat_interleave(degree)  # (E,)
    first_edge = degree.cumsum(0) - degree  # (N,)
    rank = torch.arange(source.shape[0], device=source.device) - first_edge[source]
    crystal = batch[source]
    start = first_atom[crystal]
    # The rank counts the partners of i without i itself: step over it.
    target = start + rank + (rank >= source - start)
    return Edges(source=source, target=target, crystal=crystal, degree=degree)
