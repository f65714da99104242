"""Atoms of the cell from atom sites and symmetry operations.

A position on a symmetry element is rarely written exactly: 0.333 is not 1/3, and a threefold axis
then makes three atoms of one. Such a site is moved onto the element first, unless its multiplicity
says that it is not on one.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from flowllm.crystals.cif.operations import Operations
from flowllm.crystals.cif.sites import MAX_ATOMS, Sites
from flowllm.crystals.rules import COINCIDENCE
from flowllm.errors import InvalidCrystal

MIN_DISTANCE = 0.5  # Angstrom; no two atoms of a crystal are nearer
_EXACT = 1e-3  # Angstrom; images of a site on a symmetry element, after the move
_MOVE = 0.01  # Angstrom; a site may move by that much, or as far as its rounding explains
_QUIET_MOVE = 1e-4  # fractional; larger moves are noted
_CHUNK = 20_000_000  # numbers in the arrays of one chunk of sites


@dataclass(frozen=True)
class Atoms:
    """The atoms of the cell.

    Attributes:
        sites: (N,), index of the site that each atom comes from.
        frac_coords: (N, 3).
        multiplicities: (number of sites,), atoms of each site.
        moves: (number of sites,), largest change of a coordinate by the move onto a symmetry
            element.
    """

    sites: NDArray[np.int64]
    frac_coords: NDArray[np.float64]
    multiplicities: NDArray[np.int64]
    moves: NDArray[np.float64]

    def note(self, labels: list[str]) -> str | None:
        """Return which site moved onto a symmetry element and how far; None if none did."""
        moved = np.flatnonzero(self.moves > _QUIET_MOVE)
        if not len(moved):
            return None
        names = ", ".join(labels[i] for i in moved[:5]) + (", ..." if len(moved) > 5 else "")
        return (
            f"rounded positions ({names}) are moved onto symmetry elements, by at most "
            f"{self.moves.max():.1g} of a cell vector"
        )


def expand(sites: Sites, operations: Operations, lattice: NDArray[np.float64]) -> Atoms:
    """Return all atoms of the cell.

    Args:
        sites: S of them.
        operations: G of them.
        lattice: (3, 3), rows are lattice vectors, Angstrom.

    Returns:
        The atoms, those of one site together, in the order of the sites.

    Raises:
        InvalidCrystal: if images of a site are less than 0.5 Angstrom apart, its position is not
            a rounded one, and its multiplicity does not say so (reason `coinciding_atoms`), or
            there are more than 100,000 atoms (`too_many_atoms`).
    """
    num_sites, order = len(sites.labels), len(operations)
    if num_sites * order > 10 * MAX_ATOMS:  # even if most sites are special
        raise InvalidCrystal(
            "too_many_atoms",
            f"{num_sites} sites with {order} operations; at most {MAX_ATOMS} atoms are read",
        )
    if order == 1:
        one = np.ones(num_sites, dtype=np.int64)
        return Atoms(np.arange(num_sites), sites.frac_coords, one, np.zeros(num_sites))
    special = np.zeros(num_sites, dtype=bool)
    size = max(1, _CHUNK // (3 * order))
    for start in range(0, num_sites, size):
        chunk = slice(start, start + size)
        near = _distances(sites.frac_coords[chunk], operations, lattice)[0] < MIN_DISTANCE
        special[chunk] = np.count_nonzero(near, axis=1) > 1  # the identity is always near
    positions = sites.frac_coords.copy()
    kept: list[NDArray[np.int64] | None] = [None] * num_sites
    for index in np.flatnonzero(special).tolist():
        if not _is_general(sites, index, operations, lattice):
            positions[index], kept[index] = _special(sites, index, operations, lattice)
    everything = np.arange(order)
    chosen = [everything if some is None else some for some in kept]
    multiplicities = np.array([len(some) for some in chosen])
    if multiplicities.sum() > MAX_ATOMS:
        raise InvalidCrystal(
            "too_many_atoms",
            f"{multiplicities.sum()} atoms in the cell; at most {MAX_ATOMS} are read",
        )
    owners = np.repeat(np.arange(num_sites), multiplicities)
    which = np.concatenate(chosen)
    images = np.einsum("nab,nb->na", operations.rotations[which], positions[owners])
    images += operations.translations[which]
    moves = np.abs(positions - sites.frac_coords).max(axis=1)
    return Atoms(owners, images, multiplicities, moves)


def _is_general(
    sites: Sites, index: int, operations: Operations, lattice: NDArray[np.float64]
) -> bool:
    """Return whether a site is a general position by its multiplicity, and no images coincide."""
    if sites.multiplicities[index] != len(operations):
        return False
    distances, _ = _distances(sites.frac_coords[index][None], operations, lattice)
    return np.count_nonzero(distances <= COINCIDENCE) == 1  # the identity


def _special(
    sites: Sites, index: int, operations: Operations, lattice: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Return the position on the symmetry element, and one operation for each image."""
    position = sites.frac_coords[index]
    distances, shifts = _distances(position[None], operations, lattice)
    near = distances[0] < MIN_DISTANCE
    moved = position + shifts[0, near].mean(axis=0)
    change = moved - position
    is_fixed = np.abs(operations.rotations[near].mean(axis=0)).max(axis=1) < 1e-6  # (3,)
    is_rounded = _rounds_to(moved, position, sites.last_places[index], is_fixed)
    again = _distances(moved[None], operations, lattice)[0][0]
    on_element = again < _EXACT
    apart = float(distances[0, near].max())
    if (
        not (is_rounded or np.linalg.norm(change @ lattice) <= _MOVE)
        or (again[~on_element] < MIN_DISTANCE).any()
    ):
        raise InvalidCrystal(
            "coinciding_atoms",
            f"images of site {sites.labels[index]} are {apart:.2g} A apart, and its position is "
            "no rounded one on a symmetry element; correct it",
        )
    # Operations g and g s, with s in the site symmetry group, give the same image.
    cosets = operations.products[:, on_element].min(axis=1)
    return moved, np.unique(cosets)


def _rounds_to(
    exact: NDArray[np.float64],
    written: NDArray[np.float64],
    last_places: NDArray[np.float64],
    is_fixed: NDArray[np.bool_],
) -> bool:
    """Return whether numbers (3,) are others that were rounded, or cut, at their last places.

    A coordinate that the symmetry element does not fix is that of the nearest position, and not the
    one that was rounded, so that one unit is allowed.
    """
    change = exact - written
    is_round = np.abs(change) <= np.where(is_fixed, 0.51, 1.01) * last_places + 1e-9
    is_cut = (np.abs(change) < 1.01 * last_places) & (change * written > 0)
    return bool((is_round | is_cut).all())


def _distances(
    frac_coords: NDArray[np.float64], operations: Operations, lattice: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the distance (S, G) in Angstrom of each image from its site, and the shift (S, G, 3).

    The image is the nearest one, as far as that is nearer than half a cell.
    """
    images = np.einsum("gab,sb->sga", operations.rotations, frac_coords)
    shifts = images + operations.translations - frac_coords[:, None]
    shifts -= np.round(shifts)
    return np.linalg.norm(shifts @ lattice, axis=-1), shifts
