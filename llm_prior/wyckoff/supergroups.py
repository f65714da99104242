"""Crystals that have more symmetry than the group in which they are described.

Three causes: the positions alone (two atoms in P1 always have an inversion centre), a cell whose
parameters fit a higher lattice, and coordinates that happen to fit a supergroup. The symmetry of a
crystal is what the atoms of all its elements have in common, so a crystal has exactly its group if
the atoms of some of its elements have.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache, lru_cache

import numpy as np
from numpy.typing import NDArray

from llm_prior.wyckoff.lattices import (
    GENERIC_CELLS,
    LOOSE,
    further_maps,
    primitive_change,
    primitive_lattice,
)
from llm_prior.wyckoff.orbits import images
from llm_prior.wyckoff.table import space_group

_DRAWS = 3  # of free coordinates; one may happen to fit a supergroup
_GENERAL = 1e-3  # Angstrom; so near, general coordinates fit a supergroup
_MOST_PAIRS = 4_000_000  # distances that are computed at a time


class ExtraSymmetry:
    """Finds whether atoms have operations beyond a group.

    An operation beyond the group is, up to one of the group, x -> W x + t for one of the linear
    maps of `further_maps`. It takes the first atom of an element to another one of that element,
    so it is looked for among these translations t, for the element with the fewest atoms.

    Args:
        number: space group.
        cell: free parameters of the conventional cell.

    Attributes:
        is_generic: whether the lattice has no more symmetry than others of its family.
    """

    def __init__(self, number: int, cell: tuple[float, ...]) -> None:
        lattice = primitive_lattice(number, cell)
        self._change = primitive_change(number)
        self._metric = lattice @ lattice.T
        self._maps = further_maps(number, cell).astype(float)
        self.is_generic = len(self._maps) == _num_generic_maps(number)

    def found(
        self, points: NDArray[np.float64], kinds: Sequence[int], tolerance: float = LOOSE
    ) -> NDArray[np.bool_]:
        """Return which of several crystals have an operation beyond the group.

        Args:
            points: (b, n, 3) coordinates in the conventional cell of the atoms of a primitive one.
            kinds: (n,) the element of each atom, as a number.
            tolerance: most that an atom is away from where an operation takes it, Angstrom.

        Returns:
            (b,) booleans.
        """
        elements = np.asarray(kinds)
        atoms = [np.flatnonzero(elements == kind) for kind in np.unique(elements)]
        atoms.sort(key=len)
        coords = points @ self._change
        largest = len(self._maps) * len(atoms[0]) * max(map(len, atoms)) ** 2
        step = max(_MOST_PAIRS // largest, 1)
        parts = [
            self._search(coords[at : at + step], atoms, tolerance)
            for at in range(0, len(coords), step)
        ]
        return np.concatenate(parts)

    def _search(
        self, coords: NDArray[np.float64], atoms: list[NDArray[np.int64]], tolerance: float
    ) -> NDArray[np.bool_]:
        first = coords[:, atoms[0]]  # (b, m, 3)
        starts = coords[:, atoms[0][0]] @ self._maps.transpose(0, 2, 1)  # (c, b, 3)
        shifts = first[:, None] - starts.transpose(1, 0, 2)[:, :, None]  # (b, c, m, 3)
        crystal, map_, target = (places.ravel() for places in np.indices(shifts.shape[:3]))
        new = (map_ > 0) | (target > 0)  # the identity is an operation of the group
        crystal, map_ = crystal[new], map_[new]
        shift = shifts.reshape(-1, 3)[new]
        # One atom of an element rules out most operations, at less cost than all of them.
        probes = [(part, part[-1:]) for part in atoms] + [(part, part[:-1]) for part in atoms]
        for part, probe in probes:
            if not len(crystal):
                break
            there = coords[crystal[:, None], part]  # (k, n, 3)
            moved = coords[crystal[:, None], probe] @ self._maps[map_].transpose(0, 2, 1)
            gaps = (moved + shift[:, None])[:, :, None] - there[:, None]  # (k, m, n, 3)
            gaps -= np.rint(gaps)
            apart = ((gaps @ self._metric) * gaps).sum(-1).min(2).max(1, initial=0.0)
            fits = apart < tolerance**2
            crystal, map_, shift = crystal[fits], map_[fits], shift[fits]
        found = np.zeros(len(coords), dtype=bool)
        found[crystal] = True
        return found


@lru_cache(maxsize=20_000)
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
    extra = _generic(number)
    for draw in range(_DRAWS):
        rng = np.random.default_rng([draw, *(place + 1 for part in parts for place in part)])
        points, kinds = [], []
        for kind, part in enumerate(parts):
            for place in part:
                position = positions[place]
                points.append(images(number, position.letter)(rng.random(position.num_free)))
                kinds += [kind] * position.num_atoms
        if not extra.found(np.concatenate(points)[None], kinds, _GENERAL)[0]:
            return True
    return False


@cache
def _num_generic_maps(number: int) -> int:
    return len(further_maps(number, GENERIC_CELLS[space_group(number).family]))


@lru_cache(maxsize=256)
def _generic(number: int) -> ExtraSymmetry:
    return ExtraSymmetry(number, GENERIC_CELLS[space_group(number).family])
