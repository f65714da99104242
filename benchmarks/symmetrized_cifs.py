"""Share of crystals with a symmetrised CIF, what readers make of it, and the time it takes.

    python benchmarks/symmetrized_cifs.py CRYSTALS [--limit N]

Each CIF is read by pymatgen and by ASE. The distance to the crystal is that of the farthest atom
(StructureMatcher, primitive Niggli cells, no scaling) or the largest difference of a cell length.
Times are processor time of one thread.
"""

from __future__ import annotations

import io
import time
import warnings
from collections import Counter
from pathlib import Path

import ase.io
import click
import numpy as np
from pymatgen.analysis.structure_matcher import StructureMatcher
from pymatgen.core import Structure

from flowllm.crystals.cells import reduce_cell
from flowllm.crystals.cif import cif_text
from flowllm.crystals.crystal import to_structure
from flowllm.crystals.io import read
from flowllm.crystals.symmetrized_cif import EXACT, symmetrized_cif
from flowllm.crystals.symmetry import symmetry_of

MATCHER = StructureMatcher(0.01, 0.05, 1, primitive_cell=False, scale=False)


def distance(one: Structure, other: Structure) -> float:
    """The distance of two crystals in Angstrom; infinite if they do not match."""
    cells = [reduce_cell(s.get_primitive_structure(tolerance=1e-3)) for s in (one, other)]
    found = MATCHER.get_rms_dist(*cells) if len(cells[0]) == len(cells[1]) else None
    if found is None:
        return np.inf
    lengths = np.abs(np.subtract(cells[0].lattice.abc, cells[1].lattice.abc))
    return max(found[1] * (one.volume / len(one)) ** (1 / 3), lengths.max())


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--limit", type=int, help="Read the first so many crystals.")
def main(file: Path, limit: int | None) -> None:
    warnings.simplefilter("ignore")  # pymatgen's about coordinates such as 0.33333333
    counts: Counter[str] = Counter()
    seconds: Counter[str] = Counter()
    crystals = read(file, limit=limit)
    for crystal in crystals:
        structure = crystal.structure
        start = time.process_time()
        symmetry = symmetry_of(structure)
        searched = time.process_time()
        text = symmetrized_cif(structure, symmetry)
        written = time.process_time()
        plain = cif_text(structure)
        seconds["symmetry"] += searched - start
        seconds["symmetrised CIF"] += written - searched
        seconds["P1 CIF"] += time.process_time() - written
        form = "P1" if text == plain else "symmetrised"
        counts[form] += 1
        by_pymatgen = Structure.from_str(text, fmt="cif")
        by_ase = to_structure(ase.io.read(io.StringIO(text), format="cif"))
        for name, reading in (("pymatgen", by_pymatgen), ("ASE", by_ase)):
            if (gap := distance(structure, reading)) > EXACT:
                counts[f"{form} and over {EXACT:g} Angstrom by {name}"] += 1
                click.echo(f"{crystal.id} {form} {name} {gap:.2g} Angstrom")
    for name, count in counts.items():
        click.echo(f"{name}: {count} of {len(crystals)}")
    for name, spent in seconds.items():
        click.echo(f"{name}: {1000 * spent / len(crystals):.2f} ms per crystal")


if __name__ == "__main__":
    main()
