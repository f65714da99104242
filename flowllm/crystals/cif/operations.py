"""Symmetry operations of a space group: from a list of a CIF, and as a group with its table."""

from __future__ import annotations

import re
import warnings
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property, lru_cache

import gemmi
import numpy as np
import spglib
from numpy.typing import NDArray

from flowllm.errors import InvalidCrystal

MAX_OPERATIONS = 1000  # 192 in a standard cell; magnetic cells can be supercells
_MAX_DENOMINATOR = 24
_TERM = re.compile(r"([+-]?)(?:(\d{1,4}(?:\.\d{0,12})?|\.\d{1,12})(?:/(\d{1,4}))?\*?)?([xyz])?")
_AXES = "xyz"


@dataclass(frozen=True, eq=False)
class Operations:
    """A space group as its operations x -> W x + w, without lattice translations.

    Attributes:
        rotations: W, (G, 3, 3) integers.
        translations: w, (G, 3) in [0, 1), multiples of simple fractions.
    """

    rotations: NDArray[np.int64]
    translations: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.rotations)

    @cached_property
    def keys(self) -> dict[bytes, int]:
        """Index of each operation by its key."""
        keys = _keys(self.rotations, self.translations)
        return {key: index for index, key in enumerate(keys)}

    @cached_property
    def products(self) -> NDArray[np.int64]:
        """Multiplication table (G, G): the index of operation i after operation j.

        Raises:
            InvalidCrystal: if a product is not in the list, so that it is no group.
        """
        size = len(self)
        rotations = np.einsum("iab,jbc->ijac", self.rotations, self.rotations)
        shifts = np.einsum("iab,jb->ija", self.rotations, self.translations)
        shifts += self.translations[:, None]
        keys = _keys(rotations.reshape(-1, 3, 3), shifts.reshape(-1, 3))
        try:
            table = [self.keys[key] for key in keys]
        except KeyError:
            raise InvalidCrystal(
                "wrong_symmetry",
                f"the {size} symmetry operations are no group: a product of two of them is not "
                "in the list; list all of them",
            ) from None
        return np.array(table).reshape(size, size)

    @cached_property
    def number(self) -> int | None:
        """Number of the space group type (1-230); None if spglib does not recognize it."""
        with warnings.catch_warnings():
            # spglib warns of its change from None to SpglibError; both are handled here.
            warnings.filterwarnings("ignore", "Set OLD_ERROR_HANDLING", DeprecationWarning)
            try:
                found = spglib.get_spacegroup_type_from_symmetry(
                    self.rotations.astype(np.intc), self.translations
                )
            except spglib.SpglibError:
                return None
        return found.number if found else None

    def same_as(self, other: Operations) -> bool:
        """Return whether both are the same operations, in any order."""
        return self.keys.keys() == other.keys.keys()


def from_gemmi(group: gemmi.GroupOps) -> Operations:
    """Return the operations of a group of gemmi.

    Args:
        group: from `gemmi.SpaceGroup.operations` or a Hall symbol.

    Returns:
        Its operations, centring included.
    """
    operations = list(group)
    return make_operations(
        np.array([op.rot for op in operations]) // gemmi.Op.DEN,
        np.array([op.tran for op in operations]) / gemmi.Op.DEN,
    )


def make_operations(rotations: NDArray[np.int64], translations: NDArray[np.float64]) -> Operations:
    """Return operations without duplicates.

    Args:
        rotations: (G, 3, 3).
        translations: (G, 3).

    Returns:
        The operations, in the order of their first occurrence, translations in [0, 1).
    """
    translations = translations - np.floor(translations + 1e-6)
    first: dict[bytes, int] = {}
    for index, key in enumerate(_keys(rotations, translations)):
        first.setdefault(key, index)
    kept = list(first.values())
    return Operations(np.ascontiguousarray(rotations[kept]), translations[kept])


@lru_cache(maxsize=64)  # a list is that of its group, as a rule, and its table is kept with it
def parse_operations(triplets: tuple[str, ...]) -> Operations:
    """Return the operations of a list such as `x, y, z`, `-x+1/2, .5+y, -z`.

    Decimals of a few places become the fraction that they stand for (0.3333 is 1/3).

    Args:
        triplets: one operation each; the fourth part of a magnetic one, `+1` or `-1`, is ignored.

    Returns:
        The operations without duplicates; they may not be a group yet.

    Raises:
        InvalidCrystal: if one is no operation of a lattice (reason `unreadable`).
    """
    rotations, translations = [], []
    for triplet in triplets:
        rotation, translation = _parse_triplet(triplet)
        rotations.append(rotation)
        translations.append(translation)
        if len(rotations) > MAX_OPERATIONS:
            raise InvalidCrystal("unreadable", f"more than {MAX_OPERATIONS} symmetry operations")
    return make_operations(np.array(rotations), np.array(translations))


def _parse_triplet(triplet: str) -> tuple[list[list[int]], list[float]]:
    parts = "".join(triplet.lower().split()).split(",")
    if len(parts) == 4 and parts[3] in ("+1", "-1", "1"):
        parts.pop()
    rows = [_parse_part(part) for part in parts]
    rotation = [row[0] for row in rows if row]
    if len(rotation) != 3 or len(parts) != 3 or abs(round(np.linalg.det(rotation))) != 1:
        raise InvalidCrystal(
            "unreadable", f"{triplet!r} is no symmetry operation such as 'x, y, z'"
        )
    return rotation, [float(row[1]) for row in rows if row]


def _parse_part(part: str) -> tuple[list[int], Fraction] | None:
    rotation, translation = [0, 0, 0], Fraction(0)
    position = 0
    while position < len(part):
        match = _TERM.match(part, position)
        if match is None or match.end() == position or not (match[2] or match[4]):
            return None
        if position and not match[1]:
            return None  # two terms without a sign between them
        value = Fraction(match[2] or 1) / int(match[3] or 1) if match[3] != "0" else None
        if value is None:
            return None
        value = -value if match[1] == "-" else value
        if match[4]:
            if value.denominator != 1:
                return None
            rotation[_AXES.index(match[4])] += int(value)
        else:
            simple = value.limit_denominator(_MAX_DENOMINATOR)
            translation += simple if abs(simple - value) < Fraction(1, 1000) else value
        position = match.end()
    return (rotation, translation) if part else None


def _keys(rotations: NDArray[np.int64], translations: NDArray[np.float64]) -> list[bytes]:
    """Return a key of each operation, equal for those that differ by a lattice translation."""
    steps = np.rint(translations * 10_000).astype(np.int64) % 10_000
    rows = np.concatenate([rotations.reshape(-1, 9), steps], axis=1).astype(np.int16)
    return [row.tobytes() for row in rows]
