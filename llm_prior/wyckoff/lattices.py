"""Lattices of given cells, and the linear maps that leave a lattice as it is within a tolerance."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from functools import cache, lru_cache

import numpy as np
from numpy.typing import NDArray
from pymatgen.core import Lattice

from llm_prior.wyckoff.crystal import FREE_CELL, full_cell, niggli
from llm_prior.wyckoff.spacing import cell_metrics
from llm_prior.wyckoff.table import GRID, NUM_GROUPS, Family, IntArray, SpaceGroup, space_group

SYMPREC = 0.01  # Angstrom; the default of pymatgen's SpacegroupAnalyzer
ANGLE_TOLERANCES = (-1.0, 5.0)  # degrees; the defaults of spglib and of that analyzer
# An operation that moves lengths and atoms less is taken for one. spglib derives a translation from
# one pair of atoms and allows the others SYMPREC, so twice that is not enough.
LOOSE = 3 * SYMPREC
_LOOSE_ANGLE = 5.5  # degrees
# In a centred lattice a change of angles by that much changes the lengths of the axes by so much at
# most, relative to them.
_STRETCH = 0.1
GENERIC_CELLS: dict[Family, tuple[float, ...]] = {
    "triclinic": (11.3, 12.7, 14.9, 81.0, 75.3, 67.7),
    "monoclinic": (11.3, 12.7, 14.9, 101.3),
    "orthorhombic": (11.3, 12.7, 14.9),
    "tetragonal": (12.1, 15.7),
    "hexagonal": (11.1, 19.3),
    "cubic": (13.3,),
}
_STEPS = np.array([v for v in itertools.product((-1, 0, 1), repeat=3) if any(v)])  # (26, 3)


@lru_cache(maxsize=4096)
def primitive_lattice(number: int, cell: tuple[float, ...]) -> NDArray[np.float64]:
    """Return primitive lattice vectors (3, 3), in rows, in Angstrom.

    Args:
        number: space group.
        cell: free parameters of the conventional cell.
    """
    group = space_group(number)
    return group.primitive_basis @ Lattice.from_parameters(*full_cell(group.family, cell)).matrix


@cache
def primitive_change(number: int) -> NDArray[np.float64]:
    """Return the matrix (3, 3) that turns rows of conventional coordinates to primitive ones.

    Args:
        number: space group.
    """
    return np.asarray(np.linalg.inv(space_group(number).primitive_basis), dtype=np.float64)


def metric_of(number: int, cell: Sequence[float]) -> NDArray[np.float64]:
    """Return the metric tensor (3, 3) of a conventional cell, Angstrom^2.

    Args:
        number: space group.
        cell: free parameters of the conventional cell.
    """
    family = space_group(number).family
    every = np.full((1, 6), 90.0)
    every[0, list(FREE_CELL[family])] = cell
    return cell_metrics(family, every)[0]


def further_maps(number: int, cell: tuple[float, ...]) -> IntArray:
    """Return linear maps that a lattice allows: one for each coset of the group's own.

    Args:
        number: space group.
        cell: free parameters of the conventional cell.

    Returns:
        (c, 3, 3) integers in the primitive basis, x -> W x for columns of coordinates; the identity
        first.
    """
    group = space_group(number)
    if not may_be_higher(group, metric_of(number, cell)[None])[0]:
        cell = GENERIC_CELLS[group.family]
    return _cosets(number, cell)


@lru_cache(maxsize=1024)
def _cosets(number: int, cell: tuple[float, ...]) -> IntArray:
    own = _own_maps(number)
    found = [np.eye(3, dtype=np.int64)]
    seen = {w.tobytes() for w in own}
    for w in _maps(primitive_lattice(number, cell)):
        if w.tobytes() not in seen:
            found.append(w)
            seen |= {product.tobytes() for product in own @ w}
    return np.array(found)


@cache
def _own_maps(number: int) -> IntArray:
    """Linear parts (g, 3, 3) of a group in the primitive basis."""
    group = space_group(number)
    forward, backward = group.primitive_basis.T, primitive_change(number).T
    maps = np.rint(backward @ group.rotations @ forward).astype(np.int64)
    return np.unique(maps, axis=0)


def _maps(lattice: NDArray[np.float64]) -> IntArray:
    """Linear maps (m, 3, 3) that keep lengths and angles of a lattice within the tolerances.

    As in spglib they are looked for among the shortest vectors of a reduced cell.
    """
    reduced = niggli(lattice)
    change = np.rint(reduced @ np.linalg.inv(lattice))  # reduced = change @ lattice
    vectors = _STEPS @ reduced
    lengths, own = np.linalg.norm(vectors, axis=1), np.linalg.norm(reduced, axis=1)
    near = [np.flatnonzero(np.abs(lengths - length) < LOOSE) for length in own]
    places = np.stack(np.meshgrid(*near, indexing="ij"), -1).reshape(-1, 3)  # of a, b, c
    rows = _STEPS[places]  # (m, 3, 3): a' = rows[0] @ reduced and so on
    good = np.abs(np.rint(np.linalg.det(rows))) == 1
    unit = vectors / lengths[:, None]
    own_unit = reduced / own[:, None]
    for i, j in ((1, 2), (0, 2), (0, 1)):
        cosines = (unit[places[:, i]] * unit[places[:, j]]).sum(1)
        turned = np.arccos(cosines.clip(-1, 1)) - np.arccos(
            np.clip(own_unit[i] @ own_unit[j], -1, 1)
        )
        good &= (np.abs(turned) < np.radians(_LOOSE_ANGLE)) | (
            np.abs(np.sin(turned)) * max(own[i], own[j]) < LOOSE
        )
    # Coordinates f of a' are those of f @ rows in the reduced cell.
    inverse = np.rint(np.linalg.inv(change))
    maps = change.T @ rows[good].transpose(0, 2, 1) @ inverse.T
    return np.rint(maps).astype(np.int64)


def may_be_higher(group: SpaceGroup, metrics: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Return where a lattice may have more symmetry than the family of the group.

    A further symmetry takes some axis to a lattice vector that is not as long as it in general, so
    only cells with such a coincidence can have one. In a centred lattice the angles between
    primitive vectors, and in the monoclinic and triclinic families the free ones, may be within the
    tolerance of a higher lattice.

    Args:
        group: the space group.
        metrics: (k, 3, 3) metric tensors of the conventional cell, Angstrom^2.

    Returns:
        (k,) booleans.
    """
    if group.family in ("monoclinic", "triclinic"):
        return np.ones(len(metrics), dtype=bool)
    vectors, differ = _coincidences(group.number)
    lengths = np.sqrt(np.einsum("vi,kij,vj->kv", vectors, metrics, vectors))
    axes = np.sqrt(np.einsum("kii->ki", metrics))
    tolerance = LOOSE + (_STRETCH * axes[:, :, None] if len(group.centring) > 1 else 0)
    near = np.abs(lengths[:, None] - axes[:, :, None]) < tolerance  # (k, 3, v)
    return (near & differ).any((1, 2))


@lru_cache(maxsize=NUM_GROUPS)
def _coincidences(number: int) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Short lattice vectors (v, 3), and (3, v) where one is not an axis's length in general."""
    group = space_group(number)
    steps = np.array(list(itertools.product(range(-2, 3), repeat=3)))
    vectors = (steps[:, None] + group.centring / GRID).reshape(-1, 3)
    vectors = vectors[(np.abs(vectors) <= 2).all(1) & (vectors != 0).any(1)]
    lattice = Lattice.from_parameters(*full_cell(group.family, GENERIC_CELLS[group.family])).matrix
    lengths = np.linalg.norm(vectors @ lattice, axis=1)
    axes = np.linalg.norm(lattice, axis=1)
    return vectors, np.abs(axes[:, None] - lengths) > 1e-6
