"""The format of a text, and crystals as text in the layout `sites` of CrystalLLM (Gruver et al.
2024, arXiv 2402.04379).

    5.6 5.6 5.6            three lengths in Angstrom
    90 90 90               three angles in degrees
    Na                     then per site its element
    0.00 0.00 0.00         and its fractional coordinates
    Cl
    0.50 0.50 0.50

Lines are joined by a newline, with none at the end.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import ArrayLike
from pymatgen.core import Element, Lattice, Structure

from llm_prior.errors import PriorError

# pymatgen also accepts D, T and dummy species such as Xx; a crystal's text knows these 118 only
# (a deuterium site is hydrogen to pymatgen, and is written as such).
SYMBOLS: tuple[str, ...] = tuple(Element.from_Z(z).symbol for z in range(1, 119))
_ELEMENTS: dict[str, Element] = {symbol: Element(symbol) for symbol in SYMBOLS}

# Lengths (Angstrom) and angles (degrees) that constrained decoding writes. The 35,291 crystals of
# MP-20 train and val have lengths up to 45 Angstrom and angles from 7 to 170 degrees.
LENGTH_RANGE = (0.5, 60.0)
ANGLE_RANGE = (5.0, 175.0)

MASK = "[MASK]"
# ASCII only: \d would match digits of every script, and an ignored case the dotless i, of which
# `float` reads some and trips over others.
_NUMBER = re.compile(
    r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?|[+-]?(nan|inf|infinity)", re.IGNORECASE | re.ASCII
)
# Angstrom; beyond it the metric tensor of the cell overflows or loses its digits.
_LONGEST, _SHORTEST = 1e4, 1e-3
# Squared volume of a cell with unit edges, below which the three vectors count as coplanar.
SMALLEST_UNIT_VOLUME_SQUARED = 1e-4

LayoutName = Literal["sites", "wyckoff"]

_RANGES = {
    "coord_decimals": (1, 9),
    "length_decimals": (0, 9),
    "angle_decimals": (0, 9),
    "max_atoms": (1, 1000),
}
# Settings of `wyckoff` alone, with their defaults.
_OF_WYCKOFF: dict[str, Any] = {"coord_bins": None, "symprec": 0.1, "keep_hand": False}
_WYCKOFF_RANGES = {**_RANGES, "coord_decimals": (1, 3)} | dict.fromkeys(
    ("length_decimals", "angle_decimals"), (0, 4)
)
_BINS = {1: (10,), 2: (20, 50, 100), 3: (200, 500, 1000)}  # by the decimals that write them


@dataclass(frozen=True, kw_only=True)
class TextFormat:
    """Layout and precision of the text, and size limit; recorded with every model.

    Attributes:
        layout: `sites`: cell, then element and coordinates of each site (`llm_prior.text`).
            `wyckoff`: space group, orbits and free parameters (`llm_prior.wyckoff.text`).
        coord_decimals: decimals of a fractional coordinate.
        length_decimals: decimals of a lattice length in Angstrom.
        angle_decimals: decimals of a lattice angle in degrees.
        max_atoms: sites of the largest crystal that is written or accepted; in `wyckoff`, of its
            primitive cell.
        coord_bins: bins of a free coordinate in `wyckoff`, bin k being written as k / coord_bins;
            None takes every number of `coord_decimals` decimals. 200 needs 3 decimals.
        symprec: distance in Angstrom within which atoms count as symmetric when a crystal is
            written in `wyckoff`.
        keep_hand: True gives a crystal and its mirror image different texts in `wyckoff`. False
            writes the 11 enantiomorphic pairs of groups as the member of the lower number.

    Raises:
        PriorError: if a field is out of range, or belongs to the other layout.
    """

    layout: LayoutName = "sites"
    coord_decimals: int = 2
    length_decimals: int = 1
    angle_decimals: int = 0
    max_atoms: int = 20
    coord_bins: int | None = None
    symprec: float = 0.1
    keep_hand: bool = False

    def __post_init__(self) -> None:
        if self.layout not in get_args(LayoutName):
            raise PriorError(
                f"text.layout {self.layout!r} is unknown; give {' or '.join(get_args(LayoutName))}"
            )
        ranges = _RANGES if self.layout == "sites" else _WYCKOFF_RANGES
        for name, (low, high) in ranges.items():
            value = getattr(self, name)
            if type(value) is not int or not low <= value <= high:
                raise PriorError(
                    f"text.{name} {value!r} is not a whole number from {low} to {high}"
                )
        if self.layout == "sites":
            for name, default in _OF_WYCKOFF.items():
                if getattr(self, name) != default:
                    raise PriorError(
                        f"text.{name} is a setting of the layout wyckoff; leave it out, or set "
                        "text.layout=wyckoff"
                    )
        elif self.coord_bins is not None and self.coord_bins not in _BINS[self.coord_decimals]:
            raise PriorError(
                f"text.coord_bins {self.coord_bins!r} cannot be written with "
                f"{self.coord_decimals} decimals (text.coord_decimals), which write "
                f"{' or '.join(map(str, _BINS[self.coord_decimals]))} bins"
            )
        if not 0 < self.symprec <= 1:
            raise PriorError(f"text.symprec {self.symprec!r} is not above 0 and at most 1 Angstrom")

    def to_dict(self) -> dict[str, Any]:
        """Return the fields of the layout as a JSON-serialisable dict."""
        left_out = _OF_WYCKOFF if self.layout == "sites" else ()
        return {name: value for name, value in asdict(self).items() if name not in left_out}


class RejectReason(StrEnum):
    """Reasons for which a text of the layout `sites` is rejected."""

    TRUNCATED = "truncated"
    LINE_COUNT = "line_count"
    NOT_A_NUMBER = "not_a_number"
    NON_FINITE = "non_finite"
    BAD_LENGTH = "bad_length"
    IMPOSSIBLE_ANGLES = "impossible_angles"
    UNKNOWN_ELEMENT = "unknown_element"
    TOO_MANY_ATOMS = "too_many_atoms"
    COINCIDING_ATOMS = "coinciding_atoms"


class ParseError(PriorError):
    """A text that is not a crystal, with its `reason` as a countable code."""

    def __init__(self, reason: StrEnum, message: str) -> None:
        super().__init__(message)
        self.reason = reason


def encode(structure: Structure, fmt: TextFormat, translation: ArrayLike | None = None) -> str:
    """Return a crystal as text.

    Sites keep the order of the structure, with like atoms together at the place of the first.
    Numbers are rounded half to even; coordinates are rounded first and wrapped after, so that
    0.996 becomes 0.00 and never 1.00.

    Args:
        structure: ordered crystal of at most `fmt.max_atoms` sites.
        fmt: decimals and size limit.
        translation: (3,) fractional shift added to every site first.

    Returns:
        Lines joined by newlines, with none at the end.

    Raises:
        PriorError: if the crystal has partial occupancies, an unknown species or too many sites.
    """
    symbols = site_symbols(structure)
    if len(symbols) > fmt.max_atoms:
        raise PriorError(
            f"{structure.composition.formula} has {len(symbols)} atoms, the text format allows "
            f"{fmt.max_atoms}; drop it or raise max_atoms"
        )
    coords = np.asarray(structure.frac_coords, dtype=float)  # (n, 3)
    if translation is not None:
        coords = coords + np.asarray(translation, dtype=float)
    scale = 10**fmt.coord_decimals
    ticks = np.rint(coords * scale).astype(int) % scale  # (n, 3) in units of the last decimal
    decimals = f".{fmt.coord_decimals}f"

    lattice = structure.lattice
    lines = [
        " ".join(f"{x:.{fmt.length_decimals}f}" for x in lattice.abc),
        " ".join(f"{x:.{fmt.angle_decimals}f}" for x in lattice.angles),
    ]
    first_seen = {symbol: place for place, symbol in reversed(list(enumerate(symbols)))}
    for site in sorted(range(len(symbols)), key=lambda i: first_seen[symbols[i]]):
        lines.append(symbols[site])
        lines.append(" ".join(format(tick / scale, decimals) for tick in ticks[site]))
    return "\n".join(lines)


def site_symbols(structure: Structure) -> list[str]:
    """Return the element symbol of each site.

    Args:
        structure: ordered crystal.

    Raises:
        PriorError: if a site is partly occupied or is none of the 118 elements.
    """
    symbols = []
    for site in structure:
        if not site.is_ordered:
            raise PriorError(
                f"{structure.composition.formula} has partial occupancies ({site.species_string}); "
                "give an ordered crystal"
            )
        symbol = site.specie.symbol
        if symbol not in _ELEMENTS:
            raise PriorError(f"{symbol} is not a chemical element; replace it")
        symbols.append(symbol)
    return symbols


def decode(text: str, fmt: TextFormat, *, complete: bool = True) -> Structure:
    """Return the crystal of a text.

    Args:
        text: as `encode` writes it, with any number of decimals.
        fmt: its `max_atoms` is the size limit.
        complete: False if generation hit the token limit before the end of the sequence.

    Returns:
        The structure, with fractional coordinates in [0, 1) and sites in the order of the text.

    Raises:
        ParseError: if the text is not a crystal, with the first reason that was found.
    """
    if not complete:
        raise ParseError(RejectReason.TRUNCATED, "the text was cut off by the token limit")
    lines = text.split("\n")
    if len(lines) < 4 or len(lines) % 2:
        raise ParseError(
            RejectReason.LINE_COUNT,
            f"{len(lines)} lines; a crystal has 2 for the cell and 2 for each of its sites",
        )
    lengths = _numbers(lines[0])
    angles = _numbers(lines[1])
    for length in lengths:
        if not _SHORTEST <= length <= _LONGEST:
            raise ParseError(
                RejectReason.BAD_LENGTH,
                f"length {length} is not between {_SHORTEST} and {_LONGEST:g} Angstrom",
            )
    if not closes_a_cell(angles):
        raise ParseError(RejectReason.IMPOSSIBLE_ANGLES, f"no cell has the angles {angles}")
    num_atoms = len(lines) // 2 - 1
    if num_atoms > fmt.max_atoms:
        raise ParseError(
            RejectReason.TOO_MANY_ATOMS, f"{num_atoms} atoms, the limit is {fmt.max_atoms}"
        )
    elements = []
    for symbol in lines[2::2]:
        if symbol not in _ELEMENTS:
            raise ParseError(RejectReason.UNKNOWN_ELEMENT, f"{symbol!r} is not an element")
        elements.append(_ELEMENTS[symbol])
    # Twice: the first remainder of a tiny negative number is 1.0.
    coords = np.array([_numbers(line) for line in lines[3::2]]) % 1.0 % 1.0  # (n, 3)
    gaps = coords[:, None] - coords[None]  # (n, n, 3)
    gaps -= np.rint(gaps)
    apart = np.abs(gaps).max(-1) + np.eye(num_atoms)
    if apart.min() < 10.0**-fmt.coord_decimals / 2:
        raise ParseError(RejectReason.COINCIDING_ATOMS, "two atoms stand at the same place")
    return Structure(Lattice.from_parameters(*lengths, *angles), elements, coords)


def closes_a_cell(angles: Sequence[float]) -> bool:
    """Return True if three vectors at these angles span a volume.

    The condition is a positive Gram determinant of unit vectors, 1 - cos^2 a - cos^2 b - cos^2 c
    + 2 cos a cos b cos c > 0.

    Args:
        angles: alpha, beta and gamma in degrees.
    """
    if not all(0 < angle < 180 for angle in angles):
        return False
    a, b, c = (math.cos(math.radians(angle)) for angle in angles)
    return 1 - a * a - b * b - c * c + 2 * a * b * c > SMALLEST_UNIT_VOLUME_SQUARED


def mask_element(text: str, element: str) -> str:
    """Return a crystal's text with [MASK] in place of one element, in either layout.

    Args:
        text: text of a crystal, in which a line begins with the element of a site or an orbit.
        element: symbol; only whole words are replaced, so C leaves Ca alone.

    Raises:
        PriorError: if the element is not in the crystal.
    """
    lines = [line.split(" ") for line in text.split("\n")]
    present = sorted({words[0] for words in lines if words[0] in _ELEMENTS})
    if element not in present:
        raise PriorError(f"{element} is not in the crystal; mask one of {present}")
    return "\n".join(
        " ".join([MASK, *words[1:]] if words[0] == element else words) for words in lines
    )


def _numbers(line: str) -> tuple[float, float, float]:
    words = line.split(" ")
    if len(words) != 3 or not all(_NUMBER.fullmatch(word) for word in words):
        raise ParseError(RejectReason.NOT_A_NUMBER, f"{line!r} is not three numbers")
    x, y, z = (float(word) for word in words)
    if not all(map(math.isfinite, (x, y, z))):
        raise ParseError(RejectReason.NON_FINITE, f"{line!r} has a number that is not finite")
    return x, y, z
