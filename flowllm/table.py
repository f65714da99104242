"""The short table of crystals that commands print."""

from __future__ import annotations

from collections.abc import Sequence

from pymatgen.symmetry.analyzer import SpacegroupAnalyzer, SymmetryUndeterminedError

from flowllm.data import Crystal

SYMPREC = 0.1  # Angstrom; generated crystals are not symmetric to more
_SHOWN = 50


def crystal_table(crystals: Sequence[Crystal]) -> str:
    """A line a crystal: id, formula, atoms, lengths (Angstrom), angles (degrees), space group."""
    if not crystals:
        return "no crystals"
    lines = [f"{'id':<14}{'formula':<16}{'atoms':>5}  {'a b c':<20}{'alpha beta gamma':<18}group"]
    for crystal in crystals[:_SHOWN]:
        structure = crystal.structure
        lengths = " ".join(f"{x:.2f}" for x in structure.lattice.abc)
        angles = " ".join(f"{x:.0f}" for x in structure.lattice.angles)
        try:
            group = SpacegroupAnalyzer(structure, symprec=SYMPREC).get_space_group_symbol()
        except SymmetryUndeterminedError:
            group = "?"
        lines.append(
            f"{crystal.id:<14}{structure.composition.reduced_formula:<16}{len(structure):>5}  "
            f"{lengths:<20}{angles:<18}{group}"
        )
    if len(crystals) > _SHOWN:
        lines.append(f"... and {len(crystals) - _SHOWN} more")
    return "\n".join(lines)
