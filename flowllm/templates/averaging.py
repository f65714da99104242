"""The mean of crystals that have one gene and nearly the same free parameters."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from llm_prior.wyckoff.crystal import FREE_CELL, WyckoffCrystal

# Templates further from the first one are other structures, or the same with another origin. They
# are left out.
CLOSE_COORDINATE = 0.04  # of an edge of the conventional cell
CLOSE_LENGTH = 0.15  # of the logarithm of a length
CLOSE_ANGLE = 8.0  # degrees
_FEW = 7  # orbits, of which all orders are tried
FloatArray = NDArray[np.float64]


@dataclass(frozen=True)
class _Steps:
    """Free parameters of a crystal less those of another one.

    Attributes:
        cell: (c,) logarithms of ratios of lengths, and differences of angles in degrees.
        coords: of each orbit (d,), wrapped.
        lengths: how many of `cell` belong to lengths.
    """

    cell: FloatArray
    coords: list[FloatArray]
    lengths: int

    @property
    def far(self) -> bool:
        """Whether the two crystals are different structures."""
        lengths, angles = self.cell[: self.lengths], self.cell[self.lengths :]
        coords = np.concatenate(self.coords)
        return bool(
            np.abs(lengths).max(initial=0) > CLOSE_LENGTH
            or np.abs(angles).max(initial=0) > CLOSE_ANGLE
            or np.abs(coords).max(initial=0) > CLOSE_COORDINATE
        )


def average(
    crystals: Sequence[WyckoffCrystal], weights: Sequence[float] | FloatArray
) -> WyckoffCrystal:
    """Return the first crystal with the mean free parameters of those that are close to it.

    Lengths are averaged by their logarithms. Crystals with other letters, another group, or a
    parameter that is further off than the limits of this module, count as nothing.

    Args:
        crystals: at least one.
        weights: of each crystal, positive.
    """
    first = crystals[0]
    kept = [
        (steps, weight)
        for crystal, weight in zip(crystals, weights, strict=True)
        if (steps := _steps(first, crystal)) is not None and not steps.far
    ]
    share = np.array([weight for _, weight in kept])
    share /= share.sum()
    cell_step = share @ np.array([steps.cell for steps, _ in kept])
    coords = [
        np.array(orbit.coords) + share @ np.array([steps.coords[place] for steps, _ in kept])
        for place, orbit in enumerate(first.orbits)
    ]
    free = FREE_CELL[first.group.family]
    cell = tuple(
        float(value * np.exp(step) if place < 3 else value + step)
        for place, value, step in zip(free, first.cell, cell_step, strict=True)
    )
    moved = first.with_coords(coords)
    return WyckoffCrystal(spacegroup=moved.spacegroup, orbits=moved.orbits, cell=cell)


def _steps(first: WyckoffCrystal, other: WyckoffCrystal) -> _Steps | None:
    """Return the ways from a crystal to another one, or None if their genes are written otherwise.

    Orbits of the same element and letter are assigned to each other so that the ways are short.
    """
    ours, theirs = _places(first), _places(other)
    if first.spacegroup != other.spacegroup or {k: len(v) for k, v in ours.items()} != {
        k: len(v) for k, v in theirs.items()
    }:
        return None
    coords: list[FloatArray] = [np.zeros(0)] * len(first.orbits)
    for key, places in ours.items():
        here = np.array([first.orbits[place].coords for place in places])
        there = np.array([other.orbits[place].coords for place in theirs[key]])
        ways = there[None] - here[:, None]  # (n, n, d)
        ways -= np.rint(ways)
        for one, another in enumerate(_shortest(np.square(ways).sum(-1))):
            coords[places[one]] = ways[one, another]
    free = FREE_CELL[first.group.family]
    cell = [
        np.log(theirs / ours) if place < 3 else theirs - ours
        for place, ours, theirs in zip(free, first.cell, other.cell, strict=True)
    ]
    return _Steps(np.array(cell), coords, lengths=sum(place < 3 for place in free))


def _shortest(costs: FloatArray) -> Sequence[int]:
    """Return the column of each row, all different, for which costs (n, n) add up to least."""
    if len(costs) == 1:
        return [0]
    if len(costs) > _FEW:
        from scipy.optimize import linear_sum_assignment  # slow to import

        columns: list[int] = linear_sum_assignment(costs)[1].tolist()
        return columns
    orders = _orders(len(costs))  # (n!, n)
    best: list[int] = orders[costs[np.arange(len(costs)), orders].sum(1).argmin()].tolist()
    return best


@cache
def _orders(n: int) -> NDArray[np.int64]:
    """Return all orders of n things, (n!, n)."""
    return np.array([*itertools.permutations(range(n))], dtype=np.int64)


def _places(crystal: WyckoffCrystal) -> dict[tuple[str, str], list[int]]:
    """Return the places of the orbits of each element and letter."""
    places = defaultdict(list)
    for place, orbit in enumerate(crystal.orbits):
        places[orbit.element, orbit.letter].append(place)
    return places
