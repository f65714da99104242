"""Gallery of the best crystals of a set."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from pymatgen.core import Structure

from flowllm.crystals import cells
from flowllm.crystals.cif import parse_cif
from flowllm.crystals.crystal import Geometry
from flowllm.crystals.views.figure import ball_figure
from flowllm.crystals.views.page import Card

_NUM_BEST = 6
_SHOWN = {
    "spacegroup": "space group",
    "num_atoms": "atoms",
    "density": "density (g/cm³)",
    "e_above_hull": "energy above hull (eV/atom)",
    "relaxed_rmsd": "RMSD to relaxed",
}
_FLAGS = {
    "valid": "valid",
    "unique": "unique",
    "novel": "novel",
    "covered": "near a reference crystal",
}


@dataclass(frozen=True, kw_only=True)
class Gallery:
    """The best crystals of one set.

    Attributes:
        name: name of the set.
        order: the criteria, for the reader.
        cards: the crystals, the best first.
    """

    name: str
    order: str
    cards: list[Card]


def best_crystals(name: str, rows: pd.DataFrame) -> Gallery:
    """Choose and draw the best crystals of a set.

    Crystals that are valid, unique, novel and near a reference crystal (as far as this is known)
    come first; among equals, the lowest energy above the hull, or without energies the highest
    space group. The relaxed crystal is drawn if there is one.

    Args:
        name: name of the set.
        rows: one row per crystal.

    Returns:
        The gallery.
    """
    flags = [flag for flag in _FLAGS if flag in rows]
    has_energies = "e_above_hull" in rows and rows["e_above_hull"].notna().any()
    there = rows[rows["cif"].notna()] if "cif" in rows else rows.iloc[:0]
    merit = sum((there[flag].eq(True).astype(int) for flag in flags), pd.Series(0, there.index))
    value = -_numbers(there, "spacegroup")
    order = "highest space group number"
    if has_energies:
        value, order = _numbers(there, "e_above_hull"), "lowest energy above hull"
    if flags:
        order = f"{', '.join(_FLAGS[flag] for flag in flags)} first, then {order}"
    ranked = there.assign(_merit=-merit, _value=value).sort_values(
        ["_merit", "_value"], kind="stable"
    )
    cards = []
    for _, row in ranked.iterrows():
        relaxed = row.get("relaxed_cif")
        geometry = parse_cif(relaxed if isinstance(relaxed, str) else row["cif"])[0].source
        if isinstance(geometry, Geometry):
            cards.append(_card(row, cells.make_structure(*geometry)))
        if len(cards) == _NUM_BEST:
            break
    return Gallery(name=name, order=order, cards=cards)


def _numbers(rows: pd.DataFrame, name: str) -> pd.Series:
    if name not in rows:
        return pd.Series(np.nan, rows.index)
    return pd.to_numeric(rows[name], errors="coerce")


def _card(row: pd.Series, structure: Structure) -> Card:
    facts = [
        (label, f"{float(row[column]):.4g}")
        for column, label in _SHOWN.items()
        if column in row and pd.notna(row[column])
    ]
    facts += [
        (label, "yes" if row[flag] else "no")
        for flag, label in _FLAGS.items()
        if flag in row and pd.notna(row[flag])
    ]
    formula = structure.composition.reduced_formula
    return Card(id=str(row["id"]), formula=formula, facts=facts, figure=ball_figure(structure))
