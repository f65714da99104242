"""CIF text with space group, operations, Wyckoff letters and one site for each orbit.

pymatgen's `CifWriter(symprec=...)` is not used: it writes the crystal after moving its atoms within
the tolerance, and no Wyckoff letters. Its `CifFile` formats a text with long lines.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import moyopy
import numpy as np
import spglib
from numpy.typing import NDArray
from pymatgen.core import Composition, Lattice, Structure
from pymatgen.core.operations import SymmOp

from flowllm.crystals.cif import cif_text
from flowllm.crystals.cif.blocks_text import block_text, loop_text
from flowllm.crystals.crystal import ignore_missing_electronegativity
from flowllm.crystals.symmetry import Symmetry, symmetry_of
from llm_prior.wyckoff.crystal import WyckoffCrystal
from llm_prior.wyckoff.table import GRID, SpaceGroup, space_group

EXACT = 1e-4  # Angstrom; farthest that an atom or a cell vector moves when the CIF is written
# Angstrom. ASE takes sites for one if they are closer than 0.001 of a cell vector.
_NEAREST = 0.1
_THIRD = 1e-4  # pymatgen reads a coordinate as 1/3 or 2/3 if it is closer than this, relatively


def symmetrized_cif(structure: Structure, symmetry: Symmetry | None = None) -> str:
    """Return the CIF of a crystal in the conventional cell of its space group.

    The group is the one that the crystal has within `EXACT`, so that it may be lower than that
    found at a larger symprec. The CIF is that of `cif_text`, in the crystal's own cell, if the
    crystal has no symmetry, the symmetry search fails, atoms are closer than 0.1 Angstrom, or a
    coordinate is so close to 1/3 or 2/3 that pymatgen would move it by more than `EXACT`.

    Args:
        structure: an ordered crystal.
        symmetry: its symmetry if it is known at some symprec; saves time.

    Returns:
        The text: group, operations, and each orbit with its letter and multiplicity, in the setting
        of `Symmetry`, with eight decimals.
    """
    if symmetry is None or symmetry.misfit > EXACT:
        symmetry = symmetry_of(structure, EXACT)
    if symmetry is None or symmetry.misfit > EXACT or symmetry.spacegroup == 1:
        return cif_text(structure)
    distances = structure.distance_matrix + np.diag([np.inf] * len(structure))
    crystal = symmetry.crystal
    if distances.min() < _NEAREST or symmetry.misfit + _moved_by_reader(crystal) > EXACT:
        return cif_text(structure)
    return _text(crystal)


def _moved_by_reader(crystal: WyckoffCrystal) -> float:
    """How far, in Angstrom, pymatgen moves an atom when it takes a coordinate for 1/3 or 2/3."""
    coords = np.array(_coords(crystal))
    rounded = coords.copy()
    for third in (1 / 3, 2 / 3):
        rounded[np.abs(coords / third - 1) < _THIRD] = third
    lattice = Lattice.from_parameters(*crystal.parameters).matrix
    return float(np.linalg.norm((rounded - coords) @ lattice, axis=1).max())


def _text(crystal: WyckoffCrystal) -> str:
    group = crystal.group
    copies = len(group.centring)
    composition = Composition({e: n * copies for e, n in crystal.composition.items()})
    with ignore_missing_electronegativity():
        name = composition.reduced_formula
        formula = composition.formula
    volume = Lattice.from_parameters(*crystal.parameters).volume
    orbits = _orbits(crystal)
    cell = zip(
        ("length_a", "length_b", "length_c", "angle_alpha", "angle_beta", "angle_gamma"),
        crystal.parameters,
        strict=True,
    )
    items: dict[str, Any] = {
        "_chemical_formula_structural": name,
        "_chemical_formula_sum": formula,
        **{f"_cell_{key}": f"{value:.8f}" for key, value in cell},
        "_cell_volume": f"{volume:.8f}",
        "_cell_formula_units_Z": _formula_units(composition),
        "_space_group_name_H-M_alt": _symbol(group),
        "_space_group_IT_number": group.number,
    }
    text = block_text(name, items, [_operations_text(group.number), loop_text(orbits)])
    if text is None:  # a line is too long for this writer
        from pymatgen.io.cif import CifBlock, CifFile  # slow to import

        operations = _operation_columns(group.number)
        data = items | operations | orbits
        text = str(CifFile({name: CifBlock(data, [[*operations], [*orbits]], name)}))
    programs = f"spglib {spglib.__version__} and moyo {moyopy.__version__}"
    return f"# symmetry within {EXACT:g} Angstrom by {programs}\n{text}"


def _orbits(crystal: WyckoffCrystal) -> dict[str, list[Any]]:
    """The columns of the loop over the first site of each orbit."""
    positions = [crystal.group.position(orbit.letter) for orbit in crystal.orbits]
    coords = _coords(crystal)
    elements = [orbit.element for orbit in crystal.orbits]
    return {
        "_atom_site_type_symbol": elements,
        "_atom_site_label": [f"{element}{n}" for n, element in enumerate(elements, start=1)],
        "_atom_site_symmetry_multiplicity": [position.multiplicity for position in positions],
        "_atom_site_Wyckoff_symbol": [position.letter for position in positions],
        **{
            f"_atom_site_fract_{axis}": [f"{xyz[place]:.8f}" for xyz in coords]
            for place, axis in enumerate("xyz")
        },
        "_atom_site_occupancy": ["1.0"] * len(elements),
    }


def _coords(crystal: WyckoffCrystal) -> list[NDArray[np.float64]]:
    """The first site (3,) of each orbit."""
    positions = [crystal.group.position(orbit.letter) for orbit in crystal.orbits]
    return [
        (position.linear @ np.array(orbit.coords, dtype=float) + position.shift / GRID) % 1.0
        for position, orbit in zip(positions, crystal.orbits, strict=True)
    ]


def _formula_units(composition: Composition) -> int:
    return int(composition.get_reduced_composition_and_factor()[1])


@lru_cache(maxsize=256)
def _symbol(group: SpaceGroup) -> str:
    """The Hermann-Mauguin symbol of the setting, such as `F d -3 m :1` or `P 1 21/c 1`."""
    setting = spglib.get_spacegroup_type(group.hall_number)
    assert setting is not None, group
    short = setting.international.split(" = ")[0]
    symbol = setting.international_full if group.family == "monoclinic" else short
    choice = f" :{setting.choice}" if setting.choice in ("1", "H") else ""
    return str(symbol).replace("_", "") + choice


@lru_cache(maxsize=32)
def _operations_text(number: int) -> str | None:
    """The loop over the operations."""
    return loop_text(_operation_columns(number))


def _operation_columns(number: int) -> dict[str, Any]:
    """The columns of the loop over the operations."""
    operations = _operations(number)
    return {
        "_space_group_symop_id": range(1, len(operations) + 1),
        "_space_group_symop_operation_xyz": operations,
    }


@lru_cache(maxsize=32)
def _operations(number: int) -> list[str]:
    """The operations such as `-y, x-y, z+1/3`, the identity first."""
    group = space_group(number)
    return [
        SymmOp.from_rotation_and_translation(rotation, shift / GRID).as_xyz_str()
        for rotation, shift in zip(group.rotations, group.shifts, strict=True)
    ]
