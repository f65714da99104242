"""CIFs without symmetry as pymatgen writes them: a fast reader, and the writer."""

from __future__ import annotations

import re
from collections import Counter

import numpy as np
from pymatgen.core import Lattice, Structure

from flowllm.crystals.cells import wrap
from flowllm.crystals.cif.sites import exact_thirds, is_stated_volume, sorted_geometry
from flowllm.crystals.crystal import Geometry, ignore_missing_electronegativity
from flowllm.crystals.rules import ATOMIC_NUMBER

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
    rf"_cell_volume +({_P})\n"
    r"_cell_formula_units_Z +\d+\n"
    r"loop_\n _symmetry_equiv_pos_site_id\n _symmetry_equiv_pos_as_xyz\n  1  'x, y, z'\n"
    r"loop_\n _atom_site_type_symbol\n _atom_site_label\n _atom_site_symmetry_multiplicity\n"
    r" _atom_site_fract_x\n _atom_site_fract_y\n _atom_site_fract_z\n _atom_site_occupancy\n"
    rf"((?: +[A-Z][a-z]? +[A-Za-z0-9]+ +1(?: +{_N}){{3}} +1(?:\.0)?\n)+)"
)


def parse_plain_cif(text: str) -> Geometry | None:
    """Return the geometry of a plain CIF.

    A CIF is not plain if more is to do than to read numbers: symmetry, oxidation states,
    occupancies, coinciding sites, a formula that does not match the sites, thin cells.

    Args:
        text: of the CIF.

    Returns:
        The geometry, equal bit for bit to that of `parse_cif`; None if the CIF is not plain.
    """
    match = _PLAIN_CIF.fullmatch(text)
    if match is None:
        return None
    *cell, formula, volume, sites = match.groups()
    words = sites.split()
    symbols = words[0::7]
    if not ATOMIC_NUMBER.keys() >= set(symbols):
        return None
    if Counter(symbols) != {s: int(n) for s, n in re.findall(r"([A-Z][a-z]?)(\d+)", formula)}:
        return None
    a, b, c, *angles = map(float, cell)
    if not 1 < min(angles) <= max(angles) < 179:
        return None
    lattice = Lattice.from_parameters(a, b, c, *angles)
    if not lattice.volume > 0.02 * max(a * b, a * c, b * c):
        return None
    if not is_stated_volume(lattice.volume, float(volume)):
        return None
    frac_coords = np.array([words[3::7], words[4::7], words[5::7]], dtype=np.float64).T
    frac_coords = wrap(exact_thirds(frac_coords))
    apart = frac_coords[:, None] - frac_coords[None]  # (N, N, 3)
    apart = np.abs(apart - np.round(apart)).max(axis=-1)
    if np.count_nonzero(apart < 2e-4) > len(symbols):  # the diagonal is always there
        return None
    numbers = np.array([ATOMIC_NUMBER[symbol] for symbol in symbols], dtype=np.uint8)
    return sorted_geometry(lattice.matrix, numbers, frac_coords)


def cif_text(structure: Structure) -> str:
    """Return the CIF of a structure, without symmetry, as pymatgen writes it.

    Args:
        structure: an ordered crystal.

    Returns:
        The text, with eight decimals.
    """
    from pymatgen.io.cif import CifWriter

    with ignore_missing_electronegativity():
        return str(CifWriter(structure))
