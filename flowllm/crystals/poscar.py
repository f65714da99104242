"""POSCAR and CONTCAR files, as VASP reads them.

Source: the VASP manual, https://www.vasp.at/wiki/POSCAR.
"""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from flowllm.crystals.cells import fractional
from flowllm.crystals.crystal import UNREADABLE, Geometry
from flowllm.crystals.rules import atomic_number, determinant
from flowllm.errors import InvalidCrystal, one_line

_CARTESIAN = ("c", "k")


def parse_poscar(text: str) -> Geometry:
    """Return the crystal of a POSCAR.

    One factor in the second line scales the cell and Cartesian positions. If it is negative, it is
    the volume of the cell, and the factor follows from that. Three factors scale the three
    Cartesian components. Selective dynamics, labels behind the positions and velocities play no
    part. Elements come from the line before their amounts, with or without the suffix of a
    potential (`Fe_pv`), else from labels behind all positions.

    Args:
        text: of the file.

    Returns:
        The geometry, with the sites in the order of the file.

    Raises:
        InvalidCrystal: if it is not a POSCAR, or does not name its elements (reason `unreadable`),
            or breaks one of `flowllm.crystals.rules`.
    """
    try:
        return _parse(text.split("\n"))
    except InvalidCrystal as error:
        if error.reason != "unreadable":
            raise
        raise InvalidCrystal(error.reason, f"not a readable POSCAR: {error.detail}") from error
    except UNREADABLE as error:
        raise InvalidCrystal("unreadable", f"not a readable POSCAR: {one_line(error)}") from error


def _parse(lines: list[str]) -> Geometry:
    if len(lines) < 8:
        raise InvalidCrystal("unreadable", f"it ends after {len(lines)} lines")
    vectors = np.array([_numbers(lines, place) for place in (2, 3, 4)])  # (3, 3)
    scale = _scale(lines[1], vectors)
    symbols, place = _run(lines, 5, lambda word: not _is_int(word))
    amounts, place = _run(lines, place, _is_int, len(symbols))
    if not amounts or (symbols and len(symbols) != len(amounts)):
        raise InvalidCrystal(
            "unreadable", f"{len(symbols)} elements ({' '.join(symbols)}), {len(amounts)} amounts"
        )
    mode = lines[place].strip().lower() if place < len(lines) else ""
    if mode.startswith("s"):  # selective dynamics
        place += 1
        mode = lines[place].strip().lower() if place < len(lines) else ""
    if not mode[:1].isalpha():
        raise InvalidCrystal("unreadable", "no line Direct or Cartesian before the positions")
    first = place + 1
    counts = [int(amount) for amount in amounts]
    num_atoms = sum(counts)
    if first + num_atoms > len(lines):
        raise InvalidCrystal("unreadable", f"it ends before the last of {num_atoms} atoms")
    positions = np.array([_numbers(lines, p) for p in range(first, first + num_atoms)])
    positions = positions.reshape(-1, 3)
    _check_end(lines, first + num_atoms, num_atoms)
    numbers = _elements(symbols, counts, lines[first : first + num_atoms])
    lattice = vectors * scale
    if mode.startswith(_CARTESIAN):
        positions = fractional(positions * scale, lattice)
    return Geometry(lattice, numbers, positions)


def _scale(line: str, vectors: NDArray[np.float64]) -> float | NDArray[np.float64]:
    """Return the factor of the cell, or the three factors of its Cartesian components (3,)."""
    factors: list[float] = []
    for word in line.split()[:3]:
        if (number := _number(word)) is None:
            break
        factors.append(number)
    if len(factors) == 1 and factors[0] < 0:
        if (volume := abs(determinant(vectors))) == 0:
            raise InvalidCrystal("bad_cell", "the cell has no volume")
        return float((-factors[0] / volume) ** (1 / 3))
    if len(factors) not in (1, 3) or not min(factors) > 0:
        raise InvalidCrystal(
            "unreadable",
            f"the scale {line.strip()[:40]!r} is neither a factor, nor a negative volume, nor "
            "three factors",
        )
    return factors[0] if len(factors) == 1 else np.array(factors)


def _elements(symbols: list[str], amounts: list[int], rows: list[str]) -> NDArray[np.uint8]:
    """Return the atomic number of each atom."""
    if symbols:
        numbers = [_element(symbol, "line 6") for symbol in symbols]
        return np.repeat(np.array(numbers, dtype=np.uint8), amounts)
    labels = [(row.split()[3:] or [""])[-1] for row in rows]
    if not all(label[:1].isalpha() and label not in ("T", "F") for label in labels):
        raise InvalidCrystal(
            "unreadable", "no line of elements before their amounts (VASP 4); add one as line 6"
        )
    numbers = [_element(label, f"site {i}") for i, label in enumerate(labels, start=1)]
    groups = np.split(np.array(numbers), np.cumsum(amounts)[:-1])
    if any(len(set(group.tolist())) > 1 for group in groups):
        raise InvalidCrystal("unreadable", "the labels do not agree with the amounts in line 6")
    return np.array(numbers, dtype=np.uint8)


def _element(label: str, place: str) -> int:
    # VASP writes the name of the potential, and its hash after a slash.
    return atomic_number(label.split("/")[0].split("_")[0], place)


def _check_end(lines: list[str], place: int, num_atoms: int) -> None:
    """Refuse another position right after the last one; velocities have a line before them."""
    words = lines[place].split() if place < len(lines) else []
    if len(words) >= 3 and all(_number(word) is not None for word in words[:3]):
        raise InvalidCrystal("unreadable", f"there are more positions than {num_atoms} atoms")


def _numbers(lines: list[str], place: int) -> list[float]:
    """Return the first three numbers of a line."""
    numbers = [_number(word) for word in lines[place].split()[:3]]
    if len(numbers) < 3 or None in numbers:
        raise InvalidCrystal(
            "unreadable", f"line {place + 1} needs three numbers: {lines[place].strip()[:40]!r}"
        )
    return [number for number in numbers if number is not None]


def _number(word: str) -> float | None:
    try:
        return float(word.replace("d", "e").replace("D", "e"))  # Fortran's double precision
    except ValueError:
        return None


def _run(
    lines: list[str], place: int, fits: Callable[[str], bool], most: int | None = None
) -> tuple[list[str], int]:
    """Return the words of the lines from `place` on that begin with a word that fits.

    VASP may break a long line of elements or amounts; after `most` words no further line is taken.
    A comment ends a line.
    """
    found: list[str] = []
    while place < len(lines):
        words = re.split("[!#]", lines[place])[0].split()
        if not words or not fits(words[0]):
            break
        found += words
        place += 1
        if most is not None and len(found) >= most:
            break
    return found, place


def _is_int(word: str) -> bool:
    return word.isdecimal()
