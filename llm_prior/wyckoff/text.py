"""Crystal <-> text, the layout `wyckoff`: the discrete part first, then the free parameters.

    136                    space group
    Ti a                   element and Wyckoff letter of each orbit
    O f
    4.6 3.0                free parameters of the conventional cell: Angstrom, degrees
    0.31                   free coordinates of each orbit that has any

Orbits stand in the order of formulas (electronegativity), then by letter, then by coordinates. In
polar groups the first orbit's coordinates along the polar axes are 0 and are not written. Lines
are joined by a newline, with none at the end. No other file knows this layout.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from pymatgen.core import Structure

from llm_prior.errors import PriorError
from llm_prior.text import SYMBOLS, ParseError
from llm_prior.wyckoff.analysis import DEFAULT_SYMPREC, describe
from llm_prior.wyckoff.crystal import FREE_CELL, Orbit, WyckoffCrystal, is_cell
from llm_prior.wyckoff.normal_form import augment, canonical, polar_places
from llm_prior.wyckoff.orbits import lies_special
from llm_prior.wyckoff.table import GRID, NUM_GROUPS, SpaceGroup, space_group

_NUMBER = re.compile(r"\d{1,4}(\.\d{1,9})?", re.ASCII)
_GROUP = re.compile(r"[1-9]\d{0,2}", re.ASCII)
_NEAREST_BINS = 12  # steps searched for a bin off a special position
_ELEMENTS = frozenset(SYMBOLS)
_SHORTEST = 1e-2  # Angstrom; far below any cell


class WyckoffReject(StrEnum):
    """Reason why a text is no crystal of this layout."""

    TRUNCATED = "truncated"
    LINE_COUNT = "line_count"
    NOT_A_NUMBER = "not_a_number"
    IMPOSSIBLE_CELL = "impossible_cell"
    UNKNOWN_GROUP = "unknown_group"
    UNKNOWN_ELEMENT = "unknown_element"
    UNKNOWN_LETTER = "unknown_letter"
    REPEATED_POSITION = "repeated_position"
    TOO_MANY_ATOMS = "too_many_atoms"
    SPECIAL_COORDINATES = "special_coordinates"
    COINCIDING_ATOMS = "coinciding_atoms"


@dataclass(frozen=True, kw_only=True)
class WyckoffFormat:
    """The precision of the text and the largest crystal; recorded with every model.

    Attributes:
        coord_bins: bins of a free coordinate; bin k is written as k / coord_bins, so it divides a
            power of ten: 100 (0.01) or 200 (0.005).
        length_decimals: decimals of a lattice length in Angstrom.
        angle_decimals: decimals of a lattice angle in degrees.
        max_atoms: atoms of the primitive cell of the largest crystal that is written or accepted.
        symprec: distance in Angstrom within which atoms count as symmetric when a structure is
            encoded.
        keep_hand: whether a crystal and its mirror image have different texts. False writes the 11
            enantiomorphic pairs of groups as the member of lower number.

    Raises:
        PriorError: if a value is out of its range.
    """

    coord_bins: int = 100
    length_decimals: int = 1
    angle_decimals: int = 0
    max_atoms: int = 20
    symprec: float = DEFAULT_SYMPREC
    keep_hand: bool = False

    def __post_init__(self) -> None:
        if self.coord_bins not in (10, 20, 50, 100, 200, 500, 1000):
            raise PriorError(
                f"text.coord_bins {self.coord_bins!r} is not 10, 20, 50, 100, 200, 500 or 1000"
            )
        for name, low, high in (
            ("length_decimals", 0, 4),
            ("angle_decimals", 0, 4),
            ("max_atoms", 1, 1000),
        ):
            value = getattr(self, name)
            if type(value) is not int or not low <= value <= high:
                raise PriorError(
                    f"text.{name} {value!r} is not a whole number from {low} to {high}"
                )
        if not 0 < self.symprec <= 1:
            raise PriorError(f"text.symprec {self.symprec!r} is not above 0 and at most 1 Angstrom")

    @property
    def coord_decimals(self) -> int:
        """Decimals with which a coordinate is written."""
        return next(d for d in range(1, 4) if 10**d % self.coord_bins == 0)

    def written_group(self, number: int) -> int:
        """Return the group in the texts of the crystals of a group.

        Args:
            number: space group.
        """
        partner = space_group(number).enantiomorph
        return number if partner is None or self.keep_hand else min(number, partner)


def encode(structure: Structure, fmt: WyckoffFormat, rng: np.random.Generator | None = None) -> str:
    """Write a crystal as text.

    Args:
        structure: ordered crystal in any cell.
        fmt: precision, size limit and symprec.
        rng: None for the canonical description; else one is drawn over the normalizer.

    Raises:
        PriorError: if the crystal has partial occupancies, an unknown species or too many atoms,
            or the symmetry search fails.
    """
    crystal = describe(structure, fmt.symprec, keep_hand=fmt.keep_hand)
    if crystal.num_atoms > fmt.max_atoms:
        raise PriorError(
            f"{structure.composition.formula} has {crystal.num_atoms} atoms in the primitive cell, "
            f"the text format allows {fmt.max_atoms}; drop it or raise max_atoms"
        )
    return to_text(describe_anew(crystal, fmt, rng), fmt)


def describe_anew(
    crystal: WyckoffCrystal, fmt: WyckoffFormat, rng: np.random.Generator | None = None
) -> WyckoffCrystal:
    """Return the canonical description of a crystal, or one drawn over the normalizer.

    Args:
        crystal: in any description.
        fmt: its `coord_bins` and `keep_hand` count.
        rng: None for the canonical description.
    """
    if rng is None:
        return canonical(crystal, fmt.coord_bins, keep_hand=fmt.keep_hand)
    return augment(crystal, fmt.coord_bins, rng, keep_hand=fmt.keep_hand)


def to_text(crystal: WyckoffCrystal, fmt: WyckoffFormat) -> str:
    """Write a description as it is: orbits in their order, numbers rounded half to even.

    Coordinates are rounded first and wrapped after, so that 0.996 becomes 0.00. Where that lies on
    a more special position, the nearest bins that do not are written.

    Args:
        crystal: a description; in a polar group its first orbit has 0 along the polar axes.
        fmt: precision.
    """
    group = crystal.group
    lines = [str(crystal.spacegroup)]
    lines += [f"{orbit.element} {orbit.letter}" for orbit in crystal.orbits]
    lines.append(
        " ".join(
            f"{value:.{fmt.length_decimals if place < 3 else fmt.angle_decimals}f}"
            for place, value in zip(FREE_CELL[group.family], crystal.cell, strict=True)
        )
    )
    decimals = fmt.coord_decimals
    for number, orbit in enumerate(crystal.orbits):
        hidden = hidden_places(group, orbit.letter, first=number == 0)
        ticks = coordinate_bins(group.number, orbit, fmt.coord_bins, hidden)
        words = [
            f"{tick / fmt.coord_bins:.{decimals}f}"
            for place, tick in enumerate(ticks)
            if place not in hidden
        ]
        if words:
            lines.append(" ".join(words))
    return "\n".join(lines)


def hidden_places(group: SpaceGroup, letter: str, *, first: bool) -> list[int]:
    """Return the places of the free coordinates of an orbit that are 0 and not written.

    Args:
        group: the space group.
        letter: Wyckoff letter of the orbit.
        first: whether it is the first orbit of the text.
    """
    return polar_places(group.number, letter) if first else []


def coordinate_bins(number: int, orbit: Orbit, bins: int, fixed: list[int]) -> tuple[int, ...]:
    """Return the bins of an orbit's free coordinates, off more special positions.

    Args:
        number: space group.
        orbit: with its free coordinates.
        bins: bins of a coordinate.
        fixed: places of coordinates that are not to move.
    """
    exact = np.array(orbit.coords, dtype=float) * bins
    nearest = np.rint(exact).astype(int)
    ticks = tuple((nearest % bins).tolist())
    if not ticks or not lies_special(number, orbit.letter, bins, ticks):
        return ticks
    movable = [place for place in range(len(ticks)) if place not in fixed]
    reach = range(-_NEAREST_BINS, _NEAREST_BINS + 1)
    steps = np.stack(np.meshgrid(*[reach] * len(movable), indexing="ij"), -1)
    steps = steps.reshape(-1, len(movable))
    shifted = nearest + np.zeros((len(steps), len(ticks)), dtype=int)
    shifted[:, movable] += steps
    for place in np.argsort(((shifted - exact) ** 2).sum(1), kind="stable"):
        ticks = tuple((shifted[place] % bins).tolist())
        if not lies_special(number, orbit.letter, bins, ticks):
            return ticks
    raise AssertionError(f"every bin near {orbit} of group {number} is special")


def decode(text: str, fmt: WyckoffFormat, *, complete: bool = True) -> WyckoffCrystal:
    """Read a crystal from its text.

    Args:
        text: as `encode` writes it; any number of decimals is read, any order of orbits.
        fmt: its `max_atoms` is the size limit.
        complete: False if generation hit the token limit before the end of the sequence.

    Raises:
        ParseError: with the first reason for which the text is refused.
    """
    if not complete:
        raise _refused(WyckoffReject.TRUNCATED, "the text was cut off by the token limit")
    lines = text.split("\n")
    if not _GROUP.fullmatch(lines[0]) or int(lines[0]) > NUM_GROUPS:
        raise _refused(
            WyckoffReject.UNKNOWN_GROUP,
            f"{lines[0]!r} is not a space group number from 1 to {NUM_GROUPS}",
        )
    group = space_group(int(lines[0]))
    count = 1
    while count < len(lines) and lines[count][:1].isalpha():
        count += 1
    names = [_read_name(group, line) for line in lines[1:count]]
    letters = [letter for _, letter in names]
    if not names or count == len(lines):
        raise _refused(WyckoffReject.LINE_COUNT, "the text has no orbit or no cell")
    for letter in letters:
        if not group.position(letter).num_free and letters.count(letter) > 1:
            raise _refused(
                WyckoffReject.REPEATED_POSITION,
                f"position {letter} of group {group.number} holds one orbit, the text has more",
            )
    atoms = sum(group.position(letter).num_atoms for letter in letters)
    if atoms > fmt.max_atoms:
        raise _refused(
            WyckoffReject.TOO_MANY_ATOMS,
            f"{atoms} atoms in the primitive cell, the limit is {fmt.max_atoms}",
        )
    cell = _read_numbers(lines[count], len(FREE_CELL[group.family]))
    if min(cell) < _SHORTEST or not is_cell(group.family, cell):
        raise _refused(WyckoffReject.IMPOSSIBLE_CELL, f"no cell has the parameters {cell}")
    rest = lines[count + 1 :]
    orbits = []
    for number, (element, letter) in enumerate(names):
        hidden = hidden_places(group, letter, first=number == 0)
        shown = [i for i in range(group.position(letter).num_free) if i not in hidden]
        coords = [0.0] * group.position(letter).num_free
        if shown:
            if not rest:
                raise _refused(WyckoffReject.LINE_COUNT, f"no coordinates of {element} {letter}")
            for place, value in zip(shown, _read_numbers(rest.pop(0), len(shown)), strict=True):
                coords[place] = value % 1.0
        orbits.append(Orbit(element=element, letter=letter, coords=tuple(coords)))
    if rest:
        raise _refused(WyckoffReject.LINE_COUNT, f"{len(rest)} lines after the last coordinates")
    crystal = WyckoffCrystal(spacegroup=group.number, orbits=tuple(orbits), cell=cell)
    _check_apart(crystal, fmt)
    return crystal


def _check_apart(crystal: WyckoffCrystal, fmt: WyckoffFormat) -> None:
    """Refuse coordinates on a more special position and atoms in one place."""
    tolerance = 0.1 / fmt.coord_bins
    every = np.concatenate(crystal.orbit_points())
    owner = crystal.site_orbits()
    lattice_points = crystal.group.centring / GRID
    gaps = every[:, None, None] - every[:, None] - lattice_points  # (n, n, l, 3)
    close = (np.abs(gaps - np.rint(gaps)).max(-1) < tolerance).any(-1)
    np.fill_diagonal(close, False)
    if not close.any():
        return
    one, other = (int(i) for i in np.argwhere(close)[0])
    name = crystal.orbits[owner[one]]
    if owner[one] == owner[other]:
        raise _refused(
            WyckoffReject.SPECIAL_COORDINATES,
            f"the coordinates {name.coords} of {name.element} {name.letter} lie on a more special "
            f"position of group {crystal.spacegroup}",
        )
    raise _refused(WyckoffReject.COINCIDING_ATOMS, "two atoms stand at the same place")


def _read_name(group: SpaceGroup, line: str) -> tuple[str, str]:
    element, _, letter = line.partition(" ")
    if element not in _ELEMENTS:
        raise _refused(WyckoffReject.UNKNOWN_ELEMENT, f"{element!r} is not an element")
    try:
        group.position(letter)
    except PriorError as error:
        raise _refused(WyckoffReject.UNKNOWN_LETTER, str(error)) from error
    return element, letter


def _read_numbers(line: str, count: int) -> tuple[float, ...]:
    words = line.split(" ")
    if len(words) != count or not all(_NUMBER.fullmatch(word) for word in words):
        raise _refused(WyckoffReject.NOT_A_NUMBER, f"{line!r} is not a row of {count} numbers")
    return tuple(float(word) for word in words)


def _refused(reason: WyckoffReject, message: str) -> ParseError:
    return ParseError(reason, message)
