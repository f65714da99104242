"""Crystals written as symmetric CIFs in many ways, and what the reader makes of them.

    python benchmarks/cif_variants.py CRYSTALS [--step N]

Every N-th crystal is written by pymatgen with its symmetry (symprec 0.01). Each variant leaves out
or rounds something. The table counts the readings that are the same crystal (StructureMatcher, no
scaling, volume per atom within 0.2%), another one, and refusals by reason.
"""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import click
from pymatgen.analysis.structure_matcher import StructureMatcher
from pymatgen.core import Structure
from pymatgen.io.cif import CifWriter

from flowllm.crystals.cells import make_structure
from flowllm.crystals.cif import parse_cif
from flowllm.crystals.crystal import ignore_missing_electronegativity
from flowllm.crystals.io import read
from flowllm.errors import InvalidCrystal

MATCHER = StructureMatcher(0.05, 0.1, 2, scale=False)


def without_operations(text: str) -> str:
    return re.sub(r"loop_\n _symmetry_equiv_pos_site_id\n.*\n(?:  \d+  '.*'\n)+", "", text)


def without_symbol(text: str) -> str:
    return re.sub("_symmetry_space_group_name_H-M.*\n", "", without_operations(text))


def without_multiplicities(text: str) -> str:
    text = text.replace(" _atom_site_symmetry_multiplicity\n", "")
    return re.sub(r"(?m)^(  \S+  \S+)  \d+( .*)$", r"\1\2", text)


def without_z(text: str) -> str:
    return re.sub("_cell_formula_units_Z.*\n", "", text)


def rounded(text: str, decimals: int) -> str:
    head, mark, sites = text.partition(" _atom_site_occupancy\n")
    return head + mark + re.sub(r"\d\.\d{8}", lambda m: f"{float(m[0]):.{decimals}f}", sites)


VARIANTS: dict[str, Callable[[str], str]] = {
    "operations": lambda text: text,
    "symbol": without_operations,
    "number": without_symbol,
    "symbol, 3 decimals": lambda text: rounded(without_operations(text), 3),
    "operations, 3 decimals, no multiplicities": lambda t: without_multiplicities(rounded(t, 3)),
    "operations, 2 decimals": lambda text: rounded(text, 2),
    "symbol, no Z, no multiplicities": lambda text: without_multiplicities(
        without_z(without_operations(text))
    ),
}


def verdict(text: str, structure: Structure) -> str:
    (found,) = parse_cif(text)
    if isinstance(found.source, InvalidCrystal):
        return f"refused ({found.source.reason})"
    back = make_structure(*found.source)
    volumes = [one.volume / len(one) for one in (back, structure)]
    if abs(volumes[0] / volumes[1] - 1) > 2e-3 or not MATCHER.fit(back, structure):
        return "another crystal"
    return "same, with a warning" if found.notes else "same"


@click.command()
@click.argument("crystals", type=click.Path(exists=True, path_type=Path))
@click.option("--step", default=40, show_default=True, help="Take every N-th crystal.")
def main(crystals: Path, step: int) -> None:
    """Print the table."""
    counts = {name: Counter[str]() for name in VARIANTS}
    seconds = 0.0
    for crystal in read(crystals)[::step]:
        with ignore_missing_electronegativity():
            text = str(CifWriter(crystal.structure, symprec=0.01))
        for name, change in VARIANTS.items():
            variant = change(text)
            start = time.process_time()
            parse_cif(variant)
            seconds += time.process_time() - start
            counts[name][verdict(variant, crystal.structure)] += 1
    for name, verdicts in counts.items():
        print(f"{name}: {', '.join(f'{count} {what}' for what, count in verdicts.most_common())}")
    total = sum(sum(verdicts.values()) for verdicts in counts.values())
    print(f"{1000 * seconds / total:.2f} ms of processor time a CIF")


if __name__ == "__main__":
    main()
