"""One crystal: as what users hold, as bare numbers, and from and to pymatgen and ASE."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from ase import Atoms
from numpy.typing import NDArray
from pymatgen.core import Element, IStructure, Structure

from flowllm.crystals import cells
from flowllm.errors import InvalidCrystal, UserError

ATOMIC_NUMBER = {element.symbol: element.Z for element in Element} | {"D": 1, "T": 1}
# What pymatgen and ASE are seen to raise on damaged input.
UNREADABLE = (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RuntimeError)


@dataclass(kw_only=True, slots=True)
class Crystal:
    """One crystal.

    Attributes:
        id: unique within its data set.
        structure: ordered, plain elements, no site properties.
        properties: what is known of it; formation_energy_per_atom and e_above_hull in eV/atom,
            band_gap in eV, spacegroup as a number from 1 to 230, anything else as the file has it.
            What is not known is absent.
    """

    id: str
    structure: Structure
    properties: dict[str, float | int | str] = field(default_factory=dict)


class Geometry(NamedTuple):
    """A crystal as numbers, the form in which it is parsed, reduced and cached."""

    lattice: NDArray[np.float64]  # (3, 3), Angstrom
    atomic_numbers: NDArray[np.uint8]  # (N,)
    frac_coords: NDArray[np.float64]  # (N, 3)


def to_structure(crystal: Structure | Atoms) -> Structure:
    """A crystal from pymatgen or ASE as this house wants it: ordered, plain elements, no extras.

    Raises:
        UserError: neither kind of object; as `InvalidCrystal` with a reason: not periodic, no
            atoms, disorder, an unknown element, a cell that is not finite or has no volume.
    """
    if isinstance(crystal, IStructure):
        return cells.make_structure(*geometry_of_structure(crystal))
    if isinstance(crystal, Atoms):
        return cells.make_structure(*geometry_of_atoms(crystal))
    raise UserError(
        f"a crystal must be a pymatgen Structure or ASE Atoms, not {type(crystal).__name__}"
    )


def to_atoms(structure: Structure) -> Atoms:
    """An ordered pymatgen structure as ASE Atoms, periodic in all directions."""
    return Atoms(
        numbers=cells.atomic_numbers(structure),
        cell=structure.lattice.matrix,
        scaled_positions=structure.frac_coords,
        pbc=True,
    )


def geometry_of_structure(structure: IStructure) -> Geometry:
    """Cell, elements and positions of a structure, checked.

    Raises:
        InvalidCrystal: no atoms, disorder, an unknown element, or a cell that is not finite or has
            no volume.
    """
    geometry = Geometry(
        structure.lattice.matrix, cells.atomic_numbers(structure), structure.frac_coords
    )
    cells.check_geometry(geometry.lattice, geometry.frac_coords)
    return geometry


def geometry_of_atoms(atoms: Atoms) -> Geometry:
    """Cell, elements and positions of ASE Atoms, checked.

    Raises:
        InvalidCrystal: not periodic in all directions, no atoms, an unknown element, or a cell that
            is not finite or has no volume.
    """
    if not atoms.pbc.all():
        raise InvalidCrystal(
            "not_periodic", "not periodic in all three directions; set the cell and pbc=True"
        )
    if not np.isin(atoms.numbers, list(ATOMIC_NUMBER.values())).all():
        raise InvalidCrystal("unknown_element", "an atom is of no element (ASE's 'X')")
    lattice = np.array(atoms.cell)
    cells.check_geometry(lattice, atoms.positions)
    frac_coords = atoms.get_scaled_positions(wrap=False)
    return Geometry(lattice, atoms.numbers.astype(np.uint8), frac_coords)


def scalar(value: Any) -> float | int | str | None:
    """A property value in Python's own type; None for what is not finite or no scalar."""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if isinstance(value, int | str) else None
