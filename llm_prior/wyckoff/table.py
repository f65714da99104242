"""Wyckoff positions and normalizers of the 230 space groups.

`table.json` is written by `tools/make_wyckoff_table.py`. Its setting is spglib's default (the
smallest Hall number of each group: origin choice 1, hexagonal axes, unique axis b and cell choice
1), so that one call of spglib finds group, letters and coordinates of a crystal and no second
convention can be confused with it. Operations are not stored: spglib has them by Hall number.

Shifts are integers in units of 1/24, so that maps between positions are exact.
"""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cache, cached_property
from importlib import resources
from typing import Any, Literal

import numpy as np
import spglib
from numpy.typing import NDArray

from llm_prior.errors import PriorError

Family = Literal["triclinic", "monoclinic", "orthorhombic", "tetragonal", "hexagonal", "cubic"]
IntArray = NDArray[np.int64]

NUM_GROUPS = 230
GRID = 24  # shifts are multiples of 1 / GRID
_TERM = re.compile(r"([+-]?)(\d*)([xyz])|([+-]?)(\d+)(?:/(\d+))?")


@dataclass(frozen=True, kw_only=True, eq=False)
class AffineMap:
    """The map x -> linear @ x + shift / 24 of fractional coordinates.

    Attributes:
        linear: (3, 3) integers.
        shift: (3,) integers in units of 1/24.
    """

    linear: IntArray
    shift: IntArray

    @property
    def is_proper(self) -> bool:
        """Whether the map keeps the hand of a crystal."""
        return round(float(np.linalg.det(self.linear))) > 0


@dataclass(frozen=True, kw_only=True, eq=False)
class WyckoffPosition:
    """A Wyckoff position of a space group.

    The points of its first representative are `linear @ u + shift / 24` for free coordinates u.

    Attributes:
        letter: Wyckoff letter; the 27th of group 47 is written `A`.
        index: place of the letter in the group, 0 for `a`.
        multiplicity: number of equivalent points in the conventional cell.
        num_atoms: number of equivalent points in the primitive cell.
        site_symmetry: oriented site-symmetry symbol.
        axes: names of the free coordinates, in order, such as `xz`.
        linear: (3, d) integers for d free coordinates.
        shift: (3,) integers in units of 1/24.
        characteristic: whether one orbit, for general coordinates and cell, has exactly the
            symmetry of the group.
    """

    letter: str
    index: int
    multiplicity: int
    num_atoms: int
    site_symmetry: str
    axes: str
    linear: IntArray
    shift: IntArray
    characteristic: bool

    @property
    def num_free(self) -> int:
        """Number of free coordinates."""
        return len(self.axes)

    @cached_property
    def rows(self) -> IntArray:
        """Place (d,) of each free coordinate among x, y, z, where it stands alone."""
        return np.array(["xyz".index(axis) for axis in self.axes], dtype=np.int64)


@dataclass(frozen=True, kw_only=True, eq=False)
class SpaceGroup:
    """A space group in the setting of the table.

    Attributes:
        number: International number, 1 to 230.
        symbol: short Hermann-Mauguin symbol, such as `P2_1/c`.
        hall_number: spglib's number of the setting, 1 to 530.
        family: crystal family, which decides the free cell parameters.
        polar_axes: axes along which the origin is free, such as `z`; empty if it is fixed.
        enantiomorph: number of the enantiomorphic group, or None.
        positions: Wyckoff positions by letter.
        cosets: normalizer modulo the group, the identity first; shifts along polar axes are left
            out. For orthorhombic groups these include permutations of the axes.
        cells: for monoclinic groups, changes of the a and c axes that keep the setting.
    """

    number: int
    symbol: str
    hall_number: int
    family: Family
    polar_axes: str
    enantiomorph: int | None
    positions: tuple[WyckoffPosition, ...]
    cosets: tuple[AffineMap, ...] = field(repr=False)
    cells: tuple[AffineMap, ...] = field(repr=False)

    def position(self, letter: str) -> WyckoffPosition:
        """Return the position of a letter.

        Args:
            letter: Wyckoff letter.

        Raises:
            PriorError: if the group has no such letter.
        """
        found = self._by_letter.get(letter)
        if found is None:
            raise PriorError(
                f"space group {self.number} ({self.symbol}) has no Wyckoff letter {letter!r}; "
                f"it has {self.positions[0].letter} to {self.positions[-1].letter}"
            )
        return found

    @cached_property
    def _by_letter(self) -> Mapping[str, WyckoffPosition]:
        return {position.letter: position for position in self.positions}

    @cached_property
    def _operations(self) -> tuple[IntArray, IntArray]:
        return _operations(self.hall_number)

    @property
    def rotations(self) -> IntArray:
        """Linear parts (g, 3, 3) of the operations modulo lattice vectors of the conventional
        cell."""
        return self._operations[0]

    @property
    def shifts(self) -> IntArray:
        """Translations (g, 3) of the operations, in units of 1/24."""
        return self._operations[1]

    @cached_property
    def is_sohncke(self) -> bool:
        """Whether the group has proper operations only, so that its crystals may have a hand."""
        return bool((np.linalg.det(self.rotations) > 0).all())

    @cached_property
    def centring(self) -> IntArray:
        """Lattice points (l, 3) of the conventional cell in units of 1/24, the origin first."""
        shifts = self.shifts[(self.rotations == np.eye(3, dtype=int)).all((1, 2))]
        return shifts[np.lexsort(shifts.T[::-1])]

    @cached_property
    def primitive_basis(self) -> NDArray[np.float64]:
        """Vectors (3, 3), in rows, of a primitive cell in units of the conventional one."""
        points = self.centring[1:] / GRID
        points = np.concatenate([points - np.rint(points), np.eye(3)])
        size = 1 / len(self.centring)
        for i in range(len(points)):
            for j in range(i + 1, len(points)):
                for k in range(j + 1, len(points)):
                    basis = points[[i, j, k]]
                    if abs(np.linalg.det(basis) - size) < 1e-6:
                        return basis
                    if abs(np.linalg.det(basis) + size) < 1e-6:
                        return -basis
        raise AssertionError(f"space group {self.number} has no primitive cell")


def space_group(number: int) -> SpaceGroup:
    """Return a space group by its number.

    Args:
        number: International number, 1 to 230.

    Raises:
        PriorError: if there is no such group.
    """
    if not isinstance(number, int | np.integer) or not 1 <= number <= NUM_GROUPS:
        raise PriorError(f"{number!r} is not a space group; give a number from 1 to {NUM_GROUPS}")
    return _space_group(int(number))


def group_number(name: str) -> int:
    """Return the number of a space group from its number or symbol.

    Args:
        name: such as `225`, `Fm-3m`, `P2_1/c` or `P 21/c`.

    Raises:
        PriorError: if no group has this number or short symbol.
    """
    text = str(name).strip()
    if text.isascii() and text.isdigit():
        return space_group(int(text)).number
    number = _symbols().get(_plain(text))
    if number is None:
        raise PriorError(
            f"{name!r} is not a space group; give a number from 1 to {NUM_GROUPS} or a short "
            "symbol such as Fm-3m"
        )
    return number


def parse_coordinates(text: str) -> tuple[IntArray, IntArray]:
    """Return the linear part (3, 3) and the shift (3,) in 1/24 of a triplet such as `-y,x,z+1/2`.

    Args:
        text: a coordinate triplet in the notation of the International Tables.
    """
    linear = np.zeros((3, 3), dtype=np.int64)
    shift = np.zeros(3, dtype=np.int64)
    for row, word in enumerate(text.split(",")):
        for sign, factor, axis, offset_sign, numerator, denominator in _TERM.findall(word):
            if axis:
                value = int(factor or 1) * (-1 if sign == "-" else 1)
                linear[row, "xyz".index(axis)] += value
            else:
                offset = Fraction(int(numerator), int(denominator or 1)) * GRID
                assert offset.denominator == 1, text
                shift[row] += int(offset) * (-1 if offset_sign == "-" else 1)
    return linear, shift % GRID


@cache
def _facts() -> list[dict[str, Any]]:
    text = resources.files("llm_prior.wyckoff").joinpath("table.json").read_text()
    groups: list[dict[str, Any]] = json.loads(text)["groups"]
    return groups


@cache
def _symbols() -> dict[str, int]:
    return {_plain(facts["symbol"]): facts["number"] for facts in _facts()}


def _plain(symbol: str) -> str:
    return symbol.replace("_", "").replace(" ", "")


@cache
def _space_group(number: int) -> SpaceGroup:
    facts = _facts()[number - 1]
    general = facts["positions"][-1][1]
    point_group = len({w.tobytes() for w in _operations(facts["hall"])[0]})
    centring = general // point_group
    positions = []
    for index, facts_of_one in enumerate(facts["positions"]):
        letter, multiplicity, symmetry, coordinates, characteristic = facts_of_one
        linear, shift = parse_coordinates(coordinates)
        axes = "".join(axis for axis in "xyz" if axis in coordinates)
        positions.append(
            WyckoffPosition(
                letter=letter,
                index=index,
                multiplicity=multiplicity,
                num_atoms=multiplicity // centring,
                site_symmetry=symmetry,
                axes=axes,
                linear=linear[:, ["xyz".index(axis) for axis in axes]],
                shift=shift,
                characteristic=characteristic,
            )
        )
    return SpaceGroup(
        number=number,
        symbol=facts["symbol"],
        hall_number=facts["hall"],
        family=facts["family"],
        polar_axes=facts["polar"],
        enantiomorph=facts["enantiomorph"],
        positions=tuple(positions),
        cosets=_maps(facts["normalizer"]),
        cells=_maps(facts["cells"]),
    )


def _maps(triplets: Sequence[str]) -> tuple[AffineMap, ...]:
    parts = (parse_coordinates(triplet) for triplet in triplets)
    return tuple(AffineMap(linear=linear, shift=shift) for linear, shift in parts)


@cache
def _operations(hall_number: int) -> tuple[IntArray, IntArray]:
    with warnings.catch_warnings():
        # spglib announces its coming change from None to SpglibError; the number is valid here.
        warnings.filterwarnings("ignore", "Set OLD_ERROR_HANDLING", DeprecationWarning)
        found = spglib.get_symmetry_from_database(hall_number)
    assert found is not None, hall_number
    rotations = np.asarray(found["rotations"], dtype=np.int64)
    shifts = np.rint(np.asarray(found["translations"]) * GRID).astype(np.int64) % GRID
    return rotations, shifts
