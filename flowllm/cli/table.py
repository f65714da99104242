"""The short table of crystals that commands print."""

from __future__ import annotations

from collections.abc import Sequence

from flowllm.crystals.io import Crystal
from flowllm.crystals.symmetry import symmetry_of

_SHOWN = 50
_SCORE = "log_likelihood"  # nats, of crystals that were scored
_HEADS = ("id", "formula", "atoms", "a b c", "alpha beta gamma", "group")


def crystal_table(crystals: Sequence[Crystal]) -> str:
    """Return a table with a line for each of the first 50 crystals.

    Its columns are id, formula, number of atoms, lengths (Angstrom), angles (degrees), space group
    and, if a crystal has one, the log-likelihood (nats).

    Args:
        crystals: with their properties.
    """
    if not crystals:
        return "no crystals"
    shown = crystals[:_SHOWN]
    rows = [_HEADS, *map(_row, shown)]
    if any(_SCORE in crystal.properties for crystal in shown):
        scores = [crystal.properties.get(_SCORE) for crystal in shown]
        cells = [_SCORE, *("?" if score is None else f"{score:.1f}" for score in scores)]
        rows = [(*row, cell) for row, cell in zip(rows, cells, strict=True)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
    if len(crystals) > _SHOWN:
        lines.append(f"... and {len(crystals) - _SHOWN} more")
    return "\n".join(lines)


def _row(crystal: Crystal) -> tuple[str, ...]:
    structure = crystal.structure
    symmetry = symmetry_of(structure)
    return (
        crystal.id,
        structure.composition.reduced_formula,
        str(len(structure)),
        " ".join(f"{length:.2f}" for length in structure.lattice.abc),
        " ".join(f"{angle:.0f}" for angle in structure.lattice.angles),
        "?" if symmetry is None else symmetry.crystal.group.symbol,
    )
