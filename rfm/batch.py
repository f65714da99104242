"""The batched state of the refiner: many crystals in one set of flat tensors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from pymatgen.core import Element, Structure
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


class AtomPairs(NamedTuple):
    """All unordered pairs {i, j}, i < j, of atoms of the same crystal, sorted by i, then j.

    first: (P,) int64, i. second: (P,) int64, j. crystal: (P,) int64, their crystal.
    """

    first: Tensor
    second: Tensor
    crystal: Tensor


def atom_pairs(num_atoms: Tensor) -> AtomPairs:
    """Pairs of the crystals with num_atoms (B,) atoms; a crystal of one atom has none."""
    batch = torch.repeat_interleave(num_atoms)  # (N,)
    atoms = torch.arange(batch.shape[0], device=batch.device)
    last_atom = num_atoms.cumsum(0) - 1  # (B,)
    later = last_atom[batch] - atoms  # (N,) atoms of the crystal after each
    first = torch.repeat_interleave(later)  # (P,)
    first_pair = later.cumsum(0) - later  # (N,)
    rank = torch.arange(first.shape[0], device=first.device) - first_pair[first]
    return AtomPairs(first=first, second=first + 1 + rank, crystal=batch[first])
