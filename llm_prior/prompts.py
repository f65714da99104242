"""The prompts of CrystalLLM (arXiv 2402.04379, appendix A) and the one table of conditions.

To add a condition, add an `Attribute` to `ATTRIBUTES`: training, sampling, the tokenizer and the
command line read them from there.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from pymatgen.core import Composition, Structure

from llm_prior.errors import PriorError
from llm_prior.text import SYMBOLS

GENERATION_HEAD = "Below is a description of a bulk material. "
GENERATION_TAIL = (
    "Generate a description of the lengths and angles of the lattice vectors and then the element "
    "type and coordinates for each atom within the lattice:\n"
)
INFILL_HEAD = (
    "Below is a partial description of a bulk material where one element has been replaced with "
    'the string "[MASK]":\n'
)
INFILL_TAIL = "\nGenerate an element that could replace [MASK] in the bulk material:\n"
SENTENCE_END = ". "

# pymatgen reads more than formulas (charges, exponents, a silent "@") and takes D for hydrogen.
_FORMULA = re.compile(r"(?:[A-Z][a-z]?|[0-9.()\[\]{}\s])+")
_LARGEST_AMOUNT = 1_000_000


@dataclass(frozen=True, kw_only=True)
class Attribute:
    """One property that a prompt can ask for.

    Attributes:
        name: field name in data sets, in the API and (with dashes) on the command line.
        sentence: what stands before the value.
        render: value as given by a user or a data set -> canonical text; raises PriorError.
        derive: reads the value off a structure where it can be, else None.
        help: one line for the command line.
    """

    name: str
    sentence: str
    render: Callable[[Any], str]
    derive: Callable[[Structure], Any] | None = None
    help: str


def parse_composition(formula: Any) -> Composition:
    """A formula of real elements with whole amounts.

    Raises:
        PriorError: not a formula, an unknown element, or a fractional or absent amount.
    """
    text = Composition(formula).formula if isinstance(formula, Mapping) else str(formula)
    no_formula = f"{formula!r} is not a chemical formula; write it like Na2SO4"
    if not _FORMULA.fullmatch(text):
        raise PriorError(no_formula)
    symbols = re.findall("[A-Z][a-z]?", text)
    for symbol in symbols:
        if symbol not in SYMBOLS:
            raise PriorError(f"unknown element {symbol} in formula {formula!r}")
    try:
        composition = Composition(text, strict=True)
    except ValueError as error:
        raise PriorError(no_formula) from error
    amounts = [composition[symbol] for symbol in symbols]  # pymatgen drops those that are zero
    if not amounts or not all(_is_whole(amount, 1, _LARGEST_AMOUNT) for amount in amounts):
        raise PriorError(f"formula {formula!r} needs whole amounts of at least one element")
    return composition


def _is_whole(number: float, low: int, high: int) -> bool:
    return math.isfinite(number) and number == int(number) and low <= number <= high


def render_formula(value: Any) -> str:
    """The reduced formula in pymatgen's order, as Materials Project prints it."""
    return parse_composition(value).reduced_formula


def render_elements(value: Any) -> str:
    """`Na-Cl`, `Na,Cl` or a list -> `Cl, Na` (sorted by symbol)."""
    if isinstance(value, str):
        words: Iterable[Any] = value.replace("-", ",").split(",")
    else:
        words = value if isinstance(value, Iterable) else ()
    symbols = sorted({str(word).strip() for word in words})
    if not symbols:
        raise PriorError(f"{value!r} names no element; write elements like Na,Cl")
    for symbol in symbols:
        if symbol not in SYMBOLS:
            raise PriorError(f"unknown element {symbol!r}; write elements like Na,Cl")
    return ", ".join(symbols)


def _number(name: str, value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError) as error:
        raise PriorError(f"{name} {value!r} is not a number") from error


def _whole_number(name: str, low: int, high: int) -> Callable[[Any], str]:
    def render(value: Any) -> str:
        try:
            number = float(value)
        except (TypeError, ValueError, OverflowError):
            number = math.nan
        if not _is_whole(number, low, high):
            raise PriorError(f"{name} {value!r} is not a whole number from {low} to {high}")
        return str(int(number))

    return render


def _two_decimals(name: str, low: float = -math.inf) -> Callable[[Any], str]:
    def render(value: Any) -> str:
        number = _number(name, value)
        if not abs(number) < 1e6:
            raise PriorError(f"{name} {value!r} is not a finite number of eV")
        if number < low:
            raise PriorError(f"{name} {value!r} is below {low:g} eV; give {low:g} or more")
        return f"{round(number, 2) + 0.0:.2f}"  # + 0.0: no -0.00

    return render


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
        render=_whole_number("num_atoms", 1, _LARGEST_AMOUNT),
        derive=len,
        help="Number of atoms in the primitive cell.",
    ),
    Attribute(
        name="spacegroup",
        sentence="The spacegroup number is ",
        render=_whole_number("spacegroup", 1, 230),
        help="Space group number, 1 to 230.",
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


def generation_prompt(conditions: Mapping[str, Any]) -> str:
    """The prompt that asks for a crystal which meets `conditions` (any subset of `ATTRIBUTES`,
    written in the order of that table).

    Raises:
        PriorError: an unknown condition, or a value that is none.
    """
    for name in conditions:
        if name not in BY_NAME:
            raise PriorError(f"unknown condition {name!r}; known are {', '.join(BY_NAME)}")
    sentences = (
        attribute.sentence + attribute.render(conditions[attribute.name]) + SENTENCE_END
        for attribute in ATTRIBUTES
        if attribute.name in conditions
    )
    return GENERATION_HEAD + "".join(sentences) + GENERATION_TAIL


def infill_prompt(masked_text: str) -> str:
    """The prompt that asks for the element behind [MASK] in a crystal's text."""
    return INFILL_HEAD + masked_text + INFILL_TAIL


def known_conditions(structure: Structure, properties: Mapping[str, Any]) -> dict[str, Any]:
    """Every condition that this crystal can be described by: those in `properties`, and those
    that can be read off the structure. Missing values (None, NaN) are left out."""
    known = {}
    for attribute in ATTRIBUTES:
        value = properties.get(attribute.name)
        if attribute.derive is not None:
            value = attribute.derive(structure)
        if value is not None and value == value:
            known[attribute.name] = value
    return known
