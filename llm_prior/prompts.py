"""The prompts of CrystalLLM (arXiv 2402.04379, appendix A) and the table of conditions.

The last sentence of a prompt names the layout of the text; that of `sites` is CrystalLLM's.

A condition is declared once, as an `Attribute` in `ATTRIBUTES`: training, sampling, the tokenizer
and the command line read that table.
"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from pymatgen.core import Composition, Structure

from llm_prior.errors import PriorError
from llm_prior.formulas import ISOTOPES, parse_formula
from llm_prior.spacegroups import parse_spacegroups, render_spacegroups
from llm_prior.text import SYMBOLS, LayoutName

GENERATION_HEAD = "Below is a description of a bulk material. "
GENERATION_TAILS: dict[LayoutName, str] = {
    "sites": "Generate a description of the lengths and angles of the lattice vectors and then the "
    "element type and coordinates for each atom within the lattice:\n",
    "wyckoff": "Generate a description of the space group, the element and Wyckoff letter of each "
    "orbit, the free lattice parameters and then the free coordinates of each orbit:\n",
}
INFILL_HEAD = (
    "Below is a partial description of a bulk material where one element has been replaced with "
    'the string "[MASK]":\n'
)
INFILL_TAIL = "\nGenerate an element that could replace [MASK] in the bulk material:\n"
SENTENCE_END = ". "

_LARGEST_AMOUNT = 1_000_000
_RANGE = re.compile(r"\s*([0-9]+)\s*-\s*([0-9]+)\s*")


@dataclass(frozen=True, kw_only=True)
class Attribute:
    """A property that a crystal can be requested to have.

    Attributes:
        name: key in data sets, in the API and (with dashes) on the command line.
        sentence: text in front of the value in a prompt.
        render: returns the canonical text of a value from a user or a data set; raises
            `PriorError`.
        derive: returns the value of a structure; None if a structure does not tell it.
        stated: returns True if prompts contain this canonical text. The models are trained with
            single values, so a range or a set constrains sampling only.
        agree: returns True if the canonical text of a structure satisfies the requested one.
        help: one line for the command line.
    """

    name: str
    sentence: str
    render: Callable[[Any], str]
    derive: Callable[[Structure], Any] | None = None
    stated: Callable[[str], bool] = lambda text: True
    agree: Callable[[str, str], bool] = operator.eq
    help: str

    def clause(self, value: Any) -> str:
        """Return the sentence of a prompt that states a value; empty if prompts do not state it.

        Args:
            value: as a user or a data set gives it.

        Raises:
            PriorError: if it is not a value of this attribute.
        """
        text = self.render(value)
        return self.sentence + text + SENTENCE_END if self.stated(text) else ""

    def holds_for(self, structure: Structure, value: Any) -> bool:
        """Return True if a structure has the requested value.

        Args:
            structure: in the cell in which it was generated.
            value: as a user gives it.

        Raises:
            PriorError: if it is not a value of this attribute.
            ValueError: if a structure does not tell this attribute.
        """
        if self.derive is None:
            raise ValueError(f"a structure does not tell its {self.name}")
        return self.agree(self.render(self.derive(structure)), self.render(value))


def parse_composition(formula: Any) -> Composition:
    """Return the composition of a formula of real elements with whole amounts.

    Args:
        formula: text, see `llm_prior.formulas.parse_formula`, a pymatgen composition or a mapping
            of elements to amounts.

    Raises:
        PriorError: if it is not a formula, or has an unknown element or an amount that is not a
            whole number from 1 on.
    """
    try:
        text = Composition(formula).formula if isinstance(formula, Mapping) else formula
    except ValueError as error:
        raise PriorError(f"{formula!r} is not a composition; give symbols and amounts") from error
    if not isinstance(text, str):
        raise PriorError(f"{formula!r} is not a chemical formula; write it like Na2SO4")
    amounts = parse_formula(text)
    whole = {symbol: int(amount) for symbol, amount in amounts.items()}
    if any(amount.denominator > 1 for amount in amounts.values()):
        factor = math.lcm(*(amount.denominator for amount in amounts.values()))
        same = "".join(f"{s}{factor * n}" for s, n in amounts.items()) if factor < 1000 else ""
        raise PriorError(
            f"formula {formula!r} needs whole amounts" + (f", such as {same}" if same else "")
        )
    if max(whole.values()) > _LARGEST_AMOUNT:
        raise PriorError(f"formula {formula!r} needs whole amounts up to {_LARGEST_AMOUNT}")
    return Composition(whole)


def render_formula(value: Any) -> str:
    """Return the reduced formula in pymatgen's order, as Materials Project prints it.

    Args:
        value: see `parse_composition`.

    Raises:
        PriorError: if it is not a formula.
    """
    if isinstance(value, str):
        return _reduced_formula(value)
    return parse_composition(value).reduced_formula


@lru_cache(maxsize=4096)
def _reduced_formula(formula: str) -> str:
    """The reduced formula of a text, remembered: every sample of a request asks for it."""
    return str(parse_composition(formula).reduced_formula)


def render_elements(value: Any) -> str:
    """Return the symbols of a set of elements, sorted and joined, such as `Cl, Na`.

    Args:
        value: text such as `Na-Cl` or `Na,Cl`, or an iterable of symbols or elements.

    Raises:
        PriorError: if there is no element, or an unknown one.
    """
    if isinstance(value, str):
        words: Iterable[Any] = value.replace("-", ",").split(",")
    else:
        words = value if isinstance(value, Iterable) else ()
    names = [str(word).strip() for word in words]
    symbols = sorted({ISOTOPES.get(name, name) for name in names})
    if not symbols:
        raise PriorError(f"{value!r} names no element; write elements like Na,Cl")
    for symbol in symbols:
        if symbol not in SYMBOLS:
            raise PriorError(f"unknown element {symbol!r}; write elements like Na,Cl")
    return ", ".join(symbols)


def parse_num_atoms(value: Any) -> tuple[int, int]:
    """Return the smallest and the largest number of atoms of a number or a range.

    Args:
        value: a whole number, text such as `8` or `5-10`, or a pair (smallest, largest).

    Raises:
        PriorError: if it is none of these, or the range is empty or starts below 1.
    """
    bounds: Sequence[Any] = (value, value)
    if isinstance(value, str) and (match := _RANGE.fullmatch(value)):
        bounds = match.groups()
    elif isinstance(value, list | tuple) and len(value) == 2:
        bounds = value
    low, high = (_to_float(bound) for bound in bounds)
    if not _is_whole(high, 1, _LARGEST_AMOUNT) or not _is_whole(low, -math.inf, math.inf):
        raise PriorError(
            f"num_atoms {value!r} is not a whole number from 1 to {_LARGEST_AMOUNT} or a range of "
            "them such as 5-10"
        )
    if low < 1:
        raise PriorError(
            f"num_atoms {value!r} is a range that starts below 1; give one such as 1-{int(high)}"
        )
    if low > high:
        raise PriorError(
            f"num_atoms {value!r} is an empty range; write the smaller number first, as in "
            f"{int(high)}-{int(low)}"
        )
    return int(low), int(high)


def render_num_atoms(value: Any) -> str:
    """Return a number of atoms or a range of them as canonical text, such as `8` or `5-10`.

    Args:
        value: see `parse_num_atoms`.

    Raises:
        PriorError: if it is not a number of atoms or a range of them.
    """
    low, high = parse_num_atoms(value)
    return str(low) if low == high else f"{low}-{high}"


def _to_float(value: Any) -> float:
    """Return a number as a float; NaN if it is no number or too large."""
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        return math.nan


def _is_whole(number: float, low: float, high: float) -> bool:
    return math.isfinite(number) and number == int(number) and low <= number <= high


def _two_decimals(name: str, low: float = -math.inf) -> Callable[[Any], str]:
    """Return a function that renders an energy in eV with two decimals."""

    def render(value: Any) -> str:
        try:
            number = float(value)
        except (TypeError, ValueError, OverflowError) as error:
            raise PriorError(f"{name} {value!r} is not a number; give eV") from error
        if not abs(number) < 1e6:
            raise PriorError(f"{name} {value!r} is not a finite number of eV; give one")
        if number < low:
            raise PriorError(f"{name} {value!r} is below {low:g} eV; give {low:g} or more")
        return f"{round(number, 2) + 0.0:.2f}"  # + 0.0: no -0.00

    return render


def _in_range(num_atoms: str, wanted: str) -> bool:
    low, high = parse_num_atoms(wanted)
    return low <= int(num_atoms) <= high


ATTRIBUTES: tuple[Attribute, ...] = (
    Attribute(
        name="formula",
        sentence="The chemical formula is ",
        render=render_formula,
        derive=lambda s: s.composition.reduced_formula,
        help="Chemical formula, any number of formula units, such as NaCl.",
    ),
    Attribute(
        name="elements",
        sentence="The elements are ",
        render=render_elements,
        derive=lambda s: [element.symbol for element in s.composition.elements],
        help="Chemical system, such as Na,Cl.",
    ),
    Attribute(
        name="num_atoms",
        sentence="The number of atoms is ",
        render=render_num_atoms,
        derive=len,
        stated=lambda text: "-" not in text,
        agree=_in_range,
        help="Number of atoms in the primitive cell, or a range such as 5-10.",
    ),
    Attribute(
        name="spacegroup",
        sentence="The spacegroup number is ",
        render=lambda value: render_spacegroups(parse_spacegroups(value)),
        stated=str.isdigit,
        help="Space group, by number (1 to 230) or symbol such as Fm-3m, or a set of them such as "
        "225,227 or 195-230.",
    ),
    Attribute(
        name="e_above_hull",
        sentence="The energy above the convex hull is ",
        render=_two_decimals("e_above_hull"),
        help="Energy above the convex hull in eV/atom.",
    ),
    Attribute(
        name="formation_energy_per_atom",
        sentence="The formation energy per atom is ",
        render=_two_decimals("formation_energy_per_atom"),
        help="Formation energy in eV/atom.",
    ),
    Attribute(
        name="band_gap",
        sentence="The band gap is ",
        render=_two_decimals("band_gap", low=0),
        help="Band gap in eV.",
    ),
)
BY_NAME: dict[str, Attribute] = {attribute.name: attribute for attribute in ATTRIBUTES}


def check_names(conditions: Iterable[str]) -> None:
    """Check the names of conditions.

    Args:
        conditions: names.

    Raises:
        PriorError: if one is not in `ATTRIBUTES`.
    """
    for name in conditions:
        if name not in BY_NAME:
            raise PriorError(f"unknown condition {name!r}; known are {', '.join(BY_NAME)}")


def generation_prompt(conditions: Mapping[str, Any], layout: LayoutName = "sites") -> str:
    """Return the prompt for a crystal that meets the conditions.

    Args:
        conditions: values of any subset of `ATTRIBUTES`, by name; the prompt states them in the
            order of that table. A range of numbers of atoms and a set of space groups are checked
            and not stated.
        layout: layout of the crystal's text.

    Raises:
        PriorError: if a condition is unknown or a value is bad.
    """
    check_names(conditions)
    clauses = (a.clause(conditions[a.name]) for a in ATTRIBUTES if a.name in conditions)
    return GENERATION_HEAD + "".join(clauses) + GENERATION_TAILS[layout]


def stated_conditions(conditions: Mapping[str, Any]) -> list[str]:
    """Return the names of the conditions that the prompt states.

    Args:
        conditions: values by name.

    Raises:
        PriorError: if a condition is unknown or a value is bad.
    """
    check_names(conditions)
    return [name for name, value in conditions.items() if BY_NAME[name].clause(value)]


def infill_prompt(masked_text: str) -> str:
    """Return the prompt for the element behind [MASK].

    Args:
        masked_text: from `llm_prior.text.mask_element`.
    """
    return INFILL_HEAD + masked_text + INFILL_TAIL


def known_conditions(structure: Structure, properties: Mapping[str, Any]) -> dict[str, Any]:
    """Return every condition that describes a crystal.

    Args:
        structure: tells formula, elements and number of atoms.
        properties: values of the other conditions by name; missing ones (None, NaN) are left out.

    Returns:
        name -> value, in the order of `ATTRIBUTES`.
    """
    known = {}
    for attribute in ATTRIBUTES:
        value = properties.get(attribute.name)
        if attribute.derive is not None:
            value = attribute.derive(structure)
        if value is not None and value == value:
            known[attribute.name] = value
    return known
