"""Space group, orbits and free parameters of a structure, by moyo and spglib."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from pymatgen.core import Structure

from llm_prior.errors import PriorError
from llm_prior.text import site_symbols
from llm_prior.wyckoff.crystal import (
    Orbit,
    WyckoffCrystal,
    exact_symmetry,
    free_cell,
    symmetry_dataset,
)
from llm_prior.wyckoff.orbits import images
from llm_prior.wyckoff.table import GRID, WyckoffPosition, space_group

DEFAULT_SYMPREC = 0.1  # Angstrom
_FALLBACKS = (1.0, 0.1, 0.01)  # times symprec
_FARTHEST = 1e-2  # fractional, of an idealised atom from its position


class Description(NamedTuple):
    """A crystal of N atoms made exactly symmetric, and how far that is from the crystal itself.

    Attributes:
        crystal: space group, orbits and free parameters.
        lattice: (3, 3) rows of the given cell, made exactly symmetric, Angstrom.
        frac_coords: (N, 3) of the given sites in it, made exactly symmetric.
        misfit: largest distance in Angstrom between an atom and its place in `crystal`, or
            between the ends of two vectors of the conventional cells, after a rigid motion.
    """

    crystal: WyckoffCrystal
    lattice: NDArray[np.float64]
    frac_coords: NDArray[np.float64]
    misfit: float


def describe(
    structure: Structure, symprec: float = DEFAULT_SYMPREC, *, keep_hand: bool = False
) -> WyckoffCrystal:
    """Return the crystal, made exactly symmetric, as space group, orbits and free parameters.

    Where the search fails at `symprec`, or its result does not hold together (spglib merges atoms
    closer than that), it is repeated at a tenth and a hundredth.

    Args:
        structure: an ordered crystal in any cell.
        symprec: distance in Angstrom within which atoms count as symmetric.
        keep_hand: False replaces a crystal of the second member of the 11 enantiomorphic pairs of
            groups by its mirror image, which has the same energy.

    Raises:
        PriorError: if a site is disordered or no chemical element, or no search succeeds.
    """
    symbols = site_symbols(structure)
    for scale in _FALLBACKS:
        found = _describe_at(structure, symbols, symprec * scale)
        if found is None:
            continue
        crystal = found.crystal
        partner = crystal.group.enantiomorph
        if keep_hand or partner is None or partner > crystal.spacegroup:
            return crystal
        mirrored = Structure(structure.lattice, structure.species, -structure.frac_coords)
        return describe(mirrored, symprec * scale, keep_hand=True)
    raise PriorError(
        f"spglib finds no symmetry of {structure.composition.formula} at a symprec of {symprec:g} "
        "Angstrom or less; check its cell and coordinates, or drop it"
    )


def describe_at(structure: Structure, symprec: float) -> Description | None:
    """Return the description of a crystal at exactly this `symprec`, its hand kept.

    Args:
        structure: an ordered crystal in any cell.
        symprec: distance in Angstrom within which atoms count as symmetric.

    Returns:
        The description; None if the search fails.

    Raises:
        PriorError: if a site is disordered or no chemical element.
    """
    return _describe_at(structure, site_symbols(structure), symprec)


def _describe_at(structure: Structure, symbols: list[str], symprec: float) -> Description | None:
    """The description at this symprec; None if spglib's cell has other atoms than orbits."""
    dataset = exact_symmetry(structure, symprec)
    if dataset is None:
        dataset = symmetry_dataset(structure, symprec)
    if dataset is None:
        return None
    group = space_group(int(dataset.number))
    if dataset.hall_number != group.hall_number:
        raise AssertionError(f"spglib chose Hall number {dataset.hall_number} for {group}")
    site_of = {int(place): site for site, place in enumerate(dataset.mapping_to_primitive)}
    sites = [site_of[int(place)] for place in dataset.std_mapping_to_primitive]
    site_labels = np.asarray(dataset.crystallographic_orbits)  # (N,) of the given atoms
    labels = site_labels[sites]  # (n,) of standardised atoms
    positions = np.asarray(dataset.std_positions)
    change = np.asarray(dataset.transformation_matrix)  # (3, 3), x_conventional = change x + shift
    given = structure.frac_coords @ change.T + dataset.origin_shift  # (N, 3)
    moves = np.empty_like(given)  # onto the orbits
    orbits = []
    for label in dict.fromkeys(labels.tolist()):
        members = positions[labels == label]
        site = sites[int(np.argmax(labels == label))]
        position = group.position(dataset.wyckoffs[site])
        if len(members) != position.multiplicity:
            return None
        coords = _free_coords(group.number, position, members)
        if coords is None:
            return None
        orbits.append(Orbit(element=symbols[site], letter=position.letter, coords=coords))
        expected = images(group.number, position.letter)(np.array(coords, dtype=float))
        points = (expected[:, None] + group.centring / GRID).reshape(-1, 3)  # of the orbit
        gaps = points - given[site_labels == label][:, None]  # (N of the orbit, points, 3)
        gaps -= np.rint(gaps)
        nearest = np.linalg.norm(gaps @ dataset.std_lattice, axis=-1).argmin(1)
        moves[site_labels == label] = gaps[np.arange(len(gaps)), nearest]
    lengths = np.linalg.norm(dataset.std_lattice, axis=1)
    unit = dataset.std_lattice / lengths[:, None]
    cosines = [unit[1] @ unit[2], unit[0] @ unit[2], unit[0] @ unit[1]]
    angles = np.degrees(np.arccos(np.clip(cosines, -1, 1)))
    cell = free_cell(group.family, tuple(lengths), tuple(angles))
    crystal = WyckoffCrystal(spacegroup=group.number, orbits=tuple(orbits), cell=cell)
    back = np.linalg.inv(change)
    vectors = dataset.std_lattice @ dataset.std_rotation_matrix  # as the given cell is turned
    shifts = np.concatenate(
        [moves @ dataset.std_lattice, vectors - back.T @ structure.lattice.matrix]
    )
    return Description(
        crystal=crystal,
        lattice=change.T @ vectors,
        frac_coords=structure.frac_coords + moves @ back.T,
        misfit=float(np.linalg.norm(shifts, axis=1).max()),
    )


def _free_coords(
    number: int, position: WyckoffPosition, members: NDArray[np.float64]
) -> tuple[float, ...] | None:
    """The free coordinates of an orbit from its points (n, 3); None if they are no such orbit."""
    free = (members - position.shift / GRID)[:, position.rows]  # (n, d)
    gaps = members - free @ position.linear.T - position.shift / GRID
    off = np.abs(gaps - np.rint(gaps)).max(1)
    coords = free[int(np.argmin(off))]
    expected = images(number, position.letter)(coords)  # (p, 3)
    gaps = expected[:, None] - members
    distance = np.abs(gaps - np.rint(gaps)).max(-1).min(1)
    if distance.max() > _FARTHEST:
        return None
    return tuple(coords.tolist())
