"""The rules that every crystal obeys, whatever file or object it comes from.

A crystal is periodic in three directions, ordered, made of chemical elements, with a finite cell
that has a volume, and with at most one atom at each place. Every reader and both conversions from
Python objects call these functions, so that one input is refused for one reason everywhere.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pymatgen.core import Element

from flowllm.errors import InvalidCrystal

# Deuterium and tritium are hydrogen.
ATOMIC_NUMBER = {element.symbol: element.Z for element in Element} | {"D": 1, "T": 1}
MIN_VOLUME = 0.1  # Angstrom^3, far below the volume of one hydrogen atom
# Angstrom. Atoms in a text of two decimals are farther apart (0.01 of 2 Angstrom), and so are two
# atoms that are only too close, which is for metrics to judge.
COINCIDENCE = 0.01

_FULL = 1e-6  # largest difference of a full occupancy from 1
_SYMBOL = re.compile(r"([A-Za-z]{1,2})(?:[0-9.]*[+-]|[+-][0-9.]+)?")  # with or without a charge
_SMALL = 128  # atoms; up to here all pairs are faster than a tree
_NEIGHBORS = 8  # candidates of each atom from the tree


def atomic_number(symbol: Any, place: str) -> int:
    """Return the atomic number of a symbol; deuterium and tritium count as hydrogen.

    Args:
        symbol: of an element in any case, with or without a charge (`Fe`, `FE`, `Fe3+`, `O-2`).
        place: of the atom in its file, such as `site 3`, for messages.

    Returns:
        A number from 1 to 118.

    Raises:
        InvalidCrystal: if there is no such element (reason `unknown_element`).
    """
    match = _SYMBOL.fullmatch(symbol) if isinstance(symbol, str) else None
    number = ATOMIC_NUMBER.get(match[1].capitalize()) if match else None
    if number is None:
        raise InvalidCrystal("unknown_element", f"{place}: there is no element {symbol!r}")
    return number


def site_element(occupants: Iterable[tuple[Any, float]], place: str) -> int:
    """Return the atomic number of the one element that occupies a site.

    Ions of one element share a site without disorder (Fe2+ and Fe3+), and so do its isotopes.

    Args:
        occupants: symbol and share of each occupant.
        place: of the site in its file, for messages.

    Returns:
        A number from 1 to 118.

    Raises:
        InvalidCrystal: if the site has no occupant, several elements, or is not full (reason
            `disorder`), or an occupant is no element (reason `unknown_element`).
    """
    occupants = list(occupants)
    numbers = {atomic_number(symbol, place) for symbol, _ in occupants}
    if len(numbers) != 1 or not abs(sum(share for _, share in occupants) - 1) <= _FULL:
        words = " ".join(f"{symbol}:{share:g}" for symbol, share in occupants)
        raise InvalidCrystal("disorder", f"{place} is disordered ({words or 'empty'})")
    return numbers.pop()


def check_numbers(numbers: ArrayLike) -> NDArray[np.uint8]:
    """Return atomic numbers as an array.

    Args:
        numbers: (N,), of chemical elements.

    Returns:
        Array (N,).

    Raises:
        InvalidCrystal: if one is no atomic number from 1 to 118 (reason `unknown_element`).
    """
    found = np.asarray(numbers)
    bad = ~((found >= 1) & (found <= 118) & (found == np.floor(found)))
    if bad.any():
        index = int(np.argmax(bad))
        ghost = " (ASE's 'X')" if found[index] == 0 else ""
        raise InvalidCrystal(
            "unknown_element", f"site {index + 1} has no element: number {found[index]}{ghost}"
        )
    return found.astype(np.uint8)


def check_periodic(pbc: Iterable[Any]) -> None:
    """Check that a crystal is periodic in all three directions.

    Args:
        pbc: three truth values.

    Raises:
        InvalidCrystal: if it is a layer, a chain or a molecule (reason `not_periodic`).
    """
    flags = [bool(flag) for flag in pbc]
    if flags != [True, True, True]:
        words = " ".join("T" if flag else "F" for flag in flags)
        raise InvalidCrystal(
            "not_periodic",
            f"not periodic in all three directions (pbc {words}); a bulk crystal needs a cell and "
            "pbc=True",
        )


def check_geometry(lattice: NDArray[np.float64], frac_coords: NDArray[np.float64]) -> None:
    """Check that a cell and positions can belong to a crystal.

    Args:
        lattice: (3, 3), rows are lattice vectors, Angstrom.
        frac_coords: (N, 3).

    Raises:
        InvalidCrystal: if there are no atoms (reason `unreadable`), a number is not finite, or the
            volume of the cell is 0 or infinite (reason `bad_cell`).
    """
    if not len(frac_coords):
        raise InvalidCrystal("unreadable", "the crystal has no atoms")
    if not (np.isfinite(lattice).all() and np.isfinite(frac_coords).all()):
        raise InvalidCrystal("bad_cell", "the cell or a coordinate is not a finite number")
    volume = abs(determinant(lattice))
    if not MIN_VOLUME < volume < np.inf:
        raise InvalidCrystal("bad_cell", f"the cell has a volume of {volume:.3g} A^3")


def check_crystal(
    lattice: NDArray[np.float64], atomic_numbers: ArrayLike, frac_coords: NDArray[np.float64]
) -> None:
    """Check cell and positions, and that no two atoms are at one place.

    Args:
        lattice: (3, 3), rows are lattice vectors, Angstrom.
        atomic_numbers: (N,).
        frac_coords: (N, 3).

    Raises:
        InvalidCrystal: see `check_geometry`; if two atoms coincide (reason `coinciding_atoms`).
    """
    check_geometry(lattice, frac_coords)
    pair = coinciding_pair(lattice, frac_coords)
    if pair is not None:
        first, second = pair
        numbers = np.asarray(atomic_numbers)
        names = [f"{i + 1} ({Element.from_Z(int(numbers[i])).symbol})" for i in (first, second)]
        raise InvalidCrystal(
            "coinciding_atoms", f"the sites {names[0]} and {names[1]} are at the same place"
        )


def coinciding_pair(
    lattice: NDArray[np.float64],
    frac_coords: NDArray[np.float64],
    radius: float = COINCIDENCE,
) -> tuple[int, int] | None:
    """Return two atoms that are at most a small radius apart, periodic images included.

    Time and memory grow as N log N for large N.

    Args:
        lattice: (3, 3), rows are lattice vectors, Angstrom; finite, with a volume.
        frac_coords: (N, 3), finite.
        radius: Angstrom, less than half the distance of two faces of the cell.

    Returns:
        Two indices, the smaller one first; None if there is no such pair.
    """
    num_atoms = len(frac_coords)
    if num_atoms <= _SMALL:
        apart = frac_coords[:, None] - frac_coords[None]  # (N, N, 3)
    else:
        neighbors = _neighbors(lattice, frac_coords, radius)  # (N, K)
        apart = frac_coords[:, None] - frac_coords[neighbors]  # (N, K, 3)
    # Where atoms coincide, rounding finds the nearest image in every cell with a volume.
    vectors = (apart - np.rint(apart)).reshape(-1, 3) @ lattice
    near = (np.einsum("ij,ij->i", vectors, vectors) <= radius**2).reshape(apart.shape[:2])
    if num_atoms <= _SMALL:
        if np.count_nonzero(near) == num_atoms:  # the diagonal is always there
            return None
        np.fill_diagonal(near, False)
        first, second = np.argwhere(near)[0]
        return int(first), int(second)
    near &= neighbors != np.arange(num_atoms)[:, None]
    if not near.any():
        return None
    first, place = np.argwhere(near)[0]
    second = neighbors[first, place]
    return int(min(first, second)), int(max(first, second))


def determinant(matrix: NDArray[np.float64]) -> float:
    """Return the determinant of a matrix (3, 3).

    It takes a fifth of the time of `numpy.linalg.det`, and is exact for integers of moderate size.

    Args:
        matrix: (3, 3).

    Returns:
        The determinant.
    """
    (a, b, c), (d, e, f), (g, h, i) = matrix.tolist()
    return a * (e * i - f * h) - b * (d * i - f * g) + c * (d * h - e * g)


def _neighbors(
    lattice: NDArray[np.float64], frac_coords: NDArray[np.float64], radius: float
) -> NDArray[np.int64]:
    """Return the candidates (N, K) for coincidence with each atom, itself among them."""
    from scipy.spatial import cKDTree  # slow to import, and only large crystals need it

    # The distances between opposite faces: along each of them, coinciding atoms are at most a
    # radius apart.
    heights = 1 / np.linalg.norm(np.linalg.inv(lattice), axis=0)
    points = (frac_coords - np.floor(frac_coords)) * heights
    points[points >= heights] = 0.0  # rounding
    tree = cKDTree(points, boxsize=heights)
    found = tree.query(points, k=_NEIGHBORS, p=np.inf, distance_upper_bound=1.1 * radius)[1]
    own = np.arange(len(points))[:, None]
    return np.where(found == len(points), own, found)
