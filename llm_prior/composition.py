"""The element rule of constrained decoding: the elements that may come next, so that a crystal
within the size limit meets its conditions."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from llm_prior.errors import PriorError
from llm_prior.prompts import (
    generation_prompt,
    parse_composition,
    parse_num_atoms,
    render_elements,
    render_num_atoms,
)
from llm_prior.text import SYMBOLS, TextFormat

_NUMBER_OF = {symbol: number for number, symbol in enumerate(SYMBOLS)}
ALL_ELEMENTS = (1 << len(SYMBOLS)) - 1


def composition_conditions(formula: Any) -> dict[str, Any]:
    """Return the conditions that fix every atom: the reduced formula and the number of atoms.

    Args:
        formula: all atoms of the crystal; see `llm_prior.prompts.parse_composition`.

    Returns:
        `formula` and `num_atoms`, as `propose` takes them.

    Raises:
        PriorError: if it is not a formula.
    """
    composition = parse_composition(formula)
    return {"formula": composition.reduced_formula, "num_atoms": int(composition.num_atoms)}


def check_conditions(
    conditions: Mapping[str, Any], fmt: TextFormat, *, exclude_elements: Sequence[str] = ()
) -> None:
    """Check that a crystal within the size limit can meet the conditions.

    Args:
        conditions: values by name; see `llm_prior.prompts.ATTRIBUTES`.
        fmt: its `max_atoms` is the size limit. In the layout `wyckoff` the space group counts too.
        exclude_elements: symbols of elements that must not occur.

    Raises:
        PriorError: if a condition is unknown, has a bad value, contradicts another or the excluded
            elements, or needs more atoms than the model writes.
    """
    from llm_prior.layouts import layout_of  # builds on this module

    layout_of(fmt).check(conditions, exclude_elements)


@dataclass(frozen=True, kw_only=True)
class CompositionRule:
    """Constraint on the elements, in the order in which `encode` writes them.

    `encode` writes like atoms together, so an element that another one follows does not come back.
    Sets of elements are bit masks: bit i stands for `SYMBOLS[i]`.

    Attributes:
        allowed: elements that may occur.
        required: elements that must occur.
        unit: atoms of each element in one formula unit (`SYMBOLS` index -> count), or None
            without a formula.
        multiples: allowed numbers of formula units; empty without a formula.
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
        """Return the rule of a request.

        Args:
            conditions: values by name; `formula`, `elements` and `num_atoms` constrain the atoms.
            max_atoms: sites of the largest crystal that the model writes.
            exclude_elements: symbols of elements that must not occur.

        Raises:
            PriorError: if a condition is unknown or has a bad value, or no crystal of at most
                `max_atoms` sites can meet the conditions.
        """
        generation_prompt(conditions)  # checks names and values
        formula, elements = conditions.get("formula"), conditions.get("elements")
        excluded = _element_set(exclude_elements, "exclude_elements")
        low, high = 1, max_atoms
        if "num_atoms" in conditions:
            low, high = parse_num_atoms(conditions["num_atoms"])
        unit = None if formula is None else _formula_unit(formula)
        multiples: frozenset[int] = frozenset()
        if unit is not None:
            size = sum(unit.values())
            _check_size(f"formula {formula} has {size} atoms", size, max_atoms, "formula")
            multiples = frozenset(range(-(-low // size), high // size + 1))
            if not multiples:
                raise PriorError(
                    f"{render_num_atoms((low, high))} atoms are no whole number of formula units "
                    f"of {formula}; give a multiple of {size}"
                    + (" or a range that holds one" if low < high else "")
                )
        if low < high:
            _check_size(f"num_atoms {low}-{high} ends at {high} atoms", high, max_atoms, "range")
        else:
            _check_size(f"{high} atoms are too many", high, max_atoms, "cell")
        required, named = 0, ""
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
            wanted = f"formula {formula}" if unit is not None else f"elements {named}"
            raise PriorError(
                f"{wanted} cannot do without the excluded {symbols}; take {symbols} out of "
                "exclude_elements"
            )
        allowed = required or ALL_ELEMENTS & ~excluded
        if not allowed:
            raise PriorError("exclude_elements: every element is excluded; exclude fewer")
        return cls(
            allowed=allowed,
            required=required,
            unit=unit,
            multiples=multiples,
            min_atoms=low,
            max_atoms=high,
        )

    def next_elements(self, counts: dict[int, int]) -> tuple[int, bool]:
        """Return the elements that may come next.

        From every state that this method allows, a crystal that meets the conditions can still be
        completed.

        Args:
            counts: atoms so far of each element (`SYMBOLS` index), in the order of their blocks;
                only the block of the last element may go on.

        Returns:
            (elements, may_end): the elements as a bit mask, and True if the crystal may end here.
        """
        if not counts:
            return self.allowed, False
        current = next(reversed(counts))
        count = counts[current]
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
        """Return the next elements with a formula; the first block sets the number of units."""
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
    """Return the symbols of a set of elements, by atomic number.

    Args:
        elements: bit mask.
    """
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


def _check_size(problem: str, num_atoms: int, max_atoms: int, name: str) -> None:
    if num_atoms > max_atoms:
        raise PriorError(
            f"{problem}, this model writes at most {max_atoms} in the primitive cell; give a "
            f"smaller {name} or another model"
        )


def _formula_unit(formula: Any) -> dict[int, int]:
    """Return the atoms of the smallest formula unit: 1 for O, though it is written O2."""
    composition = parse_composition(formula)
    amounts = {_NUMBER_OF[str(element)]: int(n) for element, n in composition.items()}
    divisor = math.gcd(*amounts.values())
    return {number: amount // divisor for number, amount in amounts.items()}
