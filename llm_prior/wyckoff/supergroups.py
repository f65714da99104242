"""Crystals that have more symmetry than the group in which they are described.

Three causes: the positions alone (two atoms in P1 always have an inversion centre), a cell whose
parameters fit a higher lattice, and coordinates that happen to fit a supergroup. The symmetry of a
crystal is what the atoms of all its elements have in common, so a crystal has exactly its group if
the atoms of some of its elements have.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from pymatgen.core import Lattice

from llm_prior.wyckoff.crystal import find_symmetry, full_cell
from llm_prior.wyckoff.orbits import images
from llm_prior.wyckoff.table import GRID, NUM_GROUPS, Family, SpaceGroup, space_group

SYMPREC = 0.01  # Angstrom; the default of pymatgen's SpacegroupAnalyzer
ANGLE_TOLERANCES = (-1.0, 5.0)  # degrees; the defaults of spglib and of that analyzer
_LOOSE = 3 * SYMPREC  # an operation this near is taken for one
_GENERIC: dict[Family, tuple[float, ...]] = {
    "triclinic": (11.3, 12.7, 14.9, 81.0, 75.3, 67.7),
    "monoclinic": (11.3, 12.7, 14.9, 101.3),
    "orthorhombic": (11.3, 12.7, 14.9),
    "tetragonal": (12.1, 15.7),
    "hexagonal": (12.1, 15.7),
    "cubic": (13.3,),
}
_DRAWS = 3
_SAME_SHIFT = 1e-4  # fractional


@lru_cache(maxsize=200_000)
def keeps_group(number: int, parts: tuple[tuple[int, ...], ...]) -> bool:
    """Return whether a crystal with orbits on these positions has exactly the group, for free
    parameters without a relation.

    Args:
        number: space group.
        parts: for each element the places of its letters, both sorted.
    """
    positions = space_group(number).positions
    for part in parts:
        # Another orbit of the element cannot match one that has free coordinates. (Tested: every
        # pair of positions in every group.)
        if any(
            positions[p].characteristic and (positions[p].num_free or len(part) == 1) for p in part
        ):
            return True
    if len(parts) > 1:
        largest_first = sorted(set(parts), key=lambda part: (-part[-1], len(part)))
        if any(keeps_group(number, (part,)) for part in largest_first):
            return True
    # The operations of a crystal are those that the atoms of all its elements have.
    order = positions[-1].num_atoms  # of the general position
    seen: Counter[tuple[int, ...]] = Counter()
    common: _Operations | None = None
    for part in parts:
        found = _own_operations(number, part, seen[part])
        seen[part] += 1
        if found is None:
            return False
        common = found if common is None else _shared(common, found)
        if len(common.rotations) == order:
            return True
    return False


class _Operations(NamedTuple):
    """Operations in the basis of a primitive cell, one of each coset of its lattice.

    Attributes:
        rotations: (k, 3, 3) integers.
        translations: (k, 3) fractional.
    """

    rotations: NDArray[np.int64]
    translations: NDArray[np.float64]


@lru_cache(maxsize=100_000)
def _own_operations(number: int, part: tuple[int, ...], variant: int) -> _Operations | None:
    """The operations of one element's atoms, or None where spglib's search fails.

    Args:
        number: space group.
        part: places of the letters.
        variant: another one has other free coordinates.
    """
    group = space_group(number)
    lattice = primitive_lattice(group, _GENERIC[group.family])
    for draw in range(_DRAWS):
        rng = np.random.default_rng([draw + 1, variant + 1, *(place + 1 for place in part)])
        points = [
            images(number, group.positions[place].letter)(
                rng.random(group.positions[place].num_free)
            )
            for place in part
        ]
        coords = np.concatenate(points) @ np.linalg.inv(group.primitive_basis)
        dataset = find_symmetry(lattice, coords, [1] * len(coords), 1e-3)
        if dataset is not None:
            return _Operations(np.asarray(dataset.rotations), np.asarray(dataset.translations))
    return None


def _shared(one: _Operations, other: _Operations) -> _Operations:
    """The operations of the first that the second has too."""
    same = (one.rotations[:, None] == other.rotations).all((2, 3))  # (k, l)
    gaps = one.translations[:, None] - other.translations
    same &= (np.abs(gaps - np.rint(gaps)) < _SAME_SHIFT).all(2)
    kept = same.any(1)
    return _Operations(one.rotations[kept], one.translations[kept])


def primitive_lattice(group: SpaceGroup, cell: Sequence[float]) -> NDArray[np.float64]:
    """Return primitive lattice vectors (3, 3), in rows, in Angstrom.

    Args:
        group: the space group.
        cell: free parameters of the conventional cell.
    """
    return (
        group.primitive_basis
        @ Lattice.from_parameters(*full_cell(group.family, tuple(cell))).matrix
    )


def has_group(
    group: SpaceGroup,
    lattice: NDArray[np.float64],
    points: NDArray[np.float64],
    kinds: Sequence[int],
    symprec: float = SYMPREC,
) -> bool:
    """Return whether spglib finds exactly the group, at both tolerances of angles.

    Args:
        group: the space group.
        lattice: (3, 3) primitive lattice vectors in rows.
        points: (n, 3) coordinates in the conventional cell.
        kinds: the element of each point, as a number.
        symprec: distance in Angstrom.
    """
    coords = points @ np.linalg.inv(group.primitive_basis)
    for tolerance in ANGLE_TOLERANCES:
        dataset = find_symmetry(lattice, coords, kinds, symprec, tolerance)
        if dataset is None or int(dataset.number) != group.number:
            return False
    return True


def may_be_higher(group: SpaceGroup, metrics: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Return where a lattice may have more symmetry than the family of the group.

    A further symmetry takes some axis to a lattice vector that is not as long as it in general, so
    only cells with such a coincidence can have one. A free angle may always be within the angle
    tolerance of a higher lattice.

    Args:
        group: the space group.
        metrics: (k, 3, 3) metric tensors of the conventional cell, Angstrom^2.

    Returns:
        (k,) booleans.
    """
    vectors, differ = _coincidences(group.number)
    lengths = np.sqrt(np.einsum("vi,kij,vj->kv", vectors, metrics, vectors))
    axes = np.sqrt(np.einsum("kii->ki", metrics))
    if group.family in ("monoclinic", "triclinic"):
        return np.ones(len(metrics), dtype=bool)
    near = np.abs(lengths[:, None] - axes[:, :, None]) < _LOOSE  # (k, 3, v)
    return (near & differ).any((1, 2))


@lru_cache(maxsize=NUM_GROUPS)
def _coincidences(number: int) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Short lattice vectors (v, 3), and (3, v) where one is not an axis's length in general."""
    group = space_group(number)
    steps = np.array(list(itertools.product(range(-2, 3), repeat=3)))
    vectors = (steps[:, None] + group.centring / GRID).reshape(-1, 3)
    vectors = vectors[(np.abs(vectors) <= 2).all(1) & (vectors != 0).any(1)]
    lattice = Lattice.from_parameters(*full_cell(group.family, _GENERIC[group.family])).matrix
    lengths = np.linalg.norm(vectors @ lattice, axis=1)
    axes = np.linalg.norm(lattice, axis=1)
    return vectors, np.abs(axes[:, None] - lengths) > 1e-6


def extra_operations(
    group: SpaceGroup,
    lattice: NDArray[np.float64],
    points: NDArray[np.float64],
    kinds: Sequence[int],
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the operations that some atoms have beyond the group, one of each coset.

    Args:
        group: the space group.
        lattice: (3, 3) primitive lattice vectors in rows.
        points: (n, 3) coordinates in the conventional cell of these atoms.
        kinds: the element of each point, as a number.

    Returns:
        Linear parts (k, 3, 3) and translations (k, 3) in coordinates of the conventional cell.
    """
    basis = group.primitive_basis
    coords = points @ np.linalg.inv(basis)
    dataset = find_symmetry(lattice, coords, kinds, _LOOSE)
    if dataset is None:
        return np.zeros((0, 3, 3)), np.zeros((0, 3))
    # x = f @ basis in rows, so W_conventional = basis^T W basis^-T.
    forward, backward = basis.T, np.linalg.inv(basis.T)
    rotations = forward @ dataset.rotations @ backward
    shifts = dataset.translations @ basis
    tolerance = 2 * _LOOSE / np.linalg.norm(lattice, axis=1).min()
    ours = group.rotations.astype(float), group.shifts / GRID
    kept: list[int] = []
    seen: list[tuple[NDArray[np.float64], NDArray[np.float64]]] = [ours]
    for place, (w, t) in enumerate(zip(rotations, shifts, strict=True)):
        if any(_is_among(w, t, *coset, tolerance) for coset in seen):
            continue
        kept.append(place)
        seen.append((w @ ours[0], ours[1] @ w.T + t))
    return rotations[kept], shifts[kept]


def _is_among(
    w: NDArray[np.float64],
    t: NDArray[np.float64],
    rotations: NDArray[np.float64],
    shifts: NDArray[np.float64],
    tolerance: float,
) -> bool:
    same = np.abs(rotations - w).max((1, 2)) < 1e-6
    gaps = shifts[same] - t
    return bool((np.abs(gaps - np.rint(gaps)).max(1, initial=0) < tolerance).any())
