"""CIFs without symmetry as pymatgen writes them: a fast reader, and the writer."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable

import numpy as np
from pymatgen.core import Element, Lattice, Structure

from flowllm.crystals.cells import wrap
from flowllm.crystals.cif.blocks_text import block_text, loop_text
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
    with ignore_missing_electronegativity():
        text = _text(structure) if _is_plain(structure) else None
        if text is not None:
            return f"# generated using pymatgen\n{text}"
        from pymatgen.io.cif import CifWriter  # slow to import

        return str(CifWriter(structure))


def _is_plain(structure: Structure) -> bool:
    """Return whether every site is an element with nothing else, not even a label of its own."""
    return all(
        site.is_ordered
        and type(site.specie) is Element
        and site.label == site.species_string
        and "magmom" not in site.properties
        for site in structure
    )


def _text(structure: Structure) -> str | None:
    """Return the block of a plain structure; None if a line of it would be too long."""
    lattice, composition = structure.lattice, structure.composition
    symbols = [site.specie.symbol for site in structure]
    coords = structure.frac_coords
    items = {
        "_symmetry_space_group_name_H-M": "P 1",
        **{f"_cell_length_{axis}": f"{x:.8f}" for axis, x in zip("abc", lattice.abc, strict=True)},
        **{
            f"_cell_angle_{angle}": f"{x:.8f}"
            for angle, x in zip(("alpha", "beta", "gamma"), lattice.angles, strict=True)
        },
        "_symmetry_Int_Tables_number": 1,
        "_chemical_formula_structural": composition.reduced_formula,
        "_chemical_formula_sum": composition.formula,
        "_cell_volume": f"{lattice.volume:.8f}",
        "_cell_formula_units_Z": int(composition.get_reduced_composition_and_factor()[1]),
    }
    operations = {
        "_symmetry_equiv_pos_site_id": ["1"],
        "_symmetry_equiv_pos_as_xyz": ["x, y, z"],
    }
    sites: dict[str, Iterable[object]] = {
        "_atom_site_type_symbol": symbols,
        "_atom_site_label": [f"{symbol}{k}" for k, symbol in enumerate(symbols)],
        "_atom_site_symmetry_multiplicity": ["1"] * len(symbols),
        **{
            f"_atom_site_fract_{axis}": [f"{x:.8f}" for x in column]
            for axis, column in zip("xyz", coords.T.tolist(), strict=True)
        },
        "_atom_site_occupancy": [next(iter(site.species.values())) for site in structure],
    }
    return block_text(composition.reduced_formula, items, [loop_text(operations), loop_text(sites)])
