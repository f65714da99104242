"""Cell and coordinates of given orbits as they are written: the values that keep the crystal apart
and in its group."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from llm_prior.text import SYMBOLS
from llm_prior.wyckoff.crystal import FREE_CELL, Orbit, WyckoffCrystal
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
from llm_prior.wyckoff.supergroups import (
    SYMPREC,
    extra_operations,
    has_group,
    may_be_higher,
    primitive_lattice,
)
from llm_prior.wyckoff.table import GRID, SpaceGroup, space_group
from llm_prior.wyckoff.text import WyckoffFormat, hidden_places

_DRAWS = 2  # sets of values for the coordinates to come
_MARGIN = 2.0  # times SYMPREC: an operation that moves atoms less is taken for one
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
        decimals = (fmt.length_decimals, fmt.angle_decimals)
        self._scales = tuple(10**d for d in decimals)
        self._ticks = (
            ticks_between(LENGTH_BOUNDS, decimals[0]),
            ticks_between(ANGLE_BOUNDS, decimals[1]),
        )
        self._mask = CellMask(
            self.group,
            [letter for _, letter in self.names],
            (self._ticks[0] / self._scales[0], self._ticks[1] / self._scales[1]),
        )
        self._has_coords = any(
            self.group.position(letter).num_free
            > len(hidden_places(self.group, letter, first=number == 0))
            for number, (_, letter) in enumerate(self.names)
        )

    @property
    def complete(self) -> bool:
        """Whether nothing is left to write."""
        return len(self.values) == len(self._free)

    def add(self, tick: int) -> None:
        """Write the next parameter.

        Args:
            tick: its value in units of the last decimal.
        """
        self.values.append(tick / self._scales[self._next_is_angle])

    @property
    def _next_is_angle(self) -> bool:
        return self._free[len(self.values)] > 2

    def allowed(self) -> tuple[Literal["length", "angle"], NDArray[np.int64]]:
        """Return the kind of the next parameter and its values, in units of the last decimal."""
        angle = self._next_is_angle
        ticks = self._ticks[angle][self._mask.allowed(self.values)]
        if len(self.values) + 1 == len(self._free) and not self._has_coords:
            ticks = self._exact(ticks)
        return "angle" if angle else "length", ticks

    def _exact(self, ticks: NDArray[np.int64]) -> NDArray[np.int64]:
        """Those with which the crystal, whose atoms are all in place, has exactly the group.

        Doubtful cells that are very slender are left out: spglib takes long for them.
        """
        if self.group.family == "cubic":
            return ticks
        values = ticks / self._scales[self._next_is_angle]
        cells = np.zeros((len(ticks), 6))
        cells[:, 3:] = 90.0
        cells[:, self._free[:-1]] = self.values
        cells[:, self._free[-1]] = values
        doubtful = may_be_higher(self.group, cell_metrics(self.group.family, cells))
        kept = ~doubtful
        lengths = cells[:, [place for place in self._free if place < 3]]
        doubtful &= lengths.max(1) <= _SLENDER * lengths.min(1)
        points, kinds = atoms_of(
            self.group, [(element, letter, ()) for element, letter in self.names], pad=True
        )
        for place in np.flatnonzero(doubtful).tolist():
            lattice = primitive_lattice(self.group, (*self.values, float(values[place])))
            kept[place] = has_group(self.group, lattice, points, kinds)
        self.crowded = not kept.any()
        return ticks if self.crowded else ticks[kept]


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
        every = np.full((1, 6), 90.0)
        every[0, list(FREE_CELL[cell.group.family])] = cell.values
        self._metric = cell_metrics(cell.group.family, every)[0]
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
        self._extra: dict[tuple[str, int], tuple[NDArray[np.float64], NDArray[np.float64]]] = {}
        self._atoms = np.concatenate(
            [np.zeros((0, 3)), *(self._cell_points(o) for o in self._placed())]
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
        orbit, place = self._shown[self._next]
        number, letter = self._group.number, self._names[orbit][1]
        ticks = tuple(self._ticks[orbit][:place])
        known = self._coords[orbit][:place]
        nearest = self_distances(number, letter, self._metric, self._bins, known)
        last = self._next + 1 == len(self._shown) or self._shown[self._next + 1][0] != orbit
        if last:
            nearest = np.minimum(nearest, self._distances_to_placed(orbit, place))
        special = special_bins(number, letter, self._bins, ticks)
        good = (nearest >= MIN_DISTANCE + 1e-9) & ~special
        if good.any():
            bins = np.flatnonzero(good)
            keeps = np.zeros(len(bins), dtype=bool)
            for draw in range(1 if self._next + 1 == len(self._shown) else _DRAWS):
                keeps[~keeps] = self._keep_group(orbit, place, bins[~keeps], draw)
            exact = bins[keeps]
            return (exact, False) if len(exact) else (np.flatnonzero(good), True)
        nearest[special] = -1.0
        return np.flatnonzero(nearest == nearest.max()), True

    def _placed(self) -> list[int]:
        return [orbit for orbit in range(len(self._names)) if orbit not in self._open]

    def _points(
        self, orbit: int, place: int, bins: NDArray[np.int64], draw: int = 0
    ) -> NDArray[np.float64]:
        """Atoms (b, p, 3) of the primitive cell for values of one coordinate of an orbit."""
        coords = np.tile(np.array(self._draws[draw][orbit]), (len(bins), 1))
        coords[:, place] = bins / self._bins
        return images(self._group.number, self._names[orbit][1])(coords)

    def _cell_points(self, orbit: int) -> NDArray[np.float64]:
        """Atoms (n, 3) of an orbit in the conventional cell."""
        found = images(self._group.number, self._names[orbit][1])(np.array(self._coords[orbit]))
        return (found[:, None] + self._group.centring / GRID).reshape(-1, 3)

    def _distances_to_placed(self, orbit: int, place: int) -> NDArray[np.float64]:
        representative = self._points(orbit, place, np.arange(self._bins))[:, 0]
        return distances_to(representative, self._atoms, self._metric)

    def _keep_group(
        self, orbit: int, place: int, bins: NDArray[np.int64], draw: int
    ) -> NDArray[np.bool_]:
        """Where the crystal has exactly its group, for some values of the coordinates to come.

        If the atoms of all other elements have the group, so has the crystal; else a bin is refused
        where the operations that they have beyond the group also map the atoms of this element
        onto one another.
        """
        if not len(bins):
            return np.zeros(0, dtype=bool)
        own = self._atoms_of_element(orbit, place, bins, draw)  # (b, n, 3)
        if all(element == self._names[orbit][0] for element, _ in self._names):
            later = {self._group.position(self._names[o][1]) for o in self._open if o > orbit}
            if any(position.characteristic and position.num_free for position in later):
                return np.ones(len(bins), dtype=bool)  # the orbits that follow decide
            lattice = primitive_lattice(self._group, self._cell)
            kinds = [1] * own.shape[1]
            return np.array([has_group(self._group, lattice, p, kinds) for p in own], dtype=bool)
        higher = np.zeros(len(bins), dtype=bool)
        for rotation, shift in zip(*self._extra_operations(orbit, draw), strict=True):
            todo = np.flatnonzero(~higher)
            moved = own[todo] @ rotation.T + shift
            gaps = moved[:, :, None, None] - own[todo][:, None, :, None]
            gaps = gaps - self._group.centring / GRID  # (b, n, n, l, 3)
            gaps -= np.rint(gaps)
            apart = ((gaps @ self._metric) * gaps).sum(-1).min((2, 3)).max(1)
            higher[todo] = apart < (_MARGIN * SYMPREC) ** 2
        return ~higher

    def _atoms_of_element(
        self, orbit: int, place: int, bins: NDArray[np.int64], draw: int
    ) -> NDArray[np.float64]:
        """Atoms (b, n, 3) of an orbit's element, for values of one coordinate of that orbit."""
        parts = [self._points(orbit, place, bins, draw)]
        for other, (element, letter) in enumerate(self._names):
            if element == self._names[orbit][0] and other != orbit:
                points = images(self._group.number, letter)(np.array(self._draws[draw][other]))
                parts.append(np.broadcast_to(points, (len(bins), *points.shape)))
        return np.concatenate(parts, axis=1)

    def _extra_operations(
        self, orbit: int, draw: int
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Operations beyond the group of the atoms of other elements than an orbit's; they do not
        change while the coordinates of this element are written."""
        element = self._names[orbit][0]
        if (element, draw) not in self._extra:
            others = [
                (e, letter, tuple(coords))
                for (e, letter), coords in zip(self._names, self._draws[draw], strict=True)
                if e != element
            ]
            lattice = primitive_lattice(self._group, self._cell)
            self._extra[element, draw] = extra_operations(
                self._group, lattice, *atoms_of(self._group, others)
            )
        return self._extra[element, draw]


def atoms_of(
    group: SpaceGroup,
    orbits: Sequence[tuple[str, str, tuple[float, ...]]],
    *,
    pad: bool = False,
) -> tuple[NDArray[np.float64], list[int]]:
    """Return the atoms of the primitive cell.

    Args:
        group: the space group.
        orbits: element, letter and free coordinates of each orbit.
        pad: take 0 for coordinates that are not given.

    Returns:
        Coordinates (n, 3) in the conventional cell, and a number for each one's element.
    """
    points, kinds = [], []
    for element, letter, coords in orbits:
        if pad:
            coords = (0.0,) * group.position(letter).num_free
        points.append(images(group.number, letter)(np.array(coords, dtype=float)))
        kinds += [SYMBOLS.index(element) + 1] * len(points[-1])
    return np.concatenate(points), kinds
