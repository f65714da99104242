"""Space group, orbits and free parameters of a structure, by spglib."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from pymatgen.core import Structure

from llm_prior.errors import PriorError
from llm_prior.text import site_symbols
from llm_prior.wyckoff.crystal import Orbit, WyckoffCrystal, free_cell, symmetry_dataset
from llm_prior.wyckoff.orbits import images
from llm_prior.wyckoff.table import GRID, WyckoffPosition, space_group

DEFAULT_SYMPREC = 0.1  # Angstrom
_FALLBACKS = (1.0, 0.1, 0.01)  # times symprec
_FARTHEST = 1e-2  # fractional, of an idealised atom from its position


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
        crystal = _describe_at(structure, symbols, symprec * scale)
        if crystal is None:
            continue
        partner = crystal.group.enantiomorph
        if keep_hand or partner is None or partner > crystal.spacegroup:
            return crystal
        mirrored = Structure(structure.lattice, structure.species, -structure.frac_coords)
        return describe(mirrored, symprec * scale, keep_hand=True)
    raise PriorError(
        f"spglib finds no symmetry of {structure.composition.formula} at a symprec of {symprec:g} "
        "Angstrom or less; check its cell and coordinates, or drop it"
    )


def describe_at(structure: Structure, symprec: float) -> WyckoffCrystal | None:
    """Return the description of a crystal at exactly this `symprec`, its hand kept.

    Args:
        structure: an ordered crystal in any cell.
        symprec: distance in Angstrom within which atoms count as symmetric.

    Returns:
        The crystal, made exactly symmetric; None if the search fails.

    Raises:
        PriorError: if a site is disordered or no chemical element.
    """
    return _describe_at(structure, site_symbols(structure), symprec)


def _describe_at(structure: Structure, symbols: list[str], symprec: float) -> WyckoffCrystal | None:
    dataset = symmetry_dataset(structure, symprec)
    return None if dataset is None else _from_dataset(dataset, symbols)


def _from_dataset(dataset: Any, symbols: list[str]) -> WyckoffCrystal | None:
    """The crystal of spglib's standardised cell, or None if that has other atoms than orbits."""
    group = space_group(int(dataset.number))
    if dataset.hall_number != group.hall_number:
        raise AssertionError(f"spglib chose Hall number {dataset.hall_number} for {group}")
    site_of = {int(place): site for site, place in enumerate(dataset.mapping_to_primitive)}
    sites = [site_of[int(place)] for place in dataset.std_mapping_to_primitive]
    labels = np.asarray(dataset.crystallographic_orbits)[sites]  # (n,) of standardised atoms
    positions = np.asarray(dataset.std_positions)
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
    lengths = np.linalg.norm(dataset.std_lattice, axis=1)
    unit = dataset.std_lattice / lengths[:, None]
    cosines = [unit[1] @ unit[2], unit[0] @ unit[2], unit[0] @ unit[1]]
    angles = np.degrees(np.arccos(np.clip(cosines, -1, 1)))
    cell = free_cell(group.family, tuple(lengths), tuple(angles))
    return WyckoffCrystal(spacegroup=group.number, orbits=tuple(orbits), cell=cell)


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
