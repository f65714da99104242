"""Which crystals are the same: uniqueness within a set, novelty against others.

Two crystals are the same if pymatgen's `StructureMatcher` (Ong et al. 2013, Comput. Mater. Sci. 68,
314) finds a mapping of one onto the other, both reduced to primitive Niggli cells and scaled to the
same volume. That can hold only within equal reduced formulas and equal numbers of sites in the
primitive cell, so crystals are put into such buckets first; this leaves out no pair that matches.
A cell that repeats within 1 Angstrom is no crystal, and takes the matcher terabytes: it is compared
with nothing and counts as unique and new.
"""

from __future__ import annotations

import warnings
from collections import defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from pymatgen.core import Structure
from pymatgen.core.structure_matcher import StructureMatcher
from tqdm import tqdm

from flowllm.crystals.crystal import UNREADABLE, ignore_missing_electronegativity
from flowllm.metrics.validity import shortest_translation

LTOL = 0.2  # relative tolerance of lengths
STOL = 0.3  # of positions, in units of (volume / atoms)^(1/3)
ANGLE_TOL = 5.0  # degrees
MIN_TRANSLATION = 1.0  # Angstrom
_SKEWED = 10.0


@dataclass(frozen=True, kw_only=True)
class Tolerances:
    """What the matcher forgives; the defaults are pymatgen's and the field's."""

    ltol: float = LTOL
    stol: float = STOL
    angle_tol: float = ANGLE_TOL


@ignore_missing_electronegativity()
def duplicates(
    structures: Sequence[Structure],
    *,
    tolerances: Tolerances = Tolerances(),  # noqa: B008 (frozen)
    progress: bool = False,
) -> list[int | None]:
    """For each crystal the index of the earlier one that it repeats, or None if it is unique.

    A crystal is compared with the first of each group found so far, so that the number of unique
    ones is the number of groups: uniqueness = |groups| / N (Zeni et al. 2025, "MatterGen").
    """
    cells = PrimitiveCells(tolerances)
    groups: dict[Hashable, list[int]] = defaultdict(list)
    found: list[int | None] = []
    for index, structure in enumerate(
        tqdm(structures, desc="uniqueness", unit="crystal", disable=not progress)
    ):
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
    progress: bool = False,
    description: str = "novelty",
) -> list[int | None]:
    """For each crystal the index of the first reference crystal that it is, or None if it is new.

    novelty = share of None. Only reference crystals whose formula occurs among `structures` are
    reduced and compared.
    """
    cells = PrimitiveCells(tolerances)
    wanted = {_formula(structure) for structure in structures}
    by_formula: dict[str, list[int]] = defaultdict(list)
    for index, structure in enumerate(reference):
        formula = _formula(structure)
        if formula in wanted and comparable(structure):
            by_formula[formula].append(index)
    found: list[int | None] = []
    for structure in tqdm(structures, desc=description, unit="crystal", disable=not progress):
        candidates = by_formula.get(_formula(structure), []) if comparable(structure) else []
        found.append(next((i for i in candidates if cells.match(reference[i], structure)), None))
    return found


def comparable(structure: Structure) -> bool:
    """Whether the matcher can be asked: no lattice vector is shorter than 1 Angstrom."""
    return shortest_translation(structure) >= MIN_TRANSLATION


def unskewed(structure: Structure) -> Structure:
    """The crystal in a cell that pymatgen's matcher reduces at once.

    Its Niggli reduction looks for the new vectors among all lattice points of a sphere as long as
    the longest old one: minutes for the cells that diverging generators leave. In these (product
    of lengths above 10 volumes) the LLL reduction, which needs no search, comes first.
    """
    lattice = structure.lattice
    if np.prod(lattice.abc) <= _SKEWED * lattice.volume:
        return structure
    return structure.get_reduced_structure("LLL")


class PrimitiveCells:
    """A matcher that reduces every crystal once, however often it is compared."""

    def __init__(self, tolerances: Tolerances) -> None:
        self._matcher = StructureMatcher(
            ltol=tolerances.ltol, stol=tolerances.stol, angle_tol=tolerances.angle_tol
        )
        self._reduced: dict[int, tuple[Structure, Structure]] = {}

    def reduce(self, structure: Structure) -> Structure:
        """The primitive Niggli cell; the crystal itself where pymatgen finds none."""
        if id(structure) not in self._reduced:
            try:
                reduced = unskewed(structure).get_reduced_structure("niggli")
                cell = reduced.get_primitive_structure()
            except UNREADABLE:
                cell = structure
            # The crystal is kept beside its cell: its id must not pass on to another.
            self._reduced[id(structure)] = (structure, cell)
        return self._reduced[id(structure)][1]

    def match(self, one: Structure, other: Structure) -> bool:
        """Whether two crystals of the same formula are the same."""
        first, second = self.reduce(one), self.reduce(other)
        return len(first) == len(second) and self.same(first, second)

    def same(self, one: Structure, other: Structure) -> bool:
        """Whether two reduced cells are the same."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # numpy's, on cells without width
            try:
                return bool(self._matcher.fit(one, other, skip_structure_reduction=True))
            except UNREADABLE:
                return False


def _formula(structure: Structure) -> str:
    return structure.composition.reduced_formula


def _bucket(cell: Structure) -> Hashable:
    return _formula(cell), len(cell)
