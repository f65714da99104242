"""Small CIFs for tests."""

from __future__ import annotations

from collections.abc import Sequence

from pymatgen.core import Structure

from flowllm.crystals.cells import make_structure
from flowllm.crystals.cif import parse_cif
from flowllm.crystals.crystal import Geometry
from flowllm.errors import InvalidCrystal

CUBIC = (5.64, 5.64, 5.64, 90, 90, 90)
SALT = ("Na1 Na 0 0 0", "Cl1 Cl 0.5 0.5 0.5")
_NAMES = ("length_a", "length_b", "length_c", "angle_alpha", "angle_beta", "angle_gamma")
_COLUMNS = ("label", "type_symbol", "fract_x", "fract_y", "fract_z")


def build(
    sites: Sequence[str] = SALT,
    *,
    cell: Sequence[object] = CUBIC,
    group: str | None = "F m -3 m",
    operations: Sequence[str] = (),
    formula: str | None = None,
    z: object = None,
    columns: Sequence[str] = _COLUMNS,
    extra: str = "",
    name: str = "x",
) -> str:
    """Return a CIF; an argument that is None or empty is left out."""
    lines = [f"data_{name}"]
    lines += [f"_cell_{tag} {value}" for tag, value in zip(_NAMES, cell, strict=True)]
    if formula is not None:
        lines.append(f"_chemical_formula_sum '{formula}'")
    if z is not None:
        lines.append(f"_cell_formula_units_Z {z}")
    if group is not None:
        lines.append(f"_symmetry_space_group_name_H-M '{group}'")
    if operations:
        lines += ["loop_", "_symmetry_equiv_pos_as_xyz", *(f"'{one}'" for one in operations)]
    if extra:
        lines.append(extra)
    lines += ["loop_", *(f"_atom_site_{column}" for column in columns), *sites, ""]
    return "\n".join(lines)


def crystal(text: str) -> tuple[Structure, tuple[str, ...]]:
    """Return the one crystal of a CIF and its warnings."""
    (found,) = parse_cif(text)
    assert isinstance(found.source, Geometry), found.source
    return make_structure(*found.source), found.notes


def refusal(text: str) -> InvalidCrystal:
    """Return why a CIF is refused; its message is one line."""
    (found,) = parse_cif(text)
    assert isinstance(found.source, InvalidCrystal), found.source
    assert "\n" not in found.source.detail
    return found.source
