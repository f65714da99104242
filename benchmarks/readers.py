"""Compare the crystals that FlowLLM, ASE and gemmi read from the same CIFs and POSCARs.

    python benchmarks/readers.py FOLDER...

Every CIF and POSCAR in the folders is read by all three (gemmi reads CIFs only). The table counts,
for each other reader, the data blocks where both give the same crystal, where FlowLLM refuses the
block (by reason), where the other one does, and where the crystals differ. Every case that is no
agreement is listed with what each reader says. Packages ship such files in their tests and data:

    pip download --no-deps pyxtal && unzip pyxtal-*.whl && python benchmarks/readers.py pyxtal
"""

from __future__ import annotations

import argparse
import io
import sys
import warnings
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ase.io
import ase.io.cif
import numpy as np
from ase import Atoms
from gemmi import cif, make_small_structure_from_block
from pymatgen.analysis.structure_matcher import StructureMatcher
from pymatgen.core import Element, Lattice, Structure

from flowllm.crystals.cells import make_structure
from flowllm.crystals.cif import parse_cif
from flowllm.crystals.crystal import Geometry
from flowllm.crystals.formats import Format, format_of
from flowllm.crystals.io import read_all
from flowllm.errors import InvalidCrystal

_CIFS = (".cif", ".mcif")


@dataclass
class Reading:
    """What one reader makes of a data block: a structure, or why there is none."""

    structure: Structure | None
    cause: str = ""

    def __str__(self) -> str:
        if self.structure is None:
            return self.cause
        return f"{self.structure.formula}, {self.structure.volume:.1f} A^3"


def main() -> None:
    """Print the table and all differences."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folders", nargs="+", type=Path)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    counts: dict[str, Counter[str]] = {"ASE": Counter(), "gemmi": Counter()}
    num_files = num_crystals = 0
    for path in sorted(path for folder in arguments.folders for path in folder.rglob("*")):
        if not path.is_file() or not _is_compared(path):
            continue
        num_files += 1
        for name, ours, others in _readings(path):
            num_crystals += 1
            for reader, theirs in others.items():
                verdict = _verdict(ours, theirs)
                counts[reader][verdict] += 1
                if verdict != "same crystal":
                    print(f"{path} {name}: {verdict}\n    FlowLLM: {ours}\n    {reader}: {theirs}")
    print(f"\n{num_files} files, {num_crystals} crystals")
    for reader, verdicts in counts.items():
        print(f"against {reader}:")
        for verdict, count in verdicts.most_common():
            print(f"  {count:4d} {verdict}")
    sys.stdout.flush()


def _is_compared(path: Path) -> bool:
    is_poscar = format_of(path.name) is Format.POSCAR and path.suffix != ".py"
    return is_poscar or path.suffix.lower() in _CIFS


def _readings(path: Path) -> list[tuple[str, Reading, dict[str, Reading]]]:
    """Return name, our reading and those of the other readers for each crystal of a file."""
    if path.suffix.lower() not in _CIFS:
        (row,) = read_all(path, reduce=False)
        assert not isinstance(row.source, str)
        return [(row.id, _ours(row.source), {"ASE": _by_ase(path, None)})]
    text = path.read_text(encoding="utf-8", errors="replace")
    return [
        (
            crystal.block,
            _ours(crystal.source),
            {"ASE": _by_ase(path, crystal.block), "gemmi": _by_gemmi(text, crystal.block)},
        )
        for crystal in parse_cif(text)
    ]


def _ours(source: Geometry | InvalidCrystal) -> Reading:
    if isinstance(source, InvalidCrystal):
        return Reading(None, f"refused, {source.reason}: {source.detail}")
    return Reading(make_structure(*source))


def _by_ase(path: Path, block: str | None) -> Reading:
    try:
        if block is None:
            return Reading(_of_atoms(ase.io.read(path, format="vasp")))
        blocks = ase.io.cif.parse_cif(str(path), reader="ase")
        (found,) = (one for one in blocks if one.name.lower() == block.lower())
        return Reading(_of_atoms(found.get_atoms()))
    except Exception as error:  # any reader may fail in any way
        return Reading(None, f"{type(error).__name__}: {error}")


def _of_atoms(atoms: Atoms) -> Structure:
    return Structure(
        Lattice(np.array(atoms.cell)),
        [Element.from_Z(int(number)) for number in atoms.numbers],
        atoms.get_scaled_positions(),
    )


def _by_gemmi(text: str, block: str) -> Reading:
    try:
        document = cif.read_string(text)
        small = make_small_structure_from_block(document.find_block(block) or document[0])
        small.setup_cell_images()
        sites: list[Any] = small.get_all_unit_cell_sites()
        structure = Structure(
            Lattice.from_parameters(*small.cell.parameters),
            [site.element.name for site in sites],
            [site.fract.tolist() for site in sites],
        )
        return Reading(structure)
    except Exception as error:  # any reader may fail in any way
        return Reading(None, f"{type(error).__name__}: {error}")


def _verdict(ours: Reading, theirs: Reading) -> str:
    if ours.structure is None:
        if theirs.structure is None:
            return "refused by both"
        return "refused here (" + ours.cause.split(":")[0].removeprefix("refused, ") + ")"
    if theirs.structure is None or not len(theirs.structure):
        return "refused there"
    one, other = (_plain(reading.structure) for reading in (ours, theirs) if reading.structure)
    if len(one) == len(other) and abs(one.volume / other.volume - 1) < 1e-3:
        matcher = StructureMatcher(0.02, 0.05, 1.0, scale=False)
        if one.composition == other.composition and matcher.fit(one, other):
            return "same crystal"
    return "another crystal"


def _plain(structure: Structure) -> Structure:
    """Return a structure with deuterium as hydrogen."""
    plain = structure.copy()
    plain.replace_species({"D": "H", "T": "H"}, in_place=True)
    return plain


if __name__ == "__main__":
    sys.stdout = io.TextIOWrapper(sys.stdout.buffer, encoding="utf-8", errors="backslashreplace")
    main()
