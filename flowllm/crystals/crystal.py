"""One crystal with its id and properties, and conversions from and to pymatgen and ASE."""

from __future__ import annotations

import contextlib
import math
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from ase import Atoms
from numpy.typing import NDArray
from pymatgen.core import IStructure, Structure

from flowllm.crystals import cells, rules
from flowllm.errors import UserError
from flowllm.system.names import printable

# The errors that pymatgen and ASE raise on damaged input.
UNREADABLE = (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RuntimeError)


@dataclass(kw_only=True, slots=True)
class Crystal:
    """One crystal of a data set.

    Attributes:
        id: unique within the data set.
        structure: ordered, plain elements, no site properties.
        properties: formation_energy_per_atom and e_above_hull in eV/atom, band_gap in eV,
            spacegroup as a number from 1 to 230, and any other columns of the file under their
            names. Unknown values are absent.
        ignored: property -> why the value in the file is not used.
    """

    id: str
    structure: Structure
    properties: dict[str, float | int | str] = field(default_factory=dict)
    ignored: dict[str, str] = field(default_factory=dict, compare=False)

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, Any]:
        """Show the crystal in a notebook."""
        from flowllm.crystals.views.notebook import mimebundle

        return mimebundle(self, include, exclude)


class Geometry(NamedTuple):
    """Cell, elements and positions of one crystal: the form for parsing, reducing and caching."""

    lattice: NDArray[np.float64]  # (3, 3), rows are lattice vectors, Angstrom
    atomic_numbers: NDArray[np.uint8]  # (N,)
    frac_coords: NDArray[np.float64]  # (N, 3)


def to_structure(crystal: Structure | Atoms) -> Structure:
    """Return a crystal from pymatgen or ASE as an ordered structure of plain elements.

    Oxidation states, labels and site properties are dropped.

    Args:
        crystal: a pymatgen `Structure` or periodic ASE `Atoms`.

    Returns:
        A new structure in the same cell, with the sites in the same order.

    Raises:
        UserError: if it is neither kind of object.
        InvalidCrystal: if it breaks one of `flowllm.crystals.rules`.
    """
    if isinstance(crystal, IStructure):
        return cells.make_structure(*geometry_of_structure(crystal))
    if isinstance(crystal, Atoms):
        return cells.make_structure(*geometry_of_atoms(crystal))
    raise UserError(
        f"a crystal must be a pymatgen Structure or ASE Atoms, not {type(crystal).__name__}"
    )


def to_atoms(structure: Structure) -> Atoms:
    """Return an ordered pymatgen structure as ASE Atoms, periodic in all directions.

    Args:
        structure: an ordered crystal.

    Returns:
        ASE Atoms in the same cell, in the same order.

    Raises:
        InvalidCrystal: if the structure is disordered or holds an unknown element.
    """
    return Atoms(
        numbers=cells.atomic_numbers(structure),
        cell=structure.lattice.matrix,
        scaled_positions=structure.frac_coords,
        pbc=True,
    )


def geometry_of_structure(structure: IStructure) -> Geometry:
    """Return cell, elements and positions of a pymatgen structure.

    Args:
        structure: a crystal.

    Returns:
        Its geometry, in the same cell.

    Raises:
        InvalidCrystal: if it breaks one of `flowllm.crystals.rules`.
    """
    rules.check_periodic(structure.lattice.pbc)
    geometry = Geometry(
        structure.lattice.matrix, cells.atomic_numbers(structure), structure.frac_coords
    )
    rules.check_crystal(*geometry)
    return geometry


def geometry_of_atoms(atoms: Atoms) -> Geometry:
    """Return cell, elements and positions of ASE Atoms.

    Args:
        atoms: a crystal.

    Returns:
        Its geometry, in the same cell; positions are not wrapped.

    Raises:
        InvalidCrystal: if it breaks one of `flowllm.crystals.rules`, or ASE's note of partial
            occupancies, which it makes when it reads a CIF, says that it is disordered.
    """
    rules.check_periodic(atoms.pbc)
    numbers = rules.check_numbers(atoms.numbers)
    check_occupancies(atoms.info.get("occupancy"))
    lattice = np.array(atoms.cell)
    rules.check_geometry(lattice, atoms.positions)
    geometry = Geometry(lattice, numbers, atoms.get_scaled_positions(wrap=False))
    rules.check_crystal(*geometry)
    return geometry


def check_occupancies(occupancy: Any) -> None:
    """Check ASE's note of the occupants of the sites of a CIF, `atoms.info["occupancy"]`.

    ASE itself keeps one atom of each site and drops the other occupants.

    Args:
        occupancy: kind of site -> symbol -> share of the site; anything else says nothing.

    Raises:
        InvalidCrystal: see `flowllm.crystals.rules.site_element`.
    """
    if not isinstance(occupancy, dict):
        return
    for kind, occupants in occupancy.items():
        if isinstance(occupants, dict):
            rules.site_element(occupants.items(), f"the site of kind {kind}")


def scalar(value: Any) -> float | int | str | None:
    """Return a property value as a Python scalar, or None for any other value.

    Args:
        value: a Python or numpy value.

    Returns:
        A float, int (bool included) or str; None if the value is not finite or not a scalar.
    """
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, str):
        return printable(value)
    return value if isinstance(value, int) else None


@contextlib.contextmanager
def ignore_missing_electronegativity() -> Iterator[None]:
    """Suppress pymatgen's warning that helium, neon and argon have no electronegativity.

    pymatgen emits it wherever it sorts elements for a formula; the user cannot act on it.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "No Pauling electronegativity", UserWarning)
        yield
