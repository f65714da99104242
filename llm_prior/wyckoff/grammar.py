"""Fields that may follow in a `wyckoff` text, so that only crystals of the conditions are written.

The automaton knows fields, not tokens. A field is a kind and a value: the number of a group, an
element by its place in `SYMBOLS`, a letter by its place in the group, a length or an angle in units
of its last decimal, a coordinate by its bin. Whatever is written has exactly the composition and
the group of the conditions (spglib at `lattices.SYMPREC`), takes a position without free
coordinates once, has no coordinate on a more special position, and no two atoms closer than
`spacing.MIN_DISTANCE`; what is legal can always be completed. Where the cell that was written turns
out to be too crowded for that, the bin with the largest distance remains, and `Cursor.crowded` says
so: about 1 in 70 crystals of uniformly random fields.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import cached_property, lru_cache
from typing import Literal, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from llm_prior.composition import CompositionRule
from llm_prior.errors import PriorError
from llm_prior.spacegroups import render_spacegroups
from llm_prior.text import SYMBOLS
from llm_prior.wyckoff.assignment import Assignment, has_crystal
from llm_prior.wyckoff.crystal import FREE_CELL, WyckoffCrystal
from llm_prior.wyckoff.parameters import CellPart, CoordPart, cell_ticks
from llm_prior.wyckoff.table import NUM_GROUPS
from llm_prior.wyckoff.text import WyckoffFormat, coordinate_bins, hidden_places

Kind = Literal["group", "element", "letter", "length", "angle", "coord", "end"]

_MOST_KNOWN = 5000  # assignments that a grammar keeps, and answers about them of each kind
_Value = TypeVar("_Value")


class Choice(NamedTuple):
    """Values that one kind of field may take next.

    Attributes:
        kind: the kind of field.
        values: (k,) integers, ascending; 0 alone for `end`.
    """

    kind: Kind
    values: NDArray[np.int64]


def fields_of(crystal: WyckoffCrystal, fmt: WyckoffFormat) -> list[tuple[Kind, int]]:
    """Return the fields (kind, value) of a description, the end included.

    Args:
        crystal: a description as `to_text` writes it.
        fmt: precision.
    """
    group = crystal.group
    fields: list[tuple[Kind, int]] = [("group", group.number)]
    for orbit in crystal.orbits:
        fields.append(("element", SYMBOLS.index(orbit.element)))
        fields.append(("letter", group.position(orbit.letter).index))
    for place, value in zip(FREE_CELL[group.family], crystal.cell, strict=True):
        if place < 3:
            fields.append(("length", round(value * 10**fmt.length_decimals)))
        else:
            fields.append(("angle", round(value * 10**fmt.angle_decimals)))
    for number, orbit in enumerate(crystal.orbits):
        hidden = hidden_places(group, orbit.letter, first=number == 0)
        ticks = coordinate_bins(group.number, orbit, fmt.coord_bins, hidden)
        fields += [("coord", tick) for place, tick in enumerate(ticks) if place not in hidden]
    return [*fields, ("end", 0)]


class Grammar:
    """The fields that one request allows; shared by all its sequences.

    Args:
        fmt: precision and size limit.
        rule: what the conditions ask of the atoms of the primitive cell.
        groups: numbers of the groups that are requested; None for all.

    Attributes:
        requested: the groups that are requested, ascending, as texts write them: of two
            enantiomorphic groups they have one.

    Raises:
        PriorError: if none of them can hold a crystal of the rule.
    """

    def __init__(
        self, fmt: WyckoffFormat, rule: CompositionRule, groups: Iterable[int] | None = None
    ) -> None:
        self.fmt = fmt
        self.rule = rule
        every = range(1, NUM_GROUPS + 1)
        asked = sorted(every if groups is None else set(groups))
        self.requested = sorted({fmt.written_group(number) for number in asked})
        self._elements: dict[object, list[int]] = {}
        self._letters: dict[object, list[int]] = {}
        self._completes: dict[object, bool] = {}
        self._known: dict[object, Assignment] = {}
        if not any(has_crystal(rule, number) for number in self.requested):
            others = [n for n in every if has_crystal(rule, fmt.written_group(n))]
            several = "one of the space groups" if len(asked) > 1 else "space group"
            raise PriorError(
                f"no crystal of these conditions, atoms counted in the primitive cell, has exactly "
                f"{several} {render_spacegroups(asked)}; groups that can: "
                f"{render_spacegroups(others) or 'none'}"
            )

    @cached_property
    def groups(self) -> list[int]:
        """Those of the requested groups that can hold a crystal of the rule, ascending."""
        return [number for number in self.requested if has_crystal(self.rule, number)]

    def cursor(self) -> Cursor:
        """Return a new sequence, before its first field."""
        return Cursor(self)

    def elements(self, assignment: Assignment) -> list[int]:
        """Return `assignment.elements()`, remembered.

        Args:
            assignment: orbits so far.
        """
        return _remembered(self._elements, assignment.key, assignment.elements)

    def letters(self, assignment: Assignment) -> list[int]:
        """Return `assignment.letters()`, remembered.

        Args:
            assignment: orbits so far, and an element.
        """
        return _remembered(self._letters, assignment.key, assignment.letters)

    def known(self, assignment: Assignment) -> Assignment:
        """Return the same assignment as the object that came first, which remembers its counts.

        Args:
            assignment: orbits so far, maybe an element.
        """
        return _remembered(self._known, assignment.key, lambda: assignment)

    def completes(self, assignment: Assignment) -> bool:
        """Return `assignment.can_complete()`, remembered.

        Args:
            assignment: orbits so far, maybe an element.
        """
        return _remembered(self._completes, assignment.key, assignment.can_complete)


class Cursor:
    """One sequence that is being written.

    Args:
        grammar: what the request allows.

    Attributes:
        finished: the end was written.
        crowded: some coordinate had to be written although atoms are closer than `MIN_DISTANCE` or
            the group may be higher.
    """

    def __init__(self, grammar: Grammar) -> None:
        self.finished = False
        self.crowded = False
        self._grammar = grammar
        self._assignment: Assignment | None = None
        self._cell: CellPart | None = None
        self._draft: CellPart | None = None  # the cell, if the orbits end here
        self._coords: CoordPart | None = None
        self._legal: tuple[Choice, ...] | None = None
        self._possible: tuple[Choice, ...] | None = None
        self._accepted: tuple[Kind, int] | None = None

    def legal(self) -> tuple[Choice, ...]:
        """Return the fields that may come next, at least one value.

        Raises:
            ValueError: if the sequence is finished.
        """
        if self.finished:
            raise ValueError("the sequence is finished")
        if self._legal is None:
            self._legal = tuple(self._choices())
        return self._legal

    def candidates(self) -> tuple[Choice, ...]:
        """Return fields of which some may come next; all that may are among them.

        They are found at once, and `accepts` examines one of them, while `legal` examines all.

        Raises:
            ValueError: if the sequence is finished.
        """
        if self.finished or self._legal is not None:
            return self.legal()
        if self._possible is None:
            self._possible = tuple(self._candidates())
        return self._possible

    def accepts(self, kind: Kind, value: int) -> bool:
        """Return whether one of the `candidates` may come next.

        Where none of them is as good as it should be, so that `legal` has others, all are refused.

        Args:
            kind: its kind.
            value: its value.
        """
        if self._accepted == (kind, value):
            return True
        if not _among(self.candidates(), kind, value):
            return False
        if self._legal is None and not self._fits(kind, value):
            return False
        self._accepted = kind, value
        return True

    def advance(self, kind: Kind, value: int) -> None:
        """Write a field.

        Args:
            kind: its kind.
            value: its value.

        Raises:
            ValueError: if it is not among `legal()`.
        """
        if not self.accepts(kind, value) and not _among(self.legal(), kind, value):
            raise ValueError(f"{kind} {value} may not come here")
        self._legal = self._possible = self._accepted = None
        if kind == "end":
            self.finished = True
        elif kind == "group":
            start = Assignment(rule=self._grammar.rule, number=value)
            self._assignment = self._grammar.known(start)
        elif kind == "element":
            assert self._assignment is not None
            self._assignment = self._grammar.known(self._assignment.with_element(value))
        elif kind == "letter":
            assert self._assignment is not None
            self._assignment = self._grammar.known(self._assignment.with_letter(value))
            self._draft = None
        elif kind == "coord":
            assert self._coords is not None
            self._coords.add(value)
        else:
            if self._cell is None:
                self._cell = self._empty_cell
            self._cell.add(value)
            if self._cell.complete:
                self._coords = CoordPart(self._cell, self._grammar.fmt)

    def crystal(self) -> WyckoffCrystal:
        """Return the crystal that was written.

        Raises:
            ValueError: if the sequence is not finished.
        """
        if not self.finished or self._coords is None:
            raise ValueError("the sequence is not finished")
        return self._coords.crystal()

    def _choices(self) -> Iterable[Choice]:
        assignment = self._assignment
        if assignment is None:
            yield _choice("group", self._grammar.groups)
        elif self._coords is not None:
            if self._coords.complete:
                yield _END
            else:
                values, crowded = self._coords.allowed()
                self.crowded |= crowded
                yield Choice("coord", values)
        elif self._cell is not None:
            yield Choice(self._cell.kind, self._cell.allowed())
            self.crowded |= self._cell.crowded
        elif assignment.element is not None:
            yield _choice("letter", self._grammar.letters(assignment))
        else:
            elements = self._grammar.elements(assignment)
            if elements:
                yield _choice("element", elements)
            if assignment.may_end:
                cell = self._empty_cell
                yield Choice(cell.kind, cell.allowed())

    def _candidates(self) -> Iterable[Choice]:
        assignment, fmt = self._assignment, self._grammar.fmt
        if assignment is None:
            yield _choice("group", self._grammar.requested)
        elif self._coords is not None:
            yield _END if self._coords.complete else _every_coordinate(fmt.coord_bins)
        elif self._cell is not None:
            yield _every_parameter(self._cell.kind, fmt.length_decimals, fmt.angle_decimals)
        elif assignment.element is not None:
            yield _choice("letter", assignment.possible_letters)
        else:
            if elements := assignment.possible_elements:
                yield _choice("element", elements)
            if assignment.could_end:
                yield _every_parameter("length", fmt.length_decimals, fmt.angle_decimals)

    def _fits(self, kind: Kind, value: int) -> bool:
        """Whether one of the candidates may come next, as far as it alone tells."""
        assignment = self._assignment
        if assignment is None:
            return has_crystal(self._grammar.rule, value)
        if self._coords is not None:
            return kind == "end" or self._coords.accepts(value)
        if self._cell is not None:
            return self._cell.accepts(value)
        if kind == "letter":
            return self._grammar.completes(self._grammar.known(assignment.with_letter(value)))
        if kind == "element":
            return self._grammar.completes(self._grammar.known(assignment.with_element(value)))
        return assignment.may_end and self._empty_cell.accepts(value)

    @property
    def _empty_cell(self) -> CellPart:
        """The cell of the orbits so far, without any value."""
        if self._draft is None:
            assert self._assignment is not None
            orbits = self._assignment.orbits
            self._draft = CellPart(self._assignment.number, orbits, self._grammar.fmt)
        return self._draft


def _remembered(memory: dict[object, _Value], key: object, find: Callable[[], _Value]) -> _Value:
    """Return the value of a key, found and kept if it is new; a full memory is emptied first."""
    if key not in memory:
        if len(memory) >= _MOST_KNOWN:
            memory.clear()
        memory[key] = find()
    return memory[key]


def _among(choices: Iterable[Choice], kind: Kind, value: int) -> bool:
    return any(choice.kind == kind and value in choice.values for choice in choices)


def _choice(kind: Kind, values: Iterable[int]) -> Choice:
    return Choice(kind, np.array(sorted(values), dtype=np.int64))


_END = _choice("end", [0])


@lru_cache(maxsize=16)
def _every_coordinate(bins: int) -> Choice:
    return Choice("coord", np.arange(bins))


@lru_cache(maxsize=16)
def _every_parameter(kind: Kind, *decimals: int) -> Choice:
    return Choice(kind, cell_ticks(kind, decimals))
