"""Frames of extended XYZ files, one by one, so that a bad frame costs nothing but itself.

The format is that of ASE: the number of atoms, a line of `key=value`, and a line for each atom,
whose columns the key `Properties` names. Of the values only numbers and text are kept.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from flowllm.crystals.cells import fractional
from flowllm.crystals.columns import WORD_COLUMNS
from flowllm.crystals.crystal import UNREADABLE, Geometry, check_occupancies
from flowllm.crystals.rules import atomic_number, check_numbers, check_periodic
from flowllm.errors import InvalidCrystal, one_line
from flowllm.system.documents import parse_json

# A key, and a value: quoted, in brackets, or a word.
_PAIR = re.compile(
    r"""\s*("(?:[^"\\]|\\.)*"|[^\s="]+)"""
    r"""(?:\s*=\s*("(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*'|\{[^}]*\}|\[.*?\](?=\s|$)|\S*))?""",
    re.DOTALL,
)
_QUOTES = {'"': '"', "'": "'", "{": "}", "[": "]"}
_TRUTH = {
    **dict.fromkeys(("T", "true", "True", "TRUE"), True),
    **dict.fromkeys(("F", "false", "False", "FALSE"), False),
}
_JSON = "_JSON "  # ASE's mark of a value in JSON
_DEFAULT_COLUMNS = "species:S:1:pos:R:3"
_TYPES = frozenset("SRIL")  # text, real number, integer, truth value
_SPECIES, _NUMBERS, _POSITIONS = ("species", "symbols"), ("Z", "numbers"), ("pos", "positions")


class Frame(NamedTuple):
    """One frame of a file.

    Attributes:
        line: number of its first line, from 1.
        source: a geometry, or the reason why there is none.
        values: of the comment line.
    """

    line: int
    source: Geometry | InvalidCrystal
    values: dict[str, Any]


def frames(text: str) -> Iterator[Frame]:
    """Yield the frames of a file.

    After something that is no frame, it goes on at the next line that is a number alone.

    Args:
        text: of the file.

    Yields:
        Each frame; a bad one has its reason.
    """
    lines = text.split("\n")
    place = 0
    while place < len(lines):
        head = lines[place].strip()
        if not head:
            place += 1
            continue
        if not head.isdecimal():
            detail = f"line {place + 1}: the number of atoms expected, but got: {head[:40]!r}"
            yield Frame(place + 1, InvalidCrystal("unreadable", detail), {})
            place += 1
            while place < len(lines) and not lines[place].strip().isdecimal():
                place += 1
            continue
        num_atoms = int(head)
        end = place + 2 + num_atoms
        yield _frame(place + 1, num_atoms, lines[place + 1 : end])
        place = end


def comment_values(comment: str) -> dict[str, str | bool]:
    """Return the values of a comment line as they are written, without their quotes.

    Args:
        comment: such as `energy=-1.5 name="a b" relaxed`.

    Returns:
        key -> text; True for a key without a value.
    """
    values: dict[str, str | bool] = {}
    for key, value in _PAIR.findall(comment.strip()):
        values[_unquoted(key)] = _unquoted(value) if value else True
    return values


def _frame(line: int, num_atoms: int, lines: list[str]) -> Frame:
    written = comment_values(lines[0]) if lines else {}
    values = {
        key: _value(key, value)
        for key, value in written.items()
        if key not in ("Lattice", "Properties", "pbc")
    }
    try:
        if len(lines) < num_atoms + 1 or not all(row.strip() for row in lines[1:]):
            rows = sum(bool(row.strip()) for row in lines[1:])
            raise InvalidCrystal("unreadable", f"{rows} lines of atoms, but {num_atoms} atoms")
        check_occupancies(values.get("occupancy"))
        return Frame(line, _geometry(written, [row.split() for row in lines[1:]]), values)
    except InvalidCrystal as error:
        return Frame(line, error, values)
    except UNREADABLE as error:
        return Frame(line, InvalidCrystal("unreadable", one_line(error)), values)


def _geometry(written: dict[str, str | bool], rows: list[list[str]]) -> Geometry:
    lattice = _words(written.get("Lattice", ""))
    flags = _words(written.get("pbc", "T T T" if lattice else "F F F"))
    pbc = [_TRUTH[flag] if flag in _TRUTH else bool(int(flag)) for flag in flags]
    check_periodic(pbc * 3 if len(pbc) == 1 else pbc)
    if len(lattice) != 9:
        raise InvalidCrystal("unreadable", f"Lattice needs nine numbers, not {len(lattice)}")
    matrix = np.array(lattice, dtype=np.float64).reshape(3, 3)
    columns = _columns(str(written.get("Properties", _DEFAULT_COLUMNS)))
    width = max(stop for _, stop in columns.values())
    short = next((row for row in rows if len(row) < width), None)
    if short is not None:
        raise InvalidCrystal("unreadable", f"too few columns in the line {' '.join(short)!r}")
    first, stop = _column(columns, _POSITIONS, 3)
    positions = np.array([row[first:stop] for row in rows], dtype=np.float64).reshape(-1, 3)
    if any(name in columns for name in _NUMBERS):
        first, _ = _column(columns, _NUMBERS, 1)
        numbers = check_numbers([int(row[first]) for row in rows])
    else:
        first, _ = _column(columns, _SPECIES, 1)
        symbols = [row[first] for row in rows]
        place: dict[str, int] = {}  # of the first atom of each symbol
        for index, symbol in enumerate(symbols, start=1):
            place.setdefault(symbol, index)
        known = {symbol: atomic_number(symbol, f"site {n}") for symbol, n in place.items()}
        numbers = np.array([known[symbol] for symbol in symbols], dtype=np.uint8)
    return Geometry(matrix, numbers, fractional(positions, matrix))


def _columns(properties: str) -> dict[str, tuple[int, int]]:
    """Return the first column of each property of the atoms, and the one after its last."""
    words = properties.split(":")
    if len(words) % 3 or not set(words[1::3]) <= _TYPES:
        raise InvalidCrystal("unreadable", f"Properties {properties!r} is not name:type:number ...")
    columns = {}
    first = 0
    for name, _, number in zip(words[::3], words[1::3], words[2::3], strict=True):
        columns[name] = (first, first + int(number))
        first += int(number)
    return columns


def _column(
    columns: dict[str, tuple[int, int]], names: tuple[str, ...], number: int
) -> tuple[int, int]:
    found = next((columns[name] for name in names if name in columns), None)
    if found is None or found[1] - found[0] != number:
        raise InvalidCrystal(
            "unreadable", f"Properties need a column {names[0]!r} of width {number}"
        )
    return found


def _value(key: str, value: str | bool) -> Any:
    """Return a value as number, truth value, text, or what its JSON says; None for an array."""
    if isinstance(value, bool):
        return value
    if value.startswith(_JSON):
        try:
            return parse_json(value.removeprefix(_JSON))
        except ValueError:
            return value
    words = _words(value)
    if key in WORD_COLUMNS:
        return value
    kinds = [_scalar(word) for word in words]
    if len(words) == 1:
        return kinds[0]
    return None if words and not any(isinstance(kind, str) for kind in kinds) else value


def _scalar(word: str) -> bool | int | float | str:
    if word in _TRUTH:
        return _TRUTH[word]
    for kind in (int, float):
        try:
            return kind(word)
        except ValueError:
            continue
    return word


def _words(value: str | bool) -> list[str]:
    return ["T"] if value is True else re.findall(r"[^\s,\[\]]+", str(value))


def _unquoted(value: str) -> str:
    if len(value) > 1 and _QUOTES.get(value[0]) == value[-1]:
        value = value[1:-1]
    return re.sub(r"\\(.)", r"\1", value)
