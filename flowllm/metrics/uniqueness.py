"""Uniqueness of crystals within a set and novelty against other sets.

Two crystals are the same if pymatgen's `StructureMatcher` (Ong et al. 2013, Comput. Mater. Sci. 68,
314) maps one onto the other, both reduced to primitive Niggli cells and scaled to the same volume.
Only crystals with equal reduced formulas and equal numbers of sites in the primitive cell can
match, so crystals are sorted into such buckets first; no matching pair is lost. A cell with a
lattice vector shorter than 1 Angstrom is not a crystal and would cost the matcher terabytes: it is
not compared and counts as unique and novel.
"""

from __future__ import annotations

import warnings
from collections import defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

from pymatgen.core import Structure
from pymatgen.core.structure_matcher import StructureMatcher

from flowllm.crystals.crystal import UNREADABLE, ignore_missing_electronegativity
from flowllm.crystals.lattices import comparable, unskewed

LTOL = 0.2  # relative tolerance of lengths
STOL = 0.3  # tolerance of positions, in units of (volume / atoms)^(1/3)
ANGLE_TOL = 5.0  # degrees


@dataclass(frozen=True, kw_only=True)
class Tolerances:
    """Tolerances of the structure matcher; the defaults are pymatgen's.

    Attributes:
        ltol: relative tolerance of lengths.
        stol: tolerance of positions, in units of (volume / atoms)^(1/3).
        angle_tol: tolerance of angles in degrees.
    """

    ltol: float = LTOL
    stol: float = STOL
    angle_tol: float = ANGLE_TOL


@ignore_missing_electronegativity()
def duplicates(
    structures: Sequence[Structure],
    *,
    tolerances: Tolerances = Tolerances(),  # noqa: B008 (frozen)
) -> list[int | None]:
    """Return for each crystal the index of the earlier crystal that it equals.

    A crystal is compared with the first of each group found so far, so that the number of unique
    crystals is the number of groups: uniqueness = |groups| / N (Zeni et al. 2025, "MatterGen").

    Args:
        structures: N ordered crystals.
        tolerances: tolerances of the match.

    Returns:
        (N,); None for a unique crystal.
    """
    cells = PrimitiveCells(tolerances)
    groups: dict[Hashable, list[int]] = defaultdict(list)
    found: list[int | None] = []
    for index, structure in enumerate(structures):
        if not comparable(structure):
            found.append(None)
            continue
        cell = cells.reduce(structure)
        heads = groups[_bucket(cell)]
        first = next((i for i in heads if cells.same(cells.reduce(structures[i]), cell)), None)
        if first is None:
            heads.append(index)
        found.append(first)
    return found


@ignore_missing_electronegativity()
def matches(
    structures: Sequence[Structure],
    reference: Sequence[Structure],
    *,
    tolerances: Tolerances = Tolerances(),  # noqa: B008 (frozen)
) -> list[int | None]:
    """Return for each crystal the index of the first reference crystal that it equals.

    novelty = share of None. Only reference crystals whose formula occurs among `structures` are
    reduced and compared.

    Args:
        structures: N ordered crystals.
        reference: M ordered crystals.
        tolerances: tolerances of the match.

    Returns:
        (N,); None for a novel crystal.
    """
    cells = PrimitiveCells(tolerances)
    wanted = {_formula(structure) for structure in structures}
    by_formula: dict[str, list[int]] = defaultdict(list)
    for index, structure in enumerate(reference):
        formula = _formula(structure)
        if formula in wanted and comparable(structure):
            by_formula[formula].append(index)
    found: list[int | None] = []
    for structure in structures:
        candidates = by_formula.get(_formula(structure), []) if comparable(structure) else []
        found.append(next((i for i in candidates if cells.match(reference[i], structure)), None))
    return found


class PrimitiveCells:
    """A matcher that reduces each crystal once, however often it is compared."""

    def __init__(self, tolerances: Tolerances) -> None:
        """Make a matcher with these tolerances."""
        self._matcher = StructureMatcher(
            ltol=tolerances.ltol, stol=tolerances.stol, angle_tol=tolerances.angle_tol
        )
        self._reduced: dict[int, tuple[Structure, Structure]] = {}

    def reduce(self, structure: Structure) -> Structure:
        """Return the primitive Niggli cell; the crystal itself if pymatgen finds none."""
        if id(structure) not in self._reduced:
            try:
                reduced = unskewed(structure).get_reduced_structure("niggli")
                cell = reduced.get_primitive_structure()
            except UNREADABLE:
                cell = structure
            # The crystal is kept with its cell, so that no other object can get its id.
            self._reduced[id(structure)] = (structure, cell)
        return self._reduced[id(structure)][1]

    def match(self, one: Structure, other: Structure) -> bool:
        """Return whether two crystals of the same formula are equal."""
        first, second = self.reduce(one), self.reduce(other)
        return len(first) == len(second) and self.same(first, second)

    def same(self, one: Structure, other: Structure) -> bool:
        """Return whether two reduced cells are equal."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # from numpy, for flat cells
            try:
                return bool(self._matcher.fit(one, other, skip_structure_reduction=True))
            except UNREADABLE:
                return False


def _formula(structure: Structure) -> str:
    return structure.composition.reduced_formula


def _bucket(cell: Structure) -> Hashable:
    return _formula(cell), len(cell)
