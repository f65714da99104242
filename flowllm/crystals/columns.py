"""Names of columns in public data sets: ids, properties, formulas, and what their values mean."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from flowllm.crystals.crystal import scalar
from flowllm.errors import PriorError
from llm_prior.spacegroups import parse_spacegroup

# Columns of public data sets, and the names of the same properties here.
FIELD_OF_COLUMN = {
    # MP-20, Carbon-24 and MPTS-52
    "formation_energy_per_atom": "formation_energy_per_atom",
    "band_gap": "band_gap",
    "e_above_hull": "e_above_hull",
    "spacegroup": "spacegroup",
    "spacegroup.number": "spacegroup",
    # Materials Project
    "energy_above_hull": "e_above_hull",
    "symmetry.number": "spacegroup",
    # MatterGen's MP-20 and Alex-MP-20, and general spelling
    "space_group": "spacegroup",
    "space_group_number": "spacegroup",
    "spacegroup_number": "spacegroup",
    "dft_band_gap": "band_gap",
    "bandgap": "band_gap",
    # Alexandria
    "spg": "spacegroup",
    "band_gap_ind": "band_gap",
    "e_form": "formation_energy_per_atom",
    # WBM in Matbench Discovery
    "bandgap_pbe": "band_gap",
    "e_form_per_atom_mp2020_corrected": "formation_energy_per_atom",
    "e_above_hull_mp2020_corrected_ppd_mp": "e_above_hull",
    # JARVIS-DFT
    "spg_number": "spacegroup",
    "optb88vdw_bandgap": "band_gap",
    "formation_energy_peratom": "formation_energy_per_atom",
    "ehull": "e_above_hull",
}
ID_COLUMNS = ("material_id", "id", "entry_id", "mat_id", "jid")
# Their values are words, also where they look like numbers: NaN is sodium nitride, InF indium
# fluoride.
WORD_COLUMNS = frozenset(
    {
        *ID_COLUMNS,
        *("formula", "pretty_formula", "formula_pretty", "reduced_formula", "full_formula"),
        *("chemical_formula", "composition", "chemical_system", "chemsys", "elements"),
    }
)
MISSING = frozenset({"", "nan", "none", "null", "na", "n/a"})

_SYMMETRIES = ("symmetry", "spacegroup")  # objects with a number, in Materials Project's documents
_FIELDS = frozenset(FIELD_OF_COLUMN.values())


class Description(NamedTuple):
    """What the columns beside a crystal say about it.

    Attributes:
        id: empty if no column names it.
        properties: see `flowllm.crystals.crystal.Crystal`.
        ignored: property -> why its value is not used.
    """

    id: str
    properties: dict[str, float | int | str]
    ignored: dict[str, str]


def describe(values: Mapping[str, Any]) -> Description:
    """Return id and properties of a crystal from the columns beside it.

    No value decides whether the crystal is read: a property whose value has no meaning, or whose
    columns contradict each other, is absent and listed as ignored.

    Args:
        values: column -> value; those that are neither numbers nor text are left out.

    Returns:
        The description.
    """
    id_column = next((key for key in ID_COLUMNS if scalar(values.get(key)) is not None), None)
    properties: dict[str, float | int | str] = {}
    ignored: dict[str, str] = {}
    column_of: dict[str, str] = {}
    for column, value in values.items():
        field = FIELD_OF_COLUMN.get(column, column)
        if column in _SYMMETRIES and isinstance(value, Mapping):
            field, value = "spacegroup", value.get("number") or value.get("symbol")
        if field in _FIELDS and isinstance(value, float) and math.isinf(value):
            ignored.setdefault(field, f"column {column!r}: {value!r} is not a number")
            continue
        value = scalar(value)
        if column == id_column or value is None:
            continue
        if field in _FIELDS:
            if isinstance(value, str) and value.strip().lower() in MISSING:
                continue
            try:
                value = _meaning(field, value)
            except PriorError as error:
                ignored.setdefault(field, f"column {column!r}: {error}")
                continue
        if properties.setdefault(field, value) != value:
            ignored[field] = f"the columns {column_of[field]!r} and {column!r} contradict"
        column_of.setdefault(field, column)
    for field in ignored:
        properties.pop(field, None)
    row_id = "" if id_column is None else str(scalar(values[id_column]))
    return Description(row_id, properties, ignored)


def _meaning(field: str, value: float | int | str) -> float | int:
    """Return the number that a value stands for; a space group may be a symbol."""
    if field == "spacegroup":
        return _spacegroup(value)
    try:
        number = float(value)
    except (ValueError, OverflowError):
        number = math.nan
    if isinstance(value, bool) or not math.isfinite(number):
        raise PriorError(f"{value!r} is not a number")
    if field == "band_gap" and number < 0:
        raise PriorError(f"{value!r} is below 0")
    return number


def _spacegroup(value: float | int | str) -> int:
    try:
        if isinstance(value, bool):
            raise PriorError
        if isinstance(value, str):
            value = value.strip().strip("'\"").split(":")[0]  # the setting plays no part
        return parse_spacegroup(value)
    except PriorError as error:
        raise PriorError(f"{value!r} is no space group, by number (1-230) or symbol") from error
