"""The cell convention of the package: Niggli-reduced, right-handed, in standard orientation.

spglib does the reduction. pymatgen's `get_niggli_reduced_lattice` finds the same cell, but maps it
back onto the input lattice with a tolerance of one degree and returns another basis for 10 of the
first 300 validation crystals of MP-20. ASE's function agrees with spglib and takes 25 times as
long.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from functools import cache

import numpy as np
import spglib
from numpy.typing import ArrayLike, NDArray
from pymatgen.core import Composition, Element, IStructure, Lattice, Structure

from flowllm.crystals.rules import check_geometry, determinant, site_element
from flowllm.errors import InvalidCrystal

NIGGLI_TOLERANCE = 1e-5  # recorded in every manifest; see `reduce_basis`


def reduce_cell(structure: Structure, tolerance: float = NIGGLI_TOLERANCE) -> Structure:
    """Return the same crystal in its Niggli cell.

    The order of the sites is kept; oxidation states, labels and site properties are dropped.

    Args:
        structure: an ordered crystal.
        tolerance: see `reduce_basis`.

    Returns:
        A new structure; see `reduce_basis` for the convention.

    Raises:
        InvalidCrystal: if the crystal is disordered, holds an unknown element, has a cell without
            volume, or no reduced cell is found.
    """
    lattice, frac_coords = reduce_basis(
        structure.lattice.matrix, structure.frac_coords, tolerance=tolerance
    )
    return make_structure(lattice, atomic_numbers(structure), frac_coords)


def reduce_basis(
    lattice: ArrayLike, frac_coords: ArrayLike, tolerance: float = NIGGLI_TOLERANCE
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the Niggli-reduced basis of a lattice, and the positions in it.

    The result depends on the crystal, not on its basis or orientation, as far as a Niggli cell
    can: symmetry operations of the lattice still permute positions, and within `tolerance` of a
    boundary between two Niggli types either type may come out. The basis is right-handed, so that
    a chiral crystal keeps its hand, with a along x and b in the xy plane, y > 0.

    If spglib finds no reduced cell, an LLL reduction comes first (it helps very skewed input, with
    entries in the hundreds in the change of basis). Then the tolerance grows to 10 and 100 times
    its value (it helps cells at the edge of the tolerance: 1 of 71,355 Materials Project crystals).

    Source: Grosse-Kunstleve, Sauter & Adams, Acta Cryst. A60 (2004) 1, conditions A1 to A8.

    Args:
        lattice: (3, 3), rows are lattice vectors, Angstrom.
        frac_coords: (N, 3), in units of the lattice vectors.
        tolerance: dimensionless; squared lengths that differ by less than this times V^(2/3)
            count as equal.

    Returns:
        The reduced lattice (3, 3) in Angstrom, and the coordinates (N, 3) wrapped to [0, 1).

    Raises:
        InvalidCrystal: if the cell is not finite or has no volume, or no reduced cell is found.
    """
    lattice = np.asarray(lattice, dtype=np.float64)
    frac_coords = np.asarray(frac_coords, dtype=np.float64)
    check_geometry(lattice, frac_coords)
    for start, scale in _attempts(lattice):
        reduced = _niggli(start, tolerance * scale)
        if reduced is None:
            continue
        change = reduced @ np.linalg.inv(lattice)  # reduced = change @ lattice
        steps = np.rint(change)
        if np.abs(change - steps).max() > 0.01 or abs(round(determinant(steps))) != 1:
            continue  # skewed beyond the precision of the input
        if determinant(steps) * determinant(lattice) < 0:
            steps = -steps
        frac_coords = wrap(frac_coords @ np.rint(np.linalg.inv(steps)))
        return _standard_orientation(steps @ lattice), frac_coords
    raise InvalidCrystal(
        "no_reduced_cell",
        f"no Niggli cell found for the lattice {np.round(lattice, 4).tolist()}; "
        "give the crystal in a less skewed cell",
    )


def wrap(frac_coords: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return coordinates modulo 1, in [0, 1); a tiny negative value becomes 0 and not 1.

    Args:
        frac_coords: (N, 3), in units of the lattice vectors.

    Returns:
        A new array (N, 3).
    """
    wrapped = frac_coords - np.floor(frac_coords)
    wrapped[wrapped >= 1.0] = 0.0
    return wrapped


def fractional(positions: NDArray[np.float64], lattice: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return Cartesian positions in units of the lattice vectors.

    Args:
        positions: (N, 3), Angstrom.
        lattice: (3, 3), rows are lattice vectors, Angstrom.

    Returns:
        Array (N, 3).

    Raises:
        InvalidCrystal: see `rules.check_geometry`.
    """
    check_geometry(lattice, positions)
    return np.asarray(np.linalg.solve(lattice.T, positions.T).T, dtype=np.float64)


def make_structure(
    lattice: NDArray[np.float64], atomic_numbers: ArrayLike, frac_coords: NDArray[np.float64]
) -> Structure:
    """Return a structure made from arrays.

    All sites of an element share one composition object, which makes this 1.6 times faster than
    building from symbols. pymatgen treats compositions as immutable.

    Args:
        lattice: (3, 3), rows are lattice vectors, Angstrom.
        atomic_numbers: (N,).
        frac_coords: (N, 3), in units of the lattice vectors.

    Returns:
        The structure, with its sites in the given order.
    """
    species = [_composition(number) for number in np.asarray(atomic_numbers).tolist()]
    return Structure(Lattice(lattice), species, frac_coords)


def atomic_numbers(structure: IStructure) -> NDArray[np.uint8]:
    """Return the atomic numbers of an ordered crystal; deuterium and tritium count as hydrogen.

    Args:
        structure: a crystal of N sites.

    Returns:
        Array (N,).

    Raises:
        InvalidCrystal: see `rules.site_element`.
    """
    numbers = np.empty(len(structure), dtype=np.uint8)
    for index, site in enumerate(structure):
        species = site.species
        if len(species) == 1 and isinstance(specie := site.specie, Element) and site.is_ordered:
            numbers[index] = specie.Z
            continue
        occupants = [(specie.symbol, share) for specie, share in species.items()]
        numbers[index] = site_element(occupants, f"site {index + 1}")
    return numbers


def _standard_orientation(lattice: NDArray[np.float64]) -> NDArray[np.float64]:
    """Rotate a right-handed lattice so that its matrix is lower triangular, diagonal positive."""
    upper = np.linalg.qr(lattice.T).R
    return upper.T * np.sign(np.diag(upper))


@cache
def _composition(atomic_number: int) -> Composition:
    return Composition({Element.from_Z(atomic_number): 1})


def _attempts(lattice: NDArray[np.float64]) -> Iterator[tuple[NDArray[np.float64], float]]:
    yield lattice, 1.0
    yield Lattice(lattice).lll_matrix, 1.0
    yield lattice, 10.0
    yield lattice, 100.0


def _niggli(lattice: NDArray[np.float64], tolerance: float) -> NDArray[np.float64] | None:
    """Return the Niggli-reduced lattice in the orientation of the input, or None."""
    # spglib compares squared lengths with an absolute eps; this makes it independent of scale.
    eps = tolerance * abs(determinant(lattice)) ** (2 / 3)
    with warnings.catch_warnings():
        # spglib warns of its change from None to SpglibError; both are handled here.
        warnings.filterwarnings("ignore", "Set OLD_ERROR_HANDLING", DeprecationWarning)
        try:
            return spglib.niggli_reduce(lattice, eps=eps)
        except spglib.SpglibError:
            return None
