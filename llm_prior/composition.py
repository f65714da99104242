"""Which element may come next, so that a crystal within the size limit meets its conditions."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from llm_prior.errors import PriorError
from llm_prior.prompts import generation_prompt, parse_composition, render_elements
from llm_prior.text import SYMBOLS

_NUMBER_OF = {symbol: number for number, symbol in enumerate(SYMBOLS)}
ALL_ELEMENTS = (1 << len(SYMBOLS)) - 1


@dataclass(frozen=True, kw_only=True)
class CompositionRule:
    """What the conditions ask of the atoms, in the order in which `encode` writes them: like atoms
    together, so an element that was left never comes back.

    Sets of elements are bit masks: bit i stands for `SYMBOLS[i]`.

    Attributes:
        allowed: the elements that may occur.
        required: the elements that must occur.
        unit: atoms of each element in one formula unit (`SYMBOLS` index -> count), or None
            without a formula.
        multiples: the numbers of formula units that are allowed; empty without a formula.
        min_atoms: fewest atoms.
        max_atoms: most atoms.
    """

    allowed: int
    required: int
    unit: Mapping[int, int] | None
    multiples: frozenset[int]
    min_atoms: int
    max_atoms: int

    @classmethod
    def from_conditions(
        cls,
        conditions: Mapping[str, Any],
        max_atoms: int,
        *,
        exclude_elements: Iterable[str] = (),
    ) -> CompositionRule:
        """The rule of a request.

        Args:
            conditions: of these `formula`, `elements` and `num_atoms` say something of the atoms.
            max_atoms: sites of the largest crystal that the model writes.
            exclude_elements: symbols of elements that must not occur.

        Raises:
            PriorError: an unknown condition or a bad value, or no crystal of at most `max_atoms`
                sites can meet the conditions.
        """
        generation_prompt(conditions)
        formula, elements = conditions.get("formula"), conditions.get("elements")
        excluded = _element_set(exclude_elements, "exclude_elements")
        unit = None
        if formula is not None:
            unit = _formula_unit(formula)
            size = sum(unit.values())
            if size > max_atoms:
                raise PriorError(
                    f"formula {formula} has {size} atoms, this model writes at most {max_atoms}; "
                    "give a smaller formula or another model"
                )
        low, high = 1, max_atoms
        if "num_atoms" in conditions:
            low = high = int(float(conditions["num_atoms"]))
            if unit is not None and high % size:
                raise PriorError(
                    f"{high} atoms are no whole number of formula units of {formula}; "
                    f"give a multiple of {size}"
                )
            if high > max_atoms:
                raise PriorError(
                    f"{high} atoms are too many, this model writes at most {max_atoms}; "
                    "give a smaller cell or another model"
                )
        required = 0
        if elements is not None:
            named = render_elements(elements)
            required = _element_set(named.split(", "), "elements")
            if required.bit_count() > high:
                raise PriorError(
                    f"a crystal of {high} atoms cannot have the elements {named}; give fewer "
                    "elements or more atoms"
                )
            if unit is not None and _bits(unit) != required:
                raise PriorError(
                    f"formula {formula} is not of the elements {named}; give the formula alone"
                )
        if unit is not None:
            required = _bits(unit)
        if required & excluded:
            symbols = ", ".join(symbols_of(required & excluded))
            asked = f"formula {formula}" if unit is not None else "the elements asked for"
            raise PriorError(
                f"{asked} cannot do without the excluded {symbols}; take {symbols} out of "
                "exclude_elements"
            )
        allowed = required or ALL_ELEMENTS & ~excluded
        if not allowed:
            raise PriorError("every element is excluded; exclude fewer")
        multiples: frozenset[int] = frozenset()
        if unit is not None:
            multiples = frozenset(range(-(-low // size), high // size + 1))
        return cls(
            allowed=allowed,
            required=required,
            unit=unit,
            multiples=multiples,
            min_atoms=low,
            max_atoms=high,
        )

    def next_elements(self, counts: Mapping[int, int]) -> tuple[int, bool]:
        """Which elements may come next, and whether the crystal may end here.

        From every state that this method allowed to reach, a crystal that meets the conditions can
        still be completed.

        Args:
            counts: atoms so far of each element (`SYMBOLS` index), in the order of their blocks;
                the last is the one that may go on.

        Returns:
            (elements, may_end), the elements as a bit mask.
        """
        if not counts:
            return self.allowed, False
        current, count = next(reversed(counts.items()))
        unseen = self.allowed & ~_bits(counts)
        if self.unit is not None:
            return self._next_of_formula(counts, current, count, unseen)
        total = sum(counts.values())
        missing = self.required & unseen
        room = self.max_atoms - total
        elements = 0
        if room > missing.bit_count():  # an atom that no missing element needs
            elements = (1 << current) | unseen
        elif room:
            elements = missing
        return elements, total >= self.min_atoms and not missing

    def _next_of_formula(
        self, counts: Mapping[int, int], current: int, count: int, unseen: int
    ) -> tuple[int, bool]:
        """The first block decides how many formula units there are."""
        assert self.unit is not None
        share = self.unit[current]
        if len(counts) == 1:
            multiples = self.multiples
        else:
            first, first_count = next(iter(counts.items()))
            multiples = frozenset((first_count // self.unit[first],))
        whole = not count % share and count // share in multiples
        elements = unseen if whole else 0
        if count < share * max(multiples):
            elements |= 1 << current
        return elements, whole and not unseen


def symbols_of(elements: int) -> list[str]:
    """The symbols of a bit mask, by atomic number."""
    return [symbol for symbol, number in _NUMBER_OF.items() if elements >> number & 1]


def _bits(numbers: Iterable[int]) -> int:
    mask = 0
    for number in numbers:
        mask |= 1 << number
    return mask


def _element_set(symbols: Iterable[str], name: str) -> int:
    mask = 0
    for symbol in symbols:
        if symbol not in _NUMBER_OF:
            raise PriorError(f"{name}: unknown element {symbol!r}; write symbols like Na")
        mask |= 1 << _NUMBER_OF[symbol]
    return mask


def _formula_unit(formula: Any) -> dict[int, int]:
    """Atoms of the smallest formula unit: 1 for O, whose reduced formula is written O2."""
    composition = parse_composition(formula)
    amounts = {_NUMBER_OF[str(element)]: int(n) for element, n in composition.items()}
    divisor = math.gcd(*amounts.values())
    return {number: amount // divisor for number, amount in amounts.items()}
