"""Formula, Z and volume that a data block states, compared with the atoms that were read."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pymatgen.core import Element

from flowllm.crystals.cif.blocks import Block, number
from flowllm.crystals.cif.orbits import Atoms
from flowllm.crystals.cif.sites import Sites
from flowllm.crystals.rules import ATOMIC_NUMBER
from flowllm.errors import InvalidCrystal

_FORMULA_TAGS = ("_chemical_formula_sum", "_chemical_formula_structural")
_Z_TAG = "_cell_formula_units_Z"
_PART = re.compile(r"([A-Z][a-z]?)(\d+(?:\.\d*)?|\.\d+)?(?:\(\d+\))?")
_TOLERANCE = 0.01  # relative, of the amount of an element; rounded formulas are off by less
_COMPARED = 5000  # places; every pair is looked at
_SAME_PLACE = 0.05  # Angstrom
# A^3 per atom; in 9,047 crystals of MP-20 (validation) it is 5.8 to 202.
_SMALLEST_VOLUME, _LARGEST_VOLUME = 3.0, 250.0


@dataclass(frozen=True)
class Formula:
    """The formula of a data block.

    Attributes:
        text: as the file has it.
        amounts: symbol -> amount in one formula unit; deuterium and tritium are hydrogen.
        units: formula units in the cell; None if the file does not say.
    """

    text: str
    amounts: dict[str, float]
    units: float | None

    def check(self, atoms: Counter[str]) -> None:
        """Check the atoms in the cell against formula and Z.

        pymatgen and programs like it write the contents of the whole cell as the formula, beside
        the number of simpler units in it as Z. That is accepted as well.

        Args:
            atoms: number of atoms of each element in the cell.

        Raises:
            InvalidCrystal: if they contradict each other (reason `wrong_formula`).
        """
        if missing := sorted(self.amounts.keys() - atoms.keys()):
            raise InvalidCrystal(
                "wrong_formula",
                f"the sites do not give the CIF's own formula {self.text!r}: there is no "
                f"{', '.join(missing)}",
            )
        if surplus := sorted(atoms.keys() - self.amounts.keys()):
            raise InvalidCrystal(
                "wrong_formula",
                f"the sites do not give the CIF's own formula {self.text!r}, which has no "
                f"{', '.join(surplus)}",
            )
        found = " ".join(f"{symbol}{count}" for symbol, count in sorted(atoms.items()))
        units = sum(atoms.values()) / sum(self.amounts.values())
        if not self._is(atoms, units):
            raise InvalidCrystal(
                "wrong_formula",
                f"the sites do not give the CIF's own formula {self.text!r}, but {found}",
            )
        if self.units is not None:
            if not (self._is(atoms, self.units) or self._is(atoms, 1)):
                raise InvalidCrystal(
                    "wrong_formula",
                    f"the cell holds {found}, but the CIF says {self.units:g} times "
                    f"{self.text!r} ({_Z_TAG})",
                )
        elif units < 1 - _TOLERANCE and all(n == int(n) for n in self.amounts.values()):
            raise InvalidCrystal(
                "wrong_formula", f"the cell holds {found}, less than the formula {self.text!r}"
            )

    def _is(self, atoms: Counter[str], units: float) -> bool:
        return all(
            abs(atoms[symbol] - amount * units) <= _TOLERANCE * max(amount * units, 1)
            for symbol, amount in self.amounts.items()
        )


def read_formula(block: Block) -> tuple[Formula | None, list[str]]:
    """Return the formula of a data block.

    Args:
        block: of the CIF.

    Returns:
        The formula, None if there is none that can be read; and what could not be read.

    Raises:
        InvalidCrystal: if Z is no positive number (reason `wrong_formula`).
    """
    text = block.value(*_FORMULA_TAGS)
    units = None
    if z := block.value(_Z_TAG):
        units = number(z)
        if units is None or units <= 0:
            raise InvalidCrystal("wrong_formula", f"{_Z_TAG} {z!r} is no number")
    if text is None:
        return None, []
    amounts = _amounts(text)
    if amounts is None:
        return None, [f"the formula {text!r} is not understood and not compared"]
    return Formula(text, amounts, units), []


def check_multiplicities(sites: Sites, atoms: Atoms, order: int) -> None:
    """Check the stated numbers of equivalent atoms.

    Old files of SHELXL have the order of the site symmetry group in their place. That is accepted
    if it holds for all sites.

    Args:
        sites: of the block.
        atoms: of the cell.
        order: number of symmetry operations.

    Raises:
        InvalidCrystal: if one differs from the number of atoms (reason `wrong_symmetry`).
    """
    wrong = None
    as_order = True
    for label, stated, found in zip(
        sites.labels, sites.multiplicities, atoms.multiplicities.tolist(), strict=True
    ):
        if stated is None:
            continue
        as_order &= stated * found == order
        if wrong is None and stated != found:
            wrong = (label, stated, found)
    if wrong is not None and not as_order:
        label, stated, found = wrong
        raise InvalidCrystal(
            "wrong_symmetry",
            f"site {label} has a multiplicity of {stated}, but the symmetry operations make "
            f"{found} atoms of it",
        )


def same_atoms(
    lattice: NDArray[np.float64],
    one: tuple[NDArray[np.uint8], NDArray[np.float64]],
    other: tuple[NDArray[np.uint8], NDArray[np.float64]],
) -> bool:
    """Return whether two lists of atoms in one cell are the same crystal.

    Atoms at one place count once. So a list of all atoms equals what symmetry makes of it.

    Args:
        lattice: (3, 3), rows are lattice vectors, Angstrom.
        one: atomic numbers (N,) and fractional coordinates (N, 3).
        other: the same of the other list.

    Returns:
        True if each atom of either list has one of its element in the other, within 0.05 Angstrom;
        False for more than 5000 places, which are not compared.
    """
    first, second = _places(*one), _places(*other)
    if max(len(first), len(second)) > _COMPARED:
        return False
    return _covers(lattice, first, second) and _covers(lattice, second, first)


def _places(numbers: NDArray[np.uint8], frac_coords: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return atomic number and position (N, 4) of the atoms, without exact repetitions."""
    steps = np.rint(frac_coords * 10_000).astype(np.int64) % 10_000
    return np.unique(np.column_stack([numbers, steps]), axis=0) / [1, 10_000, 10_000, 10_000]


def _covers(
    lattice: NDArray[np.float64], atoms: NDArray[np.float64], others: NDArray[np.float64]
) -> bool:
    """Return whether each of the other atoms is among the atoms; see `_places`."""
    for number_and_position in others:
        apart = atoms[atoms[:, 0] == number_and_position[0], 1:] - number_and_position[1:]
        apart = (apart - np.round(apart)) @ lattice
        if not (np.linalg.norm(apart, axis=1) < _SAME_PLACE).any():
            return False
    return True


def volume_note(lattice: NDArray[np.float64], num_atoms: int) -> str | None:
    """Return a remark if the cell is too small or too large for its atoms.

    Args:
        lattice: (3, 3), rows are lattice vectors, Angstrom.
        num_atoms: in the cell.

    Returns:
        The remark; None for a usual volume.
    """
    volume = abs(float(np.linalg.det(lattice))) / num_atoms
    if _SMALLEST_VOLUME <= volume <= _LARGEST_VOLUME:
        return None
    return f"{volume:.3g} A^3 per atom are unusual; check cell, sites and symmetry"


def symbols_of(numbers: NDArray[np.uint8]) -> Counter[str]:
    """Return the number of atoms of each element.

    Args:
        numbers: atomic numbers (N,).

    Returns:
        Symbol -> count.
    """
    values, counts = np.unique(numbers, return_counts=True)
    return Counter(
        {Element.from_Z(int(z)).symbol: int(n) for z, n in zip(values, counts, strict=True)}
    )


def _amounts(text: str) -> dict[str, float] | None:
    words = text.replace(",", " ").replace("'", " ").split()
    amounts: dict[str, float] = {}
    for word in words:
        position = 0
        while position < len(word):
            match = _PART.match(word, position)
            if match is None or match[1] not in ATOMIC_NUMBER:
                return None
            symbol = "H" if match[1] in ("D", "T") else match[1]
            amounts[symbol] = amounts.get(symbol, 0.0) + float(match[2] or 1)
            position = match.end()
    kept = {symbol: amount for symbol, amount in amounts.items() if amount > 0}
    return kept or None
