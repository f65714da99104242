"""Cell and coordinates of given orbits as they are written: the values that keep the crystal apart
and in its group."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property, lru_cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from llm_prior.text import SYMBOLS
from llm_prior.wyckoff.crystal import FREE_CELL, Orbit, WyckoffCrystal
from llm_prior.wyckoff.lattices import may_be_higher, metric_of
from llm_prior.wyckoff.orbits import images, special_bins
from llm_prior.wyckoff.spacing import (
    ANGLE_BOUNDS,
    LENGTH_BOUNDS,
    MIN_DISTANCE,
    CellMask,
    cell_metrics,
    distances_to,
    self_distances,
    ticks_between,
)
from llm_prior.wyckoff.supergroups import ExtraSymmetry
from llm_prior.wyckoff.table import GRID, space_group
from llm_prior.wyckoff.text import WyckoffFormat, hidden_places

_DRAWS = 2  # sets of values for the coordinates to come
_SLENDER = 20.0  # longest over shortest edge of a very slender cell


class CellPart:
    """The free cell parameters of given orbits, as they are written.

    Args:
        number: space group.
        orbits: (element as its place in `SYMBOLS`, place of the letter) of each orbit.
        fmt: precision.

    Attributes:
        group: the space group.
        names: element and letter of each orbit.
        values: the parameters so far, in Angstrom and degrees.
        crowded: no value of the last parameter kept the group exact.
    """

    def __init__(self, number: int, orbits: Sequence[tuple[int, int]], fmt: WyckoffFormat) -> None:
        self.group = space_group(number)
        self.names = [
            (SYMBOLS[element], self.group.positions[place].letter) for element, place in orbits
        ]
        self.values: list[float] = []
        self.crowded = False
        self._free = FREE_CELL[self.group.family]
        self._decimals = (fmt.length_decimals, fmt.angle_decimals)
        letters = tuple(sorted(letter for _, letter in self.names))
        self._mask = _cell_mask(number, letters, self._decimals)
        self._has_coords = any(
            self.group.position(letter).num_free
            > len(hidden_places(self.group, letter, first=number == 0))
            for number, (_, letter) in enumerate(self.names)
        )

    @property
    def complete(self) -> bool:
        """Whether nothing is left to write."""
        return len(self.values) == len(self._free)

    @property
    def kind(self) -> Literal["length", "angle"]:
        """The kind of the next parameter."""
        return "angle" if self._free[len(self.values)] > 2 else "length"

    @property
    def _scale(self) -> int:
        return int(10 ** self._decimals[self.kind == "angle"])

    def add(self, tick: int) -> None:
        """Write the next parameter.

        Args:
            tick: its value in units of the last decimal.
        """
        self.values.append(tick / self._scale)

    def allowed(self) -> NDArray[np.int64]:
        """Return the values of the next parameter, in units of the last decimal."""
        every = cell_ticks(self.kind, self._decimals)
        ticks = every[self._mask.allowed(self.values)]
        exact = ticks[self._keeps_group(ticks)]
        self.crowded = not len(exact)
        return ticks if self.crowded else exact

    def accepts(self, tick: int) -> bool:
        """Return whether a value of the next parameter keeps atoms apart and the group exact.

        Args:
            tick: the value in units of the last decimal.
        """
        apart = self._mask.allowed(self.values, np.array([tick / self._scale]))
        return bool(apart[0] and self._keeps_group(np.array([tick]))[0])

    def _keeps_group(self, ticks: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Where the crystal has exactly its group, as far as the next parameter decides that.

        Doubtful cells that are very slender are left out: spglib takes long for them.
        """
        kept = np.ones(len(ticks), dtype=bool)
        if len(self.values) + 1 < len(self._free) or self._has_coords:
            return kept  # what follows decides
        if self.group.family == "cubic":
            return kept
        values = ticks / self._scale
        cells = np.zeros((len(ticks), 6))
        cells[:, 3:] = 90.0
        cells[:, self._free[:-1]] = self.values
        cells[:, self._free[-1]] = values
        doubtful = may_be_higher(self.group, cell_metrics(self.group.family, cells))
        kept = ~doubtful
        lengths = cells[:, [place for place in self._free if place < 3]]
        doubtful &= lengths.max(1) <= _SLENDER * lengths.min(1)
        coords = [(0.0,) * self.group.position(letter).num_free for _, letter in self.names]
        points, kinds = _atoms(self.group.number, self.names, coords)
        for place in np.flatnonzero(doubtful).tolist():
            extra = ExtraSymmetry(self.group.number, (*self.values, float(values[place])))
            kept[place] = not extra.found(points[None], kinds)[0]
        return kept


class CoordPart:
    """The free coordinates of given orbits in a given cell, as they are written.

    Args:
        cell: orbits and complete cell.
        fmt: precision.
    """

    def __init__(self, cell: CellPart, fmt: WyckoffFormat) -> None:
        self._group = cell.group
        self._names = cell.names
        self._cell = tuple(cell.values)
        self._bins = fmt.coord_bins
        self._metric = metric_of(cell.group.number, self._cell)
        self._ticks = [[0] * cell.group.position(letter).num_free for _, letter in cell.names]
        self._shown = [
            (orbit, place)
            for orbit, (_, letter) in enumerate(cell.names)
            for place in range(len(self._ticks[orbit]))
            if place not in hidden_places(cell.group, letter, first=orbit == 0)
        ]
        # Until a coordinate is written it has some value without a meaning; two sets of them, for
        # one may happen to fit a supergroup.
        rng = np.random.default_rng(0)
        self._draws = [[[0.0] * len(ticks) for ticks in self._ticks] for _ in range(_DRAWS)]
        for coords in self._draws:
            for orbit, place in self._shown:
                coords[orbit][place] = float(rng.random())
        self._coords = self._draws[0]
        self._next = 0
        # An orbit is in place when its last coordinate is; some are from the start.
        self._open = {orbit for orbit, _ in self._shown}
        self._num_settled = -1  # orbits in place when `_is_settled` was computed
        self._settled = False
        self._atoms = np.concatenate(
            [
                np.zeros((0, 3)),
                *(self._cell_points(o) for o in range(len(self._names)) if o not in self._open),
            ]
        )

    @property
    def complete(self) -> bool:
        """Whether nothing is left to write."""
        return self._next == len(self._shown)

    def crystal(self) -> WyckoffCrystal:
        """Return the crystal; coordinates that were not written have no meaning."""
        orbits = tuple(
            Orbit(element=element, letter=letter, coords=tuple(coords))
            for (element, letter), coords in zip(self._names, self._coords, strict=True)
        )
        return WyckoffCrystal(spacegroup=self._group.number, orbits=orbits, cell=self._cell)

    def add(self, tick: int) -> None:
        """Write the next coordinate.

        Args:
            tick: its bin.
        """
        orbit, place = self._shown[self._next]
        for coords in self._draws:
            coords[orbit][place] = tick / self._bins
        self._ticks[orbit][place] = tick
        self._next += 1
        if self.complete or self._shown[self._next][0] != orbit:
            self._open.discard(orbit)
            self._atoms = np.concatenate([self._atoms, self._cell_points(orbit)])

    def allowed(self) -> tuple[NDArray[np.int64], bool]:
        """Return the bins of the next coordinate, and whether none is as good as it should be."""
        bins = np.arange(self._bins)
        nearest = self._clearance(bins)
        good = bins[nearest >= MIN_DISTANCE + 1e-9]
        if len(good):
            exact = good[self._keeps_group(good)]
            return (exact, False) if len(exact) else (good, True)
        return bins[nearest == nearest.max()], True

    def accepts(self, tick: int) -> bool:
        """Return whether a bin of the next coordinate keeps atoms apart and the group exact.

        Args:
            tick: the bin.
        """
        bins = np.array([tick])
        apart = self._clearance(bins)[0] >= MIN_DISTANCE + 1e-9
        return bool(apart and self._keeps_group(bins)[0])

    def _clearance(self, bins: NDArray[np.int64]) -> NDArray[np.float64]:
        """Distance (k,) to the next atom that bins of the next coordinate decide, in Angstrom; -1
        on a more special position."""
        orbit, place = self._shown[self._next]
        number, letter = self._group.number, self._names[orbit][1]
        known = self._coords[orbit][:place]
        nearest = self_distances(number, letter, self._metric, known, bins / self._bins)
        last = self._next + 1 == len(self._shown) or self._shown[self._next + 1][0] != orbit
        if last:
            representative = self._orbit_points(orbit, place, bins, self._coords)[:, 0]
            nearest = np.minimum(nearest, distances_to(representative, self._atoms, self._metric))
        ticks = tuple(self._ticks[orbit][:place])
        nearest[special_bins(number, letter, self._bins, ticks, bins)] = -1.0
        return nearest

    def _orbit_points(
        self, orbit: int, place: int, bins: NDArray[np.int64], coords: list[list[float]]
    ) -> NDArray[np.float64]:
        """Atoms (k, p, 3) of the primitive cell for bins of one coordinate of an orbit."""
        own = np.tile(np.array(coords[orbit]), (len(bins), 1))
        own[:, place] = bins / self._bins
        return images(self._group.number, self._names[orbit][1])(own)

    def _cell_points(self, orbit: int) -> NDArray[np.float64]:
        """Atoms (n, 3) of an orbit in the conventional cell."""
        found = images(self._group.number, self._names[orbit][1])(np.array(self._coords[orbit]))
        return (found[:, None] + self._group.centring / GRID).reshape(-1, 3)

    # --- the group -----------------------------------------------------------------------------

    def _keeps_group(self, bins: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Where (k,) the crystal has exactly its group, for some values of the coordinates to
        come."""
        orbit, place = self._shown[self._next]
        kept = np.zeros(len(bins), dtype=bool)
        if self._is_settled or any(self._decides(o) for o in self._open if o > orbit):
            return ~kept
        # Without coordinates to come both draws are the same.
        for coords in self._draws[: 1 if self._next + 1 == len(self._shown) else _DRAWS]:
            left = bins[~kept]
            if len(left):
                points, kinds = _atoms(self._group.number, self._names, coords)
                start = sum(self._num_atoms[:orbit])
                every = np.tile(points, (len(left), 1, 1))  # (k, n, 3)
                every[:, start : start + self._num_atoms[orbit]] = self._orbit_points(
                    orbit, place, left, coords
                )
                kept[~kept] = ~self._extra.found(every, kinds)
        return kept

    def _decides(self, orbit: int) -> bool:
        """Whether an orbit without any coordinate yet makes the group exact for almost all values.

        In a lattice without further symmetry those of a characteristic position do, in any other
        those of the general position: an operation that keeps their orbits is one of the group.
        """
        position = self._group.position(self._names[orbit][1])
        if self._extra.is_generic:
            return position.characteristic and position.num_free > 0
        return position.num_free == 3

    @property
    def _is_settled(self) -> bool:
        """Whether the atoms of the elements that are complete have exactly the group."""
        pending = {self._names[orbit][0] for orbit in self._open}
        done = [o for o, (element, _) in enumerate(self._names) if element not in pending]
        if len(done) != self._num_settled and not self._settled:
            self._num_settled = len(done)
            if done:
                names, coords = zip(*((self._names[o], self._coords[o]) for o in done), strict=True)
                points, kinds = _atoms(self._group.number, names, coords)
                self._settled = not self._extra.found(points[None], kinds)[0]
        return self._settled

    @cached_property
    def _extra(self) -> ExtraSymmetry:
        return ExtraSymmetry(self._group.number, self._cell)

    @cached_property
    def _num_atoms(self) -> list[int]:
        """Atoms of each orbit in the primitive cell."""
        return [self._group.position(letter).num_atoms for _, letter in self._names]


def _atoms(
    number: int,
    names: Sequence[tuple[str, str]],
    coords: Sequence[Sequence[float]],
) -> tuple[NDArray[np.float64], list[int]]:
    """Return the atoms of the primitive cell.

    Args:
        number: space group.
        names: element and letter of each orbit.
        coords: free coordinates of each orbit.

    Returns:
        Coordinates (n, 3) in the conventional cell, and a number for each one's element.
    """
    points, kinds = [], []
    for (element, letter), free in zip(names, coords, strict=True):
        points.append(images(number, letter)(np.array(free, dtype=float)))
        kinds += [SYMBOLS.index(element)] * len(points[-1])
    return np.concatenate(points), kinds


@lru_cache(maxsize=64)
def cell_ticks(kind: Literal["length", "angle"], decimals: tuple[int, int]) -> NDArray[np.int64]:
    """Return the values of a cell parameter that may be written, in units of the last decimal.

    Args:
        kind: of the parameter.
        decimals: of lengths and of angles.
    """
    if kind == "length":
        return ticks_between(LENGTH_BOUNDS, decimals[0])
    return ticks_between(ANGLE_BOUNDS, decimals[1])


@lru_cache(maxsize=4096)
def _cell_mask(number: int, letters: tuple[str, ...], decimals: tuple[int, int]) -> CellMask:
    lengths, angles = (
        cell_ticks(kind, decimals) / 10**places
        for kind, places in zip(("length", "angle"), decimals, strict=True)
    )
    return CellMask(space_group(number), letters, (lengths, angles))
