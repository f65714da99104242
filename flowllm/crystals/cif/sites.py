"""The cell and the atom sites of a data block."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pymatgen.core import Element, Lattice

from flowllm.crystals.cif.blocks import Block, last_place, number
from flowllm.crystals.crystal import Geometry, ignore_missing_electronegativity
from flowllm.crystals.rules import ATOMIC_NUMBER, site_element
from flowllm.errors import InvalidCrystal

_LENGTHS = ("_cell_length_a", "_cell_length_b", "_cell_length_c")
_ANGLES = ("_cell_angle_alpha", "_cell_angle_beta", "_cell_angle_gamma")
_COORDS = ("_atom_site_fract_x", "_atom_site_fract_y", "_atom_site_fract_z")
_MULTIPLICITY_TAGS = (
    "_atom_site_site_symmetry_multiplicity",
    "_atom_site_symmetry_multiplicity",
)
MAX_ATOMS = 100_000  # in the cell
_VOLUME_TOLERANCE = 0.02  # of the stated volume, relative
# `Na`, `Fe3+`, `O-2`, `Na1`, `Fe1+2`
_TYPE = re.compile(r"([A-Za-z]{1,2})(?:\d*(?:\.\d+)?[+-]?|[+-]\d*(?:\.\d+)?|\d+[+-]\d+)")
_LABEL = re.compile(r"([A-Za-z]+)")
# Groups of atoms that some files give as one site, at the position of the heavy atom.
_GROUP = re.compile(r"(?:wat|water|oh|h2o|d2o|oh2|h3o|nh4|nh3|no3)(?:[^a-z].*)?", re.IGNORECASE)
_WATER_OXYGEN = re.compile(r"(?:ow|o\d*w)(?:[^a-z].*)?", re.IGNORECASE)


def _rank_of_elements() -> NDArray[np.int64]:
    """Return the place of each atomic number by electronegativity, then symbol.

    This is pymatgen's order of sites. Elements without electronegativity come last.
    """
    with ignore_missing_electronegativity():  # pymatgen warns once for each element
        order = {
            element: (np.nan_to_num(element.X, nan=np.inf), element.symbol) for element in Element
        }
    elements = sorted(order, key=order.__getitem__)
    rank = np.zeros(max(element.Z for element in elements) + 1, dtype=np.int64)
    for place, element in enumerate(elements):
        rank[element.Z] = place
    return rank


_RANK = _rank_of_elements()


@dataclass(frozen=True)
class Sites:
    """The atom sites of a data block, before symmetry.

    Attributes:
        labels: N names, for messages.
        atomic_numbers: (N,).
        frac_coords: (N, 3), as the file has them but for exact thirds.
        last_places: (N, 3), unit of the last decimal place of each coordinate; 0 if all have less
            than two decimals.
        multiplicities: N stated numbers of equivalent atoms, None where there is none.
        notes: what had to be assumed.
    """

    labels: list[str]
    atomic_numbers: NDArray[np.uint8]
    frac_coords: NDArray[np.float64]
    last_places: NDArray[np.float64]
    multiplicities: list[int | None]
    notes: list[str]


def has_sites(block: Block) -> bool:
    """Return whether a data block has atom sites.

    Args:
        block: of the CIF.

    Returns:
        True if there is a label, an element or a position of an atom.
    """
    names = ("_atom_site_label", "_atom_site_type_symbol", *_COORDS, "_atom_site_cartn_x")
    return any(block.columns.get(name) for name in names)


def read_lattice(block: Block) -> tuple[NDArray[np.float64], list[str]]:
    """Return the cell of a data block.

    An angle without a tag is 90 degrees, as the core dictionary of CIF says.

    Args:
        block: of the CIF.

    Returns:
        The lattice (3, 3), rows are lattice vectors in Angstrom, and what had to be assumed.

    Raises:
        InvalidCrystal: if a length is missing, a number is not readable, the angles belong to no
            cell, or the volume is not the stated one (reason `bad_cell`).
    """
    notes = []
    lengths = [_cell_number(block, tag) for tag in _LENGTHS]
    absent = [tag for tag in _ANGLES if tag not in block.columns]
    if absent:
        notes.append(f"there is no {', '.join(absent)}; 90 degrees are assumed")
    angles = [90.0 if tag in absent else _cell_number(block, tag) for tag in _ANGLES]
    alpha, beta, gamma = sorted(angles)
    if not (alpha > 0 and gamma < 180 and gamma < alpha + beta and sum(angles) < 360):
        raise InvalidCrystal("bad_cell", f"no cell has the angles {_words(angles)}")
    lattice = np.array(Lattice.from_parameters(*lengths, *angles).matrix)
    volume = abs(float(np.linalg.det(lattice)))
    stated = number(block.value("_cell_volume"))
    if stated and not is_stated_volume(volume, stated):
        raise InvalidCrystal(
            "bad_cell",
            f"the cell has a volume of {volume:.4g} A^3, but _cell_volume is {stated:.4g}",
        )
    return lattice, notes


def is_stated_volume(volume: float, stated: float) -> bool:
    """Return whether a volume is the one that the CIF states, to 2%.

    Args:
        volume: of the cell, Angstrom^3.
        stated: in the CIF, Angstrom^3.

    Returns:
        True if they agree.
    """
    return abs(volume - stated) <= _VOLUME_TOLERANCE * stated


def exact_thirds(frac_coords: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return coordinates in which those within a ten-thousandth of 1/3 and 2/3 are exact.

    Args:
        frac_coords: (N, 3).

    Returns:
        A new array (N, 3).
    """
    frac_coords = frac_coords.copy()
    for third in (1 / 3, 2 / 3):
        frac_coords[np.abs(frac_coords / third - 1) <= 1e-4] = third
    return frac_coords


def sorted_geometry(
    lattice: NDArray[np.float64], numbers: NDArray[np.uint8], frac_coords: NDArray[np.float64]
) -> Geometry:
    """Return a geometry with its atoms sorted by electronegativity, then by symbol.

    Args:
        lattice: (3, 3), rows are lattice vectors, Angstrom.
        numbers: atomic numbers (N,).
        frac_coords: (N, 3).

    Returns:
        The geometry; atoms of one element stay in their order.
    """
    order = np.argsort(_RANK[numbers], kind="stable")
    return Geometry(lattice, numbers[order], frac_coords[order])


def read_sites(block: Block, known: Collection[str]) -> Sites:
    """Return the atom sites of a data block.

    Args:
        block: of the CIF, with sites.
        known: symbols of the elements in its formula; empty if there is no formula.

    Returns:
        The sites. Dummy sites (`_atom_site_calc_flag dum`) are left out.

    Raises:
        InvalidCrystal: if a site has no position (reason `unreadable`), is no element or stands
            for several atoms (`unknown_element`), or is not fully occupied (`disorder`), or there
            are more than 100,000 (`too_many_atoms`).
    """
    size = max(len(block.columns.get(tag, ())) for tag in ("_atom_site_label", *_COORDS))
    if size > MAX_ATOMS:
        raise InvalidCrystal("too_many_atoms", f"{size} atom sites; at most {MAX_ATOMS} are read")
    labels = _column(block, "_atom_site_label", size)
    types = _column(block, "_atom_site_type_symbol", size)
    flags = _column(block, "_atom_site_calc_flag", size)
    rows = [i for i in range(size) if (flags[i] or "").lower() != "dum"]
    notes = [] if len(rows) == size else [f"{size - len(rows)} dummy sites are left out"]
    names = [labels[i] or types[i] or str(i + 1) for i in range(size)]
    positions = _positions(block, names, rows, size)
    elements = {i: _element(names[i], types[i], labels[i], known, notes) for i in rows}
    _check_hydrogens(block, names, rows, size)
    rows = _full_rows(block, names, rows, size, elements, positions)
    if 1 not in elements.values():
        _refuse_groups([names[i] for i in rows], bool(known))
    tag = next((tag for tag in _MULTIPLICITY_TAGS if tag in block.columns), _MULTIPLICITY_TAGS[0])
    multiplicities = [number(value) for value in _column(block, tag, size)]
    return Sites(
        labels=[names[i] for i in rows],
        atomic_numbers=np.array([elements[i] for i in rows], dtype=np.uint8),
        frac_coords=exact_thirds(
            np.array([[number(word) for word in positions[i]] for i in rows], dtype=np.float64)
        ),
        last_places=_last_places([positions[i] for i in rows]),
        multiplicities=[int(m) if m else None for m in (multiplicities[i] for i in rows)],
        notes=notes,
    )


def _words(values: list[float]) -> str:
    return " ".join(f"{value:g}" for value in values)


def _cell_number(block: Block, tag: str) -> float:
    word = block.value(tag)
    value = number(word)
    if value is None or value <= 0:
        problem = f"{word!r} is no positive number" if word else "is missing"
        raise InvalidCrystal("bad_cell", f"{tag}: {problem}")
    return value


def _column(block: Block, tag: str, size: int) -> list[str | None]:
    """Return the values of a tag, one for each site; None where it has none."""
    values = block.columns.get(tag)
    if values is None:
        return [None] * size
    if len(values) != size:
        raise InvalidCrystal("unreadable", f"{tag} has {len(values)} values for {size} atom sites")
    return [value.strip() if value else None for value in values]


def _positions(block: Block, names: list[str], rows: list[int], size: int) -> dict[int, list[str]]:
    """Return the three words of the position of each row, all of them numbers."""
    missing = [tag for tag in _COORDS if tag not in block.columns]
    if missing:
        hint = "; give fractional positions" if "_atom_site_cartn_x" in block.columns else ""
        raise InvalidCrystal("unreadable", f"the atom sites have no {missing[0]}{hint}")
    columns = [_column(block, tag, size) for tag in _COORDS]
    positions = {}
    for i in rows:
        words = [column[i] or "?" for column in columns]
        for word in words:
            if number(word) is None:
                raise InvalidCrystal(
                    "unreadable", f"site {names[i]}: the position {word!r} is no number"
                )
        positions[i] = words
    return positions


def _last_places(positions: list[list[str]]) -> NDArray[np.float64]:
    """Return the unit of the last decimal place of each coordinate (N, 3).

    A number such as 0.5 may be 0.50 without its zero, so its unit is the smallest of the file.
    """
    units = np.array([[last_place(word) for word in words] for words in positions])
    smallest = units[units > 0].min(initial=1.0)
    return np.maximum(units, smallest) if smallest < 1 else units


def _check_hydrogens(block: Block, names: list[str], rows: list[int], size: int) -> None:
    """Refuse hydrogen that is counted but not located."""
    attached = _column(block, "_atom_site_attached_hydrogens", size)
    for i in rows:
        if (count := attached[i]) is not None and number(count) != 0:
            raise InvalidCrystal(
                "unknown_element",
                f"site {names[i]} has {count} hydrogen atoms without a position; give each atom "
                "its own site",
            )


def _full_rows(
    block: Block,
    names: list[str],
    rows: list[int],
    size: int,
    elements: dict[int, int],
    positions: dict[int, list[str]],
) -> list[int]:
    """Return one row for each site; ions of one element may share a site.

    Raises:
        InvalidCrystal: if a site is partially occupied, shared, or one of several alternatives
            (reason `disorder`).
    """
    occupancies = _column(block, "_atom_site_occupancy", size)
    kept: list[int] = []
    partial: dict[tuple[float | None, ...], list[tuple[int, float]]] = {}
    for i in rows:
        share = 1.0 if occupancies[i] is None else number(occupancies[i])
        if share is None:
            raise InvalidCrystal(
                "unreadable", f"site {names[i]}: the occupancy {occupancies[i]!r} is no number"
            )
        if share == 1:
            kept.append(i)
        else:
            place = tuple(number(word) for word in positions[i])
            partial.setdefault(place, []).append((i, share))
    for occupants in partial.values():
        first = occupants[0][0]
        site_element(
            [(Element.from_Z(elements[i]).symbol, share) for i, share in occupants],
            f"site {names[first]}",
        )
        kept.append(first)
    groups = _column(block, "_atom_site_disorder_group", size)
    alternatives = {group for i in rows if (group := groups[i]) not in (None, "0")}
    if len(alternatives) > 1 or any(group.startswith("-") for group in alternatives if group):
        raise InvalidCrystal(
            "disorder", "the sites are alternatives (_atom_site_disorder_group); keep one set"
        )
    return sorted(kept)


def _element(
    name: str, symbol: str | None, label: str | None, known: Collection[str], notes: list[str]
) -> int:
    """Return the atomic number of a site by its element, or by its label if it has none."""
    match = _TYPE.fullmatch(symbol) if symbol else _LABEL.match(label or "")
    letters = match[1] if match else ""
    if letters in ATOMIC_NUMBER:
        return ATOMIC_NUMBER[letters]
    spellings = [letters.capitalize()]
    if not symbol:  # `OA1` is oxygen, `SiT` silicon and `HO1` hydrogen, if the formula says so
        spellings = [s for s in (*spellings, letters[:2], letters[:1]) if s in known]
    for spelling in spellings:
        if spelling in ATOMIC_NUMBER and (not known or spelling in known):
            notes.append(f"site {name} is assumed to be {spelling}")
            return ATOMIC_NUMBER[spelling]
    what = f"{symbol!r} is no element" if symbol else "no element is given"
    raise InvalidCrystal(
        "unknown_element",
        f"site {name}: {what}; give each atom its own site with its element in "
        "_atom_site_type_symbol",
    )


def _refuse_groups(labels: list[str], is_verified: bool) -> None:
    """Refuse sites of water and the like, in a crystal without hydrogen sites."""
    for label in labels:
        if _GROUP.fullmatch(label) or (not is_verified and _WATER_OXYGEN.fullmatch(label)):
            raise InvalidCrystal(
                "unknown_element",
                f"site {label} stands for a group of atoms, and the file has no hydrogen sites; "
                "give each atom its own site",
            )
