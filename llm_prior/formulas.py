"""Chemical formulas as people write them, read exactly or refused with the reason.

Hydrates and other adducts (`CuSO4·5H2O`, `CuSO4.5H2O`), brackets, subscripts of Unicode and decimal
amounts are read. What leaves an amount or an element open is refused: mixtures (`(Fe,Mn)O`),
unknown amounts (`Li1-xCoO2`) and charges (`Fe3+`, which may also be three atoms).
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from fractions import Fraction

from llm_prior.errors import PriorError
from llm_prior.text import SYMBOLS

ISOTOPES = {"D": "H", "T": "H"}

_SIMPLE = re.compile(r"(?:[A-Z][a-z]?[0-9]*\s*)+")
_ELEMENT = re.compile(r"([A-Z][a-z]?)([0-9]*)")
_DOTS = "·•∙⋅・*"  # separators of the parts of an adduct, beside the full stop
_NUMBER = r"[0-9]+(?:\.[0-9]+)?|\.[0-9]+"
_TOKEN = re.compile(rf"\s*(?:([A-Z][a-z]?)|([(\[{{])|([)\]}}])|({_NUMBER}))")
_PAIRS = {")": "(", "]": "[", "}": "{"}
_DEEPEST = 20  # brackets in brackets
# A full stop between digits is a decimal point, unless water follows (CuSO4.5H2O). After an amount
# of 1, which nobody writes, it may be either (Ni1.5H2O).
_WATER = r"[0-9]*(?:\.[0-9]+)?\s*\(?[HD]2O(?![a-z0-9])"
_BEFORE_PART = r"\.(?=\s*[A-Z(\[{])"
_SEPARATOR = re.compile(rf"{_BEFORE_PART}|(?<!\.[0-9])(?<![A-Za-z)\]}}][01])\.(?=\s*{_WATER})")
_DECIMAL = re.compile(r"(?<![0-9.])0\.[0-9]|[0-9]\.[0-9]+(?=\s|$|[)\]}])")  # nothing else
_OPEN = re.compile(r"[A-Za-z)\]}]\s*[0-9]*\.[0-9]+(?=[A-Z(\[{])")  # a point or a separator
_LONGEST_NUMBER = 20  # digits
_ZERO = re.compile(r"(?<![0-9.])0[0-9]")  # Ti02, where TiO2 is meant
_REASONS = (
    (re.compile(r"[,;/]"), "a comma or slash leaves the share of each element open"),
    (re.compile(r"[+−⁺⁻]|-\s*(?:$|[)\]}])"), "charges are not read"),
    (re.compile(r"(?<![A-Za-z])[xyznδ](?![A-Za-z])|δ|[+±-]\s*[xyzδ]"), "an amount is unknown"),
    (re.compile(r"[:@]"), "dopants and inclusions are not read"),
)


def parse_formula(text: str) -> dict[str, Fraction]:
    """Return the exact amounts of the elements in a formula.

    A full stop separates the parts of an adduct if a letter, a bracket or water follows. Elsewhere
    it is a decimal point, and refused where it may be both (`Li1.5CoO2`, `CaCl2.6NH3`, `Ni1.5H2O`).

    Args:
        text: of the formula. Deuterium and tritium count as hydrogen.

    Returns:
        Symbol -> amount above 0, in the order of their first appearance.

    Raises:
        PriorError: if it is not a formula, names an unknown element, or leaves something open.
    """
    plain = _plain(text)
    if re.search(_ZERO, plain):
        raise PriorError(
            f"formula {text[:40]!r} has an amount that begins with 0; write the letter O for oxygen"
        )
    if re.search(rf"[0-9]{{{_LONGEST_NUMBER}}}", plain):
        raise PriorError(f"formula {text[:40]!r}... has an amount that is too large")
    if _SIMPLE.fullmatch(plain):
        amounts: Counter[str] = Counter()
        for symbol, amount in _ELEMENT.findall(plain):
            amounts[_known(symbol, text)] += int(amount or 1)
        found = {symbol: Fraction(amount) for symbol, amount in amounts.items()}
    else:
        found = {}
        for part in _parts(plain, text):
            for symbol, amount in _part(part, text).items():
                found[symbol] = found.get(symbol, Fraction(0)) + amount
    if not found or not all(found.values()):
        raise PriorError(f"formula {text!r} needs amounts above 0 of at least one element")
    return found


def _plain(text: str) -> str:
    """Return the formula with the digits of ASCII in place of subscripts."""
    subscripts = {ord(c): unicodedata.normalize("NFKC", c) for c in "₀₁₂₃₄₅₆₇₈₉"}
    return text.translate(subscripts).strip()


def _parts(plain: str, text: str) -> list[str]:
    """Return the parts of an adduct."""
    parts = re.split(f"[{re.escape(_DOTS)}]", plain)
    if len(parts) > 1:
        return parts
    parts = _SEPARATOR.split(plain)
    if any(map(_OPEN.search, parts)) and not _DECIMAL.search(plain):
        if not re.search(_BEFORE_PART, plain):
            raise PriorError(
                f"formula {text!r}: the full stop may separate compounds or be a decimal point; "
                "write CaCl2·6NH3, or Li1.5 Co O2 with spaces"
            )
        return plain.split(".")  # one full stop is a separator, so all are: K2O.Al2O3.6SiO2
    return parts


def _part(part: str, text: str) -> dict[str, Fraction]:
    """Return the amounts in one part, which may begin with a factor."""
    part = part.strip()
    match = re.match(_NUMBER, part)
    factor = Fraction(match[0]) if match else Fraction(1)
    stack: list[tuple[str, dict[str, Fraction]]] = [("", {})]
    last: dict[str, Fraction] = {}  # of what an amount belongs to
    place = match.end() if match else 0
    while place < len(part):
        token = _TOKEN.match(part, place)
        if token is None or len(stack) > _DEEPEST:
            raise PriorError(_reason(text))
        element, opened, closed, number = token.groups()
        if number is not None:
            if not last:
                raise PriorError(_reason(text))
            _add(stack[-1][1], last, Fraction(number) - 1)
            last = {}
        elif element is not None:
            last = {_known(element, text): Fraction(1)}
            _add(stack[-1][1], last)
        elif opened is not None:
            stack.append((opened, {}))
            last = {}
        else:
            bracket, last = stack.pop()
            if bracket != _PAIRS[closed] or not last:
                raise PriorError(_reason(text))
            _add(stack[-1][1], last)
        place = token.end()
    if len(stack) > 1 or not stack[0][1]:
        raise PriorError(_reason(text))
    return {symbol: factor * amount for symbol, amount in stack[0][1].items()}


def _add(total: dict[str, Fraction], more: dict[str, Fraction], times: Fraction | int = 1) -> None:
    for symbol, amount in more.items():
        total[symbol] = total.get(symbol, Fraction(0)) + times * amount


def _known(symbol: str, text: str) -> str:
    symbol = ISOTOPES.get(symbol, symbol)
    if symbol not in SYMBOLS:
        raise PriorError(f"unknown element {symbol} in formula {text!r}; write it like NaCl")
    return symbol


def _reason(text: str) -> str:
    """Return why a formula is refused."""
    plain = _plain(text)
    reason = next((f": {words}" for pattern, words in _REASONS if pattern.search(plain)), "")
    return f"{text!r} is not a chemical formula{reason}; write it like Na2SO4 or CuSO4·5H2O"
