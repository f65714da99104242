"""Paths and functions that tests share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from click.testing import CliRunner, Result
from pymatgen.core import Lattice, Structure
from pymatgen.io.cif import CifWriter

ROOT = Path(__file__).parents[1]
SHARED = ROOT.parent / "shared"
BUNDLED_PRIOR = ROOT / "flowllm" / "hub" / "bundled" / "sites" / "prior"
BUNDLED_REFINER = ROOT / "flowllm" / "hub" / "bundled" / "sites" / "refiner"
MP20_SAMPLE = ROOT / "tests" / "data" / "mp20_sample.parquet"  # 72 crystals, see its README
MP20 = SHARED / "data" / "mp20"  # the whole data set, where it is at hand

SALT = Structure.from_spacegroup(  # conventional cell, 8 atoms
    "Fm-3m", Lattice.cubic(5.69), ["Na", "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]]
)
CSCL = Structure(Lattice.cubic(4.12), ["Cs", "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]])


class Runs:
    """Leaves a file when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.mark,)


def run_command(*arguments: object) -> Result:
    """Run a `flowllm` command in this process."""
    from flowllm.cli import cli

    return CliRunner().invoke(cli, [str(a) for a in arguments], prog_name="flowllm")


def perovskite(a: float = 3.905) -> Structure:
    return Structure(
        Lattice.cubic(a),
        ["Sr", "Ti", "O", "O", "O"],
        [[0, 0, 0], [0.5, 0.5, 0.5], [0.5, 0.5, 0], [0.5, 0, 0.5], [0, 0.5, 0.5]],
    )


def skewed() -> Structure:
    """A reduced cell (so that reading leaves it alone) without any symmetry."""
    return Structure(
        Lattice.from_parameters(3.1, 4.2, 5.3, 85, 80, 75),
        ["Li", "Fe", "P", "O", "O"],
        np.random.default_rng(0).random((5, 3)),
    )


def disordered() -> Structure:
    return Structure(Lattice.cubic(4), [{"Na": 0.5, "K": 0.5}], [[0, 0, 0]])


def same(one: Structure, other: Structure, atol: float) -> bool:
    """The same species in the same order, the same cell, the same positions modulo 1."""
    difference = one.frac_coords - other.frac_coords
    return (
        one.species == other.species
        and np.allclose(one.lattice.parameters, other.lattice.parameters, atol=atol)
        and np.allclose(difference, np.round(difference), atol=atol)
    )


def same_bits(one: Structure | None, other: Structure | None) -> bool:
    """The same species, cell and coordinates to the last bit; None equals None."""
    if one is None or other is None:
        return one is other
    return (
        one.species == other.species
        and one.lattice.matrix.tobytes() == other.lattice.matrix.tobytes()
        and one.frac_coords.tobytes() == other.frac_coords.tobytes()
    )


def snapshot(folder: Path) -> dict[str, tuple[bytes, int]]:
    """The content and the time of change of every file in a folder by its relative path."""
    return {
        str(path.relative_to(folder)): (path.read_bytes(), path.stat().st_mtime_ns)
        for path in folder.rglob("*")
        if path.is_file()
    }


def cif(structure: Structure) -> str:
    return str(CifWriter(structure))


def table(path: Path, rows: list[dict[str, Any]]) -> Path:
    frame = pd.DataFrame(rows)
    if path.suffix == ".csv":
        frame.to_csv(path, index=False)
    else:
        frame.to_parquet(path)
    return path


SYMMETRIC_CIF = """data_NaCl
_symmetry_space_group_name_H-M 'P m -3 m'
_cell_length_a 5.64
_cell_length_b 5.64
_cell_length_c 5.64
_cell_angle_alpha 90
_cell_angle_beta 90
_cell_angle_gamma 90
_chemical_formula_sum 'Cs1 Cl1'
loop_
 _symmetry_equiv_pos_as_xyz
 'x, y, z'
 '-x, -y, -z'
loop_
 _atom_site_type_symbol
 _atom_site_label
 _atom_site_fract_x
 _atom_site_fract_y
 _atom_site_fract_z
 _atom_site_occupancy
  Cs Cs1 0.0 0.0 0.0 1
  Cl Cl1 0.5 0.5 0.5 1
"""
