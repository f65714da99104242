"""Paths and crystals that tests share."""

from __future__ import annotations

from pathlib import Path

from pymatgen.core import Lattice, Structure

ROOT = Path(__file__).parents[1]
SHARED = ROOT.parent / "shared"
BUNDLED_PRIOR = ROOT / "flowllm" / "hub" / "bundled" / "prior"
BUNDLED_REFINER = ROOT / "flowllm" / "hub" / "bundled" / "refiner"
MP20_SAMPLE = ROOT / "tests" / "data" / "mp20_sample.parquet"  # 72 crystals, see its README
MP20 = SHARED / "data" / "mp20"  # the whole data set, where it is at hand

SALT = Structure.from_spacegroup(  # conventional cell, 8 atoms
    "Fm-3m", Lattice.cubic(5.69), ["Na", "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]]
)
CSCL = Structure(Lattice.cubic(4.12), ["Cs", "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]])
