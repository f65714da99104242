"""CIF text to geometries, with a fast path for CIFs written by pymatgen, and back to text."""

from __future__ import annotations

import os
import re
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from pymatgen.core import Element, Lattice, Structure

from flowllm.crystals.crystal import UNREADABLE, Geometry, geometry_of_structure
from flowllm.crystals.rules import ATOMIC_NUMBER
from flowllm.errors import InvalidCrystal, one_line
from flowllm.system.executors import for_each

_WORTH_WORKERS = 5000  # CIFs for pymatgen; below that, starting processes costs more than it saves
_CHUNK = 250  # CIFs per task of a process

# pymatgen sorts the sites of a CIF by this; helium, neon and argon have no electronegativity.
_SORT_KEY = {
    element.symbol: (element.X, element.symbol)
    for element in Element
    if element.Z <= 103 and element.symbol not in ("He", "Ne", "Ar")
}

_P = r"\d+\.\d+"
_N = rf"-?{_P}"
# Exactly the CIF that pymatgen writes for a structure without symmetry.
_PLAIN_CIF = re.compile(
    r"(?:# generated using pymatgen\n)?"
    r"data_[A-Za-z0-9.()]+\n"
    r"_symmetry_space_group_name_H-M +'P 1'\n"
    rf"_cell_length_a +({_P})\n_cell_length_b +({_P})\n_cell_length_c +({_P})\n"
    rf"_cell_angle_alpha +({_P})\n_cell_angle_beta +({_P})\n_cell_angle_gamma +({_P})\n"
    r"_symmetry_Int_Tables_number +1\n"
    r"_chemical_formula_structural +[A-Za-z0-9.()]+\n"
    r"_chemical_formula_sum +'?([A-Z][a-z]?\d+(?: [A-Z][a-z]?\d+)*)'?\n"
    rf"_cell_volume +{_N}\n"
    r"_cell_formula_units_Z +\d+\n"
    r"loop_\n _symmetry_equiv_pos_site_id\n _symmetry_equiv_pos_as_xyz\n  1  'x, y, z'\n"
    r"loop_\n _atom_site_type_symbol\n _atom_site_label\n _atom_site_symmetry_multiplicity\n"
    r" _atom_site_fract_x\n _atom_site_fract_y\n _atom_site_fract_z\n _atom_site_occupancy\n"
    rf"((?: +[A-Z][a-z]? +[A-Za-z0-9]+ +1(?: +{_N}){{3}} +1(?:\.0)?\n)+)"
)


def parse_plain_cif(text: str) -> Geometry | None:
    """Return the geometry of a plain CIF, as pymatgen's parser does, but 16 times faster.

    A CIF is not plain if that parser would do more than read numbers: symmetry, oxidation states,
    occupancies, coinciding sites, a formula that does not match the sites, thin cells, elements
    without electronegativity.

    Args:
        text: of the CIF.

    Returns:
        The geometry, equal bit for bit to that of `parse_cif`; None if the CIF is not plain.
    """
    match = _PLAIN_CIF.fullmatch(text)
    if match is None:
        return None
    *cell, formula, sites = match.groups()
    words = sites.split()
    symbols = words[0::7]
    if not _SORT_KEY.keys() >= set(symbols):
        return None
    if Counter(symbols) != {s: int(n) for s, n in re.findall(r"([A-Z][a-z]?)(\d+)", formula)}:
        return None
    a, b, c, *angles = map(float, cell)
    if not 1 < min(angles) <= max(angles) < 179:
        return None
    lattice = Lattice.from_parameters(a, b, c, *angles)
    if not lattice.volume > 0.02 * max(a * b, a * c, b * c):
        return None
    frac_coords = np.array([words[3::7], words[4::7], words[5::7]], dtype=np.float64).T
    for third in (1 / 3, 2 / 3):
        frac_coords[np.abs(frac_coords / third - 1) <= 1e-4] = third
    frac_coords -= np.floor(frac_coords)
    apart = frac_coords[:, None] - frac_coords[None]  # (N, N, 3)
    apart = np.abs(apart - np.round(apart)).max(axis=-1)
    if np.count_nonzero(apart < 2e-4) > len(symbols):  # the diagonal is always there
        return None
    order = sorted(range(len(symbols)), key=lambda i: _SORT_KEY[symbols[i]])
    numbers = np.array([ATOMIC_NUMBER[symbols[i]] for i in order], dtype=np.uint8)
    return Geometry(lattice.matrix, numbers, frac_coords[order])


def parse_cifs(
    texts: Sequence[str], workers: int | None
) -> list[tuple[Geometry | InvalidCrystal, list[str]]]:
    """Parse CIFs with pymatgen's parser, in several processes if there are many.

    Args:
        texts: CIFs.
        workers: number of processes; None: one per core for at least 5000 CIFs, else one.

    Returns:
        The result of `parse_cif` for each text, in order.
    """
    if workers is None:
        workers = (os.cpu_count() or 1) if len(texts) >= _WORTH_WORKERS else 1
    parsed: dict[int, list[tuple[Geometry | InvalidCrystal, list[str]]]] = {}

    def save(chunk: tuple[int, Sequence[str]], result: Any) -> None:
        parsed[chunk[0]] = result

    chunks = [(start, texts[start : start + _CHUNK]) for start in range(0, len(texts), _CHUNK)]
    for_each(chunks, _parse_chunk, save, workers=workers)
    return [result for start in sorted(parsed) for result in parsed[start]]


def _parse_chunk(
    _: None, chunk: tuple[int, Sequence[str]]
) -> list[tuple[Geometry | InvalidCrystal, list[str]]]:
    return [parse_cif(text) for text in chunk[1]]


def parse_cif(text: str) -> tuple[Geometry | InvalidCrystal, list[str]]:
    """Parse one CIF with pymatgen's parser.

    Args:
        text: of the CIF.

    Returns:
        The geometry, or the reason why there is none, and the warnings of the parser.
    """
    # Imported here for start-up time: plain CIFs do not need it.
    from pymatgen.io.cif import CifParser

    notes: list[str] = []
    try:
        with _warnings_to(notes):
            parser = CifParser.from_str(text, check_cif=False)
            structures = parser.parse_structures(primitive=False)
            mismatch = parser.check(structures[0]) or ""
        if len(structures) > 1:
            raise InvalidCrystal(
                "unreadable", f"the CIF holds {len(structures)} structures; give each its own"
            )
        if mismatch.startswith(("Missing elements", "Incorrect stoichiometry")):
            raise InvalidCrystal(  # a lost line of a site, or hydrogen that was not located
                "wrong_formula",
                f"the sites do not give the CIF's own formula: {one_line(mismatch)}",
            )
        return geometry_of_structure(structures[0]), notes
    except InvalidCrystal as error:
        return error, notes
    except UNREADABLE as error:
        cause = "; ".join(notes) or str(error) or type(error).__name__
        return InvalidCrystal("unreadable", f"not a readable CIF: {one_line(cause)}"), []


def cif_text(structure: Structure) -> str:
    """Return the CIF of a structure, without symmetry, as pymatgen writes it.

    Args:
        structure: an ordered crystal.

    Returns:
        The text, with eight decimals.
    """
    from pymatgen.io.cif import CifWriter

    notes: list[str] = []
    with _warnings_to(notes):  # about elements without electronegativity
        return str(CifWriter(structure))


@contextmanager
def _warnings_to(notes: list[str]) -> Iterator[None]:
    """Collect the warnings of pymatgen and numpy about the data; let other warnings pass."""
    kinds = (UserWarning, RuntimeWarning)
    with warnings.catch_warnings(record=True) as caught:
        for kind in kinds:
            warnings.simplefilter("always", kind)
        try:
            yield
        finally:
            notes.extend(str(w.message) for w in caught if issubclass(w.category, kinds))
    for w in caught:
        if not issubclass(w.category, kinds):
            warnings.warn_explicit(w.message, w.category, w.filename, w.lineno)
