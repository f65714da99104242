"""The discrete part of a text as it is written: group, then element and letter of each orbit.

Orbits come in the order of `encode`: elements by electronegativity, letters of an element in
alphabetic order. A choice is legal if the orbits so far can be completed to a crystal that meets
the conditions and has exactly its group. A completion is looked for each time; where many are
possible, only the first `_MOST_TRIED` (of each number of formula units) are examined, and a choice
that none of them supports is not offered. The search visits completions in a fixed order, so the
one that made a choice legal is found again after it: there is always a way on.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from itertools import islice

from llm_prior.composition import CompositionRule
from llm_prior.text import SYMBOLS
from llm_prior.wyckoff.crystal import element_order
from llm_prior.wyckoff.feasibility import can_complete, completions, sizes
from llm_prior.wyckoff.supergroups import keeps_group

_MOST_TRIED = 30  # completions whose symmetry is examined
_MOST_VISITED = 2000  # steps of the search
_Orbits = tuple[tuple[int, int], ...]  # (`SYMBOLS` index, place of the letter)


@dataclass(frozen=True, kw_only=True)
class Assignment:
    """Orbits that are being written.

    Attributes:
        rule: what the conditions ask of the atoms of the primitive cell.
        number: space group.
        orbits: (element as its place in `SYMBOLS`, place of the letter) of each orbit so far.
        element: element of the orbit whose letter comes next, or None between orbits.
    """

    rule: CompositionRule
    number: int
    orbits: _Orbits = ()
    element: int | None = field(default=None)

    @property
    def key(self) -> tuple[int, _Orbits, int | None]:
        """What tells assignments of one rule apart."""
        return self.number, self.orbits, self.element

    @cached_property
    def possible_elements(self) -> list[int]:
        """The elements among which the next one is, by their numbers of atoms alone.

        Raises:
            ValueError: if a letter is due.
        """
        if self.element is not None:
            raise ValueError("a letter comes next")
        smallest = min(sizes(self.number).atoms)
        candidates = self._candidates()
        if not self._is_whole:
            candidates = [e for e in candidates if e == self.orbits[-1][0]]
        if self.rule.unit is None:  # the room is the same for every element
            return sorted(candidates) if self._room(-1) >= smallest else []
        return sorted(e for e in candidates if self._room(e) >= smallest)

    @cached_property
    def possible_letters(self) -> list[int]:
        """The letters, by place, among which the next one is.

        Raises:
            ValueError: if an element is due.
        """
        if self.element is None:
            raise ValueError("an element comes next")
        of_group = sizes(self.number)
        room = self._room(self.element)
        start = self._start if self.orbits and self.orbits[-1][0] == self.element else 0
        return [
            place
            for place in range(start, len(of_group.atoms))
            if of_group.atoms[place] <= room
            and not (of_group.once[place] and self._used >> place & 1)
        ]

    def elements(self) -> list[int]:
        """Return the elements that may come next.

        Raises:
            ValueError: if a letter is due.
        """
        possible = self.possible_elements
        found = [e for e in possible if self._is_required(e) and self._may_follow(e)]
        optional = [e for e in possible if not self._is_required(e)]
        # What follows the last of these by electronegativity may follow any other of them too.
        optional.sort(key=lambda element: element_order()[SYMBOLS[element]])
        if optional and self._may_follow(optional[-1]):
            found += optional
        else:
            found += [e for e in optional[:-1] if self._may_follow(e)]
        return sorted(found)

    def letters(self) -> list[int]:
        """Return the letters, by place, that the element just written may take.

        Raises:
            ValueError: if an element is due.
        """
        return [p for p in self.possible_letters if self.with_letter(p).can_complete()]

    @cached_property
    def may_end(self) -> bool:
        """Whether the orbits so far are a crystal of the conditions with exactly the group."""
        return self.could_end and self._keeps_group(())

    @cached_property
    def could_end(self) -> bool:
        """Whether the orbits so far have the atoms of the conditions."""
        if not self.orbits or self.element is not None:
            return False
        if self.rule.unit is not None:
            return len(self._counts) == len(self.rule.unit) and self._is_whole
        present = sum(1 << element for element in self._counts)
        return (
            sum(self._counts.values()) >= self.rule.min_atoms and not self.rule.required & ~present
        )

    def with_element(self, element: int) -> Assignment:
        """Return the assignment after an element.

        Args:
            element: place in `SYMBOLS`.
        """
        # `dataclasses.replace` takes several times as long.
        return Assignment(rule=self.rule, number=self.number, orbits=self.orbits, element=element)

    def with_letter(self, place: int) -> Assignment:
        """Return the assignment after a letter.

        Args:
            place: place of the letter in the group.
        """
        assert self.element is not None
        orbits = (*self.orbits, (self.element, place))
        return Assignment(rule=self.rule, number=self.number, orbits=orbits)

    def can_complete(self) -> bool:
        """Return whether a crystal that meets the conditions and has exactly the group can follow.

        Only the completions that the search visits first count, see the module's text.
        """
        if self.element is not None:
            places = reversed(self.possible_letters)
            return any(self.with_letter(place).can_complete() for place in places)
        return any(self._some_keeps_group(completions_) for completions_ in self._completions())

    def _some_keeps_group(self, completions_: Iterator[_Orbits | None]) -> bool:
        tried = 0
        for rest in islice(completions_, _MOST_VISITED):
            if rest is not None:
                if self._keeps_group(rest):
                    return True
                tried += 1
                if tried == _MOST_TRIED:
                    break
        return False

    def _may_follow(self, element: int) -> bool:
        return self.with_element(element).can_complete()

    def _is_required(self, element: int) -> bool:
        present = element in self._counts
        return present or bool(self.rule.required >> element & 1)

    # --- what is there -------------------------------------------------------------------------

    @cached_property
    def _counts(self) -> dict[int, int]:
        """Atoms of each element so far, in the order of the blocks."""
        counts: dict[int, int] = {}
        for element, place in self.orbits:
            counts[element] = counts.get(element, 0) + sizes(self.number).atoms[place]
        return counts

    @cached_property
    def _used(self) -> int:
        """Bit mask of the positions without free coordinates that are taken."""
        once = sizes(self.number).once
        return sum(1 << place for place in {p for _, p in self.orbits} if once[place])

    @property
    def _start(self) -> int:
        """Place of the first letter that the present element may still take."""
        place = self.orbits[-1][1]
        return place + 1 if sizes(self.number).once[place] else place

    def _keeps_group(self, rest: _Orbits) -> bool:
        parts: dict[int, list[int]] = {}
        for element, place in (*self.orbits, *rest):
            parts.setdefault(element, []).append(place)
        return keeps_group(self.number, tuple(sorted(tuple(sorted(p)) for p in parts.values())))

    def _room(self, element: int) -> int:
        """Most atoms that another orbit of an element may have."""
        if self.rule.unit is None:
            return self.rule.max_atoms - sum(self._counts.values())
        most = max(self._multiples, default=0) * self.rule.unit[element]
        return most - self._counts.get(element, 0)

    def _has_room(self, total: int, missing: int) -> bool:
        """Whether more orbits can bring the atoms between the fewest and the most."""
        of_group = sizes(self.number)
        least = max(self.rule.min_atoms - total, 1)
        most = self.rule.max_atoms - total
        smallest = min(of_group.atoms)
        return most >= smallest * max(missing, 1) and any(
            can_complete(self.number, 0, 0, self._used, (more,)) for more in range(least, most + 1)
        )

    # --- what may follow -----------------------------------------------------------------------

    def _candidates(self) -> list[int]:
        """Elements that keep the order: the present one, and those of a higher rank up to the
        next that is required."""
        order = _by_rank(self.rule.allowed)
        found: list[int] = []
        start = 0
        if self.orbits:
            current = self.orbits[-1][0]
            found, start = [current], order.index(current) + 1
        if not self.rule.required:
            return [*found, *order[start:]]
        for element in order[start:]:
            found.append(element)
            if self.rule.required >> element & 1:
                break
        return found

    @cached_property
    def _is_whole(self) -> bool:
        """Whether no atoms of the last element are missing; True without a formula."""
        if self.rule.unit is None or not self.orbits:
            return True
        element = self.orbits[-1][0]
        share = self.rule.unit[element]
        return any(self._counts[element] == units * share for units in self._multiples)

    @cached_property
    def _multiples(self) -> tuple[int, ...]:
        """Numbers of formula units that the elements written so far leave."""
        assert self.rule.unit is not None
        blocks = list(self._counts.items())
        found = []
        for units in sorted(self.rule.multiples):
            closed = all(count == units * self.rule.unit[e] for e, count in blocks[:-1])
            fits = all(count <= units * self.rule.unit[e] for e, count in blocks[-1:])
            if closed and fits:
                found.append(units)
        return tuple(found)

    def _completions(self) -> Iterator[Iterator[_Orbits | None]]:
        """Completions, those of each number of formula units apart, the largest first."""
        if self.rule.unit is None:
            yield self._open_completions(self.orbits, self._start if self.orbits else 0)
            return
        for units in reversed(self._multiples):
            yield self._completions_of(units)

    def _completions_of(self, units: int) -> Iterator[_Orbits]:
        assert self.rule.unit is not None
        order = _by_rank(self.rule.allowed)
        current = self.orbits[-1][0] if self.orbits else None
        later = order if current is None else order[order.index(current) + 1 :]
        counts = [units * self.rule.unit[element] for element in later]
        if current is None:
            missing, start, names = 0, 0, later
        else:
            missing = units * self.rule.unit[current] - self._counts[current]
            start = self._start
            names = (current, *later) if missing else later
        if not can_complete(self.number, missing, start, self._used, counts):
            return
        for letters in completions(self.number, missing, start, self._used, counts):
            yield tuple((e, p) for e, ps in zip(names, letters, strict=True) for p in ps)

    def _open_completions(self, orbits: _Orbits, start: int) -> Iterator[_Orbits | None]:
        """Completions of a crystal whose formula is not given, and None for each step."""
        state = Assignment(rule=self.rule, number=self.number, orbits=orbits)
        total = sum(state._counts.values())
        present = sum(1 << element for element in state._counts)
        missing = state.rule.required & ~present
        if orbits and total >= state.rule.min_atoms and not missing:
            yield orbits[len(self.orbits) :]
        yield None
        if not state._has_room(total, missing.bit_count()):
            return
        of_group = sizes(self.number)
        for element in reversed(state._candidates()):
            first = start if orbits and element == orbits[-1][0] else 0
            for place in range(len(of_group.atoms) - 1, first - 1, -1):
                once = of_group.once[place]
                after = total + of_group.atoms[place]
                if after > state.rule.max_atoms or (once and state._used >> place & 1):
                    continue
                following = place + 1 if once else place
                yield from self._open_completions((*orbits, (element, place)), following)


def has_crystal(rule: CompositionRule, number: int) -> bool:
    """Return whether some crystal meets the conditions and has exactly a group.

    Args:
        rule: what the conditions ask of the atoms of the primitive cell.
        number: space group.
    """
    if rule.unit is None:
        return Assignment(rule=rule, number=number).can_complete()
    counts = tuple(rule.unit[element] for element in _by_rank(sum(1 << e for e in rule.unit)))
    return _has_crystal(number, counts, rule.multiples, rule.min_atoms, rule.max_atoms)


@lru_cache(maxsize=200_000)
def _has_crystal(
    number: int, counts: tuple[int, ...], multiples: frozenset[int], min_atoms: int, max_atoms: int
) -> bool:
    """`has_crystal` for a formula, whose numbers alone decide: any elements in their order do."""
    unit = dict(zip(_by_rank((1 << len(SYMBOLS)) - 1), counts, strict=False))
    every = sum(1 << element for element in unit)
    rule = CompositionRule(
        allowed=every,
        required=every,
        unit=unit,
        multiples=multiples,
        min_atoms=min_atoms,
        max_atoms=max_atoms,
    )
    return Assignment(rule=rule, number=number).can_complete()


@lru_cache(maxsize=256)
def _by_rank(elements: int) -> tuple[int, ...]:
    """The elements of a bit mask by electronegativity."""
    rank = element_order()
    present = [i for i in range(len(SYMBOLS)) if elements >> i & 1]
    return tuple(sorted(present, key=lambda i: rank[SYMBOLS[i]]))
