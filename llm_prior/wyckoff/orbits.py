"""Exact maps between the points of Wyckoff positions, cached for each group and letter.

A point of a position is M u + s for free coordinates u. An operation of the group, or of its
normalizer, takes M u + s to a point of an orbit whose first representative is M' u' + s'; then
u' = A u + b, and A and b are found here in integers (b and s in units of 1/24).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from llm_prior.wyckoff.table import (
    GRID,
    AffineMap,
    IntArray,
    SpaceGroup,
    WyckoffPosition,
    space_group,
)


@dataclass(frozen=True, kw_only=True, eq=False)
class CoordinateMaps:
    """A stack of k maps u -> linear @ u + shift / 24.

    Attributes:
        linear: (k, m, d) integers.
        shift: (k, m) integers in units of 1/24.
    """

    linear: IntArray
    shift: IntArray

    def __call__(self, coords: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the k images.

        Args:
            coords: (..., d) free coordinates.

        Returns:
            (..., k, m) mapped coordinates, not wrapped.
        """
        return np.einsum("kmd,...d->...km", self.linear, coords) + self.shift / GRID


@lru_cache(maxsize=4096)
def images(number: int, letter: str) -> CoordinateMaps:
    """Return the equivalent points of a position in the primitive cell.

    Args:
        number: space group.
        letter: Wyckoff letter.

    Returns:
        Maps from the d free coordinates to the conventional coordinates (3,) of each of the
        `num_atoms` points; no two are the same up to a lattice vector for all coordinates.
    """
    group = space_group(number)
    position = group.position(letter)
    linear = group.rotations @ position.linear  # (g, 3, d)
    shift = group.rotations @ position.shift + group.shifts  # (g, 3)
    seen: dict[tuple[int, ...], int] = {}
    for index, (matrix, offset) in enumerate(zip(linear, shift, strict=True)):
        offsets = (offset + group.centring) % GRID  # (l, 3)
        name = (*matrix.ravel().tolist(), *min(map(tuple, offsets.tolist())))
        seen.setdefault(name, index)
    kept = list(seen.values())
    assert len(kept) == position.num_atoms, (number, letter, len(kept))
    return CoordinateMaps(linear=linear[kept], shift=shift[kept] % GRID)


@lru_cache(maxsize=4096)
def equivalents(number: int, letter: str) -> CoordinateMaps:
    """Return the maps of free coordinates that leave the orbit as it is.

    Args:
        number: space group.
        letter: Wyckoff letter.

    Returns:
        k maps from d to d coordinates, one of them the identity: u and A u + b, modulo 1, describe
        the same orbit.
    """
    group = space_group(number)
    position = group.position(letter)
    linear, shift, _ = _onto(group, position, position, _IDENTITY)
    table = np.concatenate([linear.reshape(len(linear), -1), shift], axis=1)
    _, first = np.unique(table, axis=0, return_index=True)
    return CoordinateMaps(linear=linear[first], shift=shift[first])


def induced(group: SpaceGroup, mapping: AffineMap, letter: str) -> tuple[str, IntArray, IntArray]:
    """Return how an element of the normalizer maps the orbits of a position.

    Args:
        group: the space group.
        mapping: x -> P x + p that normalizes it.
        letter: Wyckoff letter of the orbits.

    Returns:
        The letter of the mapped orbits, and A (d, d) and b (d,), in 1/24, with u' = A u + b for
        the free coordinates.
    """
    position = group.position(letter)
    for target in group.positions:
        if (target.multiplicity, target.num_free) != (position.multiplicity, position.num_free):
            continue
        linear, shift, _ = _onto(group, position, target, mapping)
        if len(linear):
            return target.letter, linear[0], shift[0]
    raise AssertionError(f"{mapping} does not normalize space group {group.number}")


@lru_cache(maxsize=16384)
def coset_letter(number: int, coset: int, letter: str) -> tuple[str, IntArray, IntArray]:
    """Return `induced` of a coset of the normalizer by its place in `SpaceGroup.cosets`.

    Args:
        number: space group.
        coset: place of the coset.
        letter: Wyckoff letter of the orbits.
    """
    group = space_group(number)
    return induced(group, group.cosets[coset], letter)


@lru_cache(maxsize=4096)
def cell_letter(number: int, cell: int, letter: str) -> tuple[str, IntArray, IntArray]:
    """Return `induced` of a change of the cell by its place in `SpaceGroup.cells`.

    Args:
        number: space group.
        cell: place of the change.
        letter: Wyckoff letter of the orbits.
    """
    group = space_group(number)
    return induced(group, group.cells[cell], letter)


@lru_cache(maxsize=4096)
def differences(number: int, letter: str) -> CoordinateMaps:
    """Return the vectors from a point of a position to its images under the group.

    Args:
        number: space group.
        letter: Wyckoff letter.

    Returns:
        Maps from the free coordinates to (3,) conventional coordinates, modulo 1, without the
        operations of the site-symmetry group. Where one of them is a lattice vector, the point
        lies on a more special position.
    """
    group = space_group(number)
    position = group.position(letter)
    linear = (group.rotations - np.eye(3, dtype=int)) @ position.linear  # (g, 3, d)
    shift = (group.rotations - np.eye(3, dtype=int)) @ position.shift + group.shifts
    shift %= GRID
    moves = (linear != 0).any((1, 2)) | (shift != 0).any(1)
    table = np.concatenate([linear.reshape(len(linear), -1), shift], axis=1)[moves]
    # A vector and its negative say the same.
    opposite = table.copy()
    opposite[:, :-3] *= -1
    opposite[:, -3:] = -opposite[:, -3:] % GRID
    table = np.array(
        [min(a, b) for a, b in zip(table.tolist(), opposite.tolist(), strict=True)],
        dtype=np.int64,
    ).reshape(-1, table.shape[1])
    table = np.unique(table, axis=0)
    return CoordinateMaps(
        linear=table[:, :-3].reshape(len(table), 3, position.num_free), shift=table[:, -3:]
    )


@lru_cache(maxsize=16384)
def decided(number: int, letter: str, place: int) -> CoordinateMaps:
    """Return those of `differences` that a free coordinate decides: the last they depend on.

    Args:
        number: space group.
        letter: Wyckoff letter.
        place: place of the free coordinate.
    """
    maps = differences(number, letter)
    decides = last_dependence(maps) == place
    return CoordinateMaps(linear=maps.linear[decides], shift=maps.shift[decides])


def special_bins(
    number: int,
    letter: str,
    bins: int,
    ticks: tuple[int, ...] = (),
    values: NDArray[np.int64] | None = None,
) -> NDArray[np.bool_]:
    """Return the bins of the next free coordinate that lie on a more special position.

    The last free coordinate on which a condition depends is the one that is masked, so a row of
    coordinates of which none was masked lies on no more special position.

    Args:
        number: space group.
        letter: Wyckoff letter.
        bins: number of bins of a coordinate; bin k is at k / bins.
        ticks: bins of the free coordinates before this one.
        values: (k,) the bins that are looked at; None for all.

    Returns:
        (k,) True where the coordinate must not be.
    """
    place = len(ticks)
    position = space_group(number).position(letter)
    if place >= position.num_free:
        raise ValueError(f"position {letter} of group {number} has {position.num_free} coordinates")
    maps = decided(number, letter, place)
    linear, shift = maps.linear, maps.shift
    if values is None:
        values = np.arange(bins)
    known = linear[:, :, :place] @ np.array(ticks, dtype=np.int64)  # (m, 3)
    every = linear[:, None, :, place] * values[:, None] + known[:, None]  # (m, k, 3)
    whole = (GRID * every + bins * shift[:, None]) % (GRID * bins) == 0
    return whole.all(-1).any(0)


def lies_special(number: int, letter: str, bins: int, ticks: tuple[int, ...]) -> bool:
    """Return whether coordinates on the grid lie on a more special position.

    Args:
        number: space group.
        letter: Wyckoff letter.
        bins: number of bins of a coordinate.
        ticks: bins of all free coordinates.
    """
    maps = differences(number, letter)
    values = GRID * (maps.linear @ np.array(ticks, dtype=np.int64)) + bins * maps.shift
    return bool((values % (GRID * bins) == 0).all(-1).any())


def last_dependence(maps: CoordinateMaps) -> IntArray:
    """Return the place of the last free coordinate on which each map depends.

    Args:
        maps: m maps of free coordinates.

    Returns:
        (m,) integers, -1 for a constant.
    """
    depends = (maps.linear != 0).any(1)  # (m, d)
    places = np.arange(1, depends.shape[1] + 1)
    return (depends * places).max(1, initial=0) - 1


def _onto(
    group: SpaceGroup, source: WyckoffPosition, target: WyckoffPosition, mapping: AffineMap
) -> tuple[IntArray, IntArray, IntArray]:
    """Return A (k, d, d), b (k, d) and the operations (k,) whose product with the mapping takes
    the first representative of the source onto that of the target."""
    linear = group.rotations @ (mapping.linear @ source.linear)  # (g, 3, d)
    shift = group.rotations @ (mapping.linear @ source.shift + mapping.shift) + group.shifts
    shift -= target.shift
    rows = target.rows
    a = linear[:, rows]  # (g, d, d)
    b = shift[:, rows]  # (g, d)
    fits = (target.linear @ a == linear).all((1, 2))
    fits &= ((shift - b @ target.linear.T) % GRID == 0).all(1)
    kept = np.flatnonzero(fits)
    return a[kept], b[kept] % GRID, kept


_IDENTITY = AffineMap(linear=np.eye(3, dtype=np.int64), shift=np.zeros(3, dtype=np.int64))
