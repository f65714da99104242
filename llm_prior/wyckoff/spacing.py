"""Cells and coordinates that keep atoms apart.

A vector shorter than `MIN_DISTANCE` has fractional components of at most 0.5 in a cell whose
lattice planes are 1 Angstrom apart or more, so the nearest image of each component is enough.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from llm_prior.text import SMALLEST_UNIT_VOLUME_SQUARED
from llm_prior.wyckoff.crystal import FREE_CELL
from llm_prior.wyckoff.orbits import decided, differences, equivalents, last_dependence
from llm_prior.wyckoff.table import GRID, Family, SpaceGroup

MIN_DISTANCE = 0.5  # Angstrom, between any two atoms
MIN_VOLUME = 2.0  # Angstrom^3 per atom; the densest of MP-20 has more than 3
LENGTH_BOUNDS = (1.0, 150.0)  # Angstrom, conventional; long ones are rhombohedral, hexagonal axes
ANGLE_BOUNDS = (30.0, 150.0)  # degrees
_SPARE = 1.05  # room on a line, relative to what its atoms take
_MIN_PLANES = 1.0  # Angstrom, between lattice planes
# Most that a hexagonal or rhombohedral c / a, or a / c, may be. MP-20 has 29 at most; spglib takes
# seconds for a search from 45 on.
_MOST_SLENDER = 40.0


class CellMask:
    """The values that each free cell parameter may take for given orbits.

    From each value that is allowed the cell can be completed: the lengths that follow can be the
    longest, and the angles those of the largest volume.

    Args:
        group: the space group.
        letters: Wyckoff letter of each orbit.
        ticks: for lengths and for angles, the values that may be written.
    """

    def __init__(
        self,
        group: SpaceGroup,
        letters: Sequence[str],
        ticks: tuple[NDArray[np.float64], NDArray[np.float64]],
    ) -> None:
        self._family: Family = group.family
        self._ticks = ticks
        atoms = sum(group.position(letter).multiplicity for letter in letters)
        self._min_volume = MIN_VOLUME * atoms
        self._vectors = _constant_vectors(group, letters)
        self._lines, self._room = _lines(group, letters)

    def allowed(
        self, known: Sequence[float], values: NDArray[np.float64] | None = None
    ) -> NDArray[np.bool_]:
        """Return which values of the next free parameter may be written.

        Args:
            known: the free parameters before it, in Angstrom and degrees.
            values: (k,) the values that are looked at; None for all ticks of a length or an angle.

        Returns:
            (k,) booleans.
        """
        free = FREE_CELL[self._family]
        if values is None:
            values = self._ticks[free[len(known)] > 2]
        cell = np.empty((len(values), 6))
        cell[:, 3:] = 90.0
        for place, value in zip(free, known, strict=False):
            cell[:, place] = value
        cell[:, free[len(known)]] = values
        for place in free[len(known) + 1 :]:
            cell[:, place] = self._ticks[0][-1] if place < 3 else 90.0
        if self._family == "hexagonal" and not known:
            cell[:, 2] = np.minimum(cell[:, 2], _MOST_SLENDER * values)
        if self._family == "triclinic" and len(known) < 5:
            # The third angle of the largest volume: cos gamma = cos alpha cos beta.
            cosines = np.cos(np.radians(cell[:, 3:5])).prod(1)
            cell[:, 5] = self._nearest_angle(np.degrees(np.arccos(cosines)))
        good = self._keeps_apart(cell_metrics(self._family, cell), cell)
        if self._family == "hexagonal":
            slenderness = np.log(cell[:, 2] / cell[:, 0])
            good &= np.abs(slenderness) <= np.log(_MOST_SLENDER) + 1e-9
        return good

    def _nearest_angle(self, angles: NDArray[np.float64]) -> NDArray[np.float64]:
        ticks = self._ticks[1]
        return ticks[np.abs(ticks - angles[:, None]).argmin(1)]

    def _keeps_apart(
        self, metrics: NDArray[np.float64], cell: NDArray[np.float64]
    ) -> NDArray[np.bool_]:
        a, b, c = np.cos(np.radians(_angles(self._family, cell))).T
        unit = 1 - a * a - b * b - c * c + 2 * a * b * c
        squares = np.einsum("kii->ki", metrics)
        volume = unit * squares.prod(1)  # squared
        good = unit > SMALLEST_UNIT_VOLUME_SQUARED + 1e-9
        good &= volume >= self._min_volume**2
        # 1 / d_i^2 is the i-th diagonal element of the inverse metric tensor: a cofactor over the
        # determinant. `np.linalg.inv` takes ten times as long.
        products = metrics[:, (1, 0, 0), (2, 2, 1)]
        cofactors = squares[:, (1, 0, 0)] * squares[:, (2, 2, 1)] - products**2  # (k, 3)
        good &= cofactors.max(1) <= (1 / _MIN_PLANES**2 + 1e-9) * volume
        if len(self._vectors):
            lengths = np.einsum("vi,kij,vj->kv", self._vectors, metrics, self._vectors)
            good &= lengths.min(1) >= MIN_DISTANCE**2 + 1e-9
        if len(self._lines):
            lengths = np.einsum("vi,kij,vj->kv", self._lines, metrics, self._lines)
            good &= (lengths >= self._room**2).all(1)
        return good


def cell_metrics(family: Family, cell: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return metric tensors (k, 3, 3) in Angstrom^2.

    Args:
        family: crystal family; parameters that it ties to others are ignored.
        cell: (k, 6) lengths in Angstrom and angles in degrees.
    """
    lengths = cell[:, :3].copy()
    if family in ("cubic", "tetragonal", "hexagonal"):
        lengths[:, 1] = lengths[:, 0]
    if family == "cubic":
        lengths[:, 2] = lengths[:, 0]
    alpha, beta, gamma = np.cos(np.radians(_angles(family, cell))).T
    one = np.ones(len(cell))
    cosines = np.stack([one, gamma, beta, gamma, one, alpha, beta, alpha, one], 1)
    return cosines.reshape(-1, 3, 3) * lengths[:, :, None] * lengths[:, None]


def _angles(family: Family, cell: NDArray[np.float64]) -> NDArray[np.float64]:
    angles = cell[:, 3:].copy()
    if family == "hexagonal":
        angles[:] = (90.0, 90.0, 120.0)
    return angles


def ticks_between(bounds: tuple[float, float], decimals: int) -> NDArray[np.int64]:
    """Return the whole numbers of units of the last decimal within bounds.

    Args:
        bounds: lowest and highest value.
        decimals: decimals with which a value is written.
    """
    scale = 10**decimals
    return np.arange(math.ceil(bounds[0] * scale), math.floor(bounds[1] * scale) + 1)


def self_distances(
    number: int,
    letter: str,
    metric: NDArray[np.float64],
    known: Sequence[float],
    values: NDArray[np.float64],
) -> NDArray[np.float64]:
    """Return how near a point is to those of its images that the next coordinate decides.

    Args:
        number: space group.
        letter: Wyckoff letter.
        metric: (3, 3) metric tensor of the conventional cell, Angstrom^2.
        known: free coordinates before this one, fractional.
        values: (k,) values of this one, fractional.

    Returns:
        (k,) distances in Angstrom, infinite where no image depends on it.
    """
    place = len(known)
    maps = decided(number, letter, place)
    if not len(maps.linear):
        return np.full(len(values), np.inf)
    fixed = maps.linear[:, :, :place] @ np.array(known, dtype=float) + maps.shift / GRID  # (m, 3)
    gaps = fixed[None] + maps.linear[None, :, :, place] * values[:, None, None]  # (k, m, 3)
    return _shortest(gaps, metric)


def distances_to(
    points: NDArray[np.float64], others: NDArray[np.float64], metric: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return the distance in Angstrom of each point to the nearest other one.

    Args:
        points: (k, 3) coordinates in the conventional cell.
        others: (n, 3) coordinates of atoms, all of the conventional cell.
        metric: (3, 3) metric tensor, Angstrom^2.
    """
    if not len(others):
        return np.full(len(points), np.inf)
    return _shortest(points[:, None] - others, metric)


def _shortest(gaps: NDArray[np.float64], metric: NDArray[np.float64]) -> NDArray[np.float64]:
    gaps = gaps - np.rint(gaps)
    return np.sqrt(((gaps @ metric) * gaps).sum(-1).min(1).clip(0))


def _lines(
    group: SpaceGroup, letters: Sequence[str]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Directions (v, 3) of the lines on which orbits with one free coordinate lie, and the length
    (v,) of a period that has room for all of them: an atom takes `MIN_DISTANCE` on either side."""
    directions, room = [], []
    for letter in dict.fromkeys(letters):
        position = group.position(letter)
        if position.num_free == 1:
            atoms = letters.count(letter) * len(equivalents(group.number, letter).linear)
            directions.append(position.linear[:, 0].astype(float))
            room.append(_SPARE * 2 * MIN_DISTANCE * atoms)
    return np.array(directions).reshape(-1, 3), np.array(room)


def _constant_vectors(group: SpaceGroup, letters: Sequence[str]) -> NDArray[np.float64]:
    """Vectors (v, 3) between atoms that do not depend on free coordinates, nearest images."""
    rows: list[NDArray[np.float64]] = []
    fixed: list[NDArray[np.int64]] = []
    for letter in dict.fromkeys(letters):
        maps = differences(group.number, letter)
        rows.append(maps.shift[last_dependence(maps) == -1] / GRID)
        position = group.position(letter)
        if not position.num_free:
            points = group.rotations @ position.shift + group.shifts
            rows += [(points - other) / GRID for other in fixed]
            fixed.append(position.shift)
    vectors = np.concatenate(rows)
    vectors = vectors - np.rint(vectors)
    vectors = np.unique(np.round(vectors, 9), axis=0)
    return vectors[(vectors != 0).any(1)]
