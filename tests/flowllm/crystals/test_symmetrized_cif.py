"""Tests of `flowllm.crystals.symmetrized_cif`: the text, and what readers make of it."""

from __future__ import annotations

import io
import re

import ase.io
import numpy as np
import pytest
from pymatgen.analysis.structure_matcher import StructureMatcher
from pymatgen.core import Lattice, Structure
from pymatgen.io.cif import CifWriter

from flowllm.crystals.cells import reduce_cell
from flowllm.crystals.cif import cif_text
from flowllm.crystals.cif.blocks_text import block_text, loop_text
from flowllm.crystals.crystal import ignore_missing_electronegativity, to_structure
from flowllm.crystals.io import read
from flowllm.crystals.symmetrized_cif import EXACT, symmetrized_cif
from flowllm.crystals.symmetry import symmetry_of
from llm_prior.wyckoff.crystal import Orbit, WyckoffCrystal
from llm_prior.wyckoff.table import space_group
from support import CSCL, MP20_SAMPLE, SALT, skewed

# pymatgen says so of coordinates such as 0.33333333.
pytestmark = pytest.mark.filterwarnings("ignore:Issues encountered .* rounded to ideal values")

SALT_CIF = """\
data_NaCl
_chemical_formula_structural   NaCl
_chemical_formula_sum   'Na4 Cl4'
_cell_length_a   5.69000000
_cell_length_b   5.69000000
_cell_length_c   5.69000000
_cell_angle_alpha   90.00000000
_cell_angle_beta   90.00000000
_cell_angle_gamma   90.00000000
_cell_volume   184.22000900
_cell_formula_units_Z   4
_space_group_name_H-M_alt   'F m -3 m'
_space_group_IT_number   225
loop_
 _space_group_symop_id
 _space_group_symop_operation_xyz
  1  'x, y, z'
"""
SALT_SITES = """\
loop_
 _atom_site_type_symbol
 _atom_site_label
 _atom_site_symmetry_multiplicity
 _atom_site_Wyckoff_symbol
 _atom_site_fract_x
 _atom_site_fract_y
 _atom_site_fract_z
 _atom_site_occupancy
  Na  Na1  4  a  0.00000000  0.00000000  0.00000000  1.0
  Cl  Cl2  4  b  0.50000000  0.50000000  0.50000000  1.0
"""


def distance(one: Structure, other: Structure) -> float:
    """The largest distance of an atom or difference of a length between two crystals, Angstrom."""
    cells = [reduce_cell(s.get_primitive_structure(tolerance=1e-3)) for s in (one, other)]
    assert cells[0].composition == cells[1].composition
    matcher = StructureMatcher(0.01, 0.05, 1, primitive_cell=False, scale=False)
    found = matcher.get_rms_dist(*cells)
    assert found is not None
    lengths = np.abs(np.subtract(cells[0].lattice.abc, cells[1].lattice.abc))
    return max(found[1] * (one.volume / len(one)) ** (1 / 3), lengths.max())


def readings(text: str, folder) -> list[Structure]:
    """What pymatgen, ASE and `read` make of a CIF."""
    (folder / "x.cif").write_text(text)
    atoms = ase.io.read(io.StringIO(text), format="cif")
    (crystal,) = read(folder / "x.cif", reduce=False)
    return [Structure.from_str(text, fmt="cif"), to_structure(atoms), crystal.structure]


def written_group(text: str) -> int:
    return int(re.search(r"(?:IT_number|Tables_number) +(\d+)", text)[1])


def test_the_text_has_group_operations_letters_and_one_site_of_each_orbit() -> None:
    text = symmetrized_cif(SALT)
    assert text.startswith("# symmetry within 0.0001 Angstrom by spglib ")
    assert SALT_CIF in text
    assert text.endswith(SALT_SITES)
    operations = re.findall(r"^ +\d+ +'(.*)'$", text, re.MULTILINE)
    assert len(set(operations)) == 192


def test_every_reader_gets_the_crystals_of_the_sample_back(tmp_path) -> None:
    groups = set()
    for crystal in read(MP20_SAMPLE):
        text = symmetrized_cif(crystal.structure)
        for reading in readings(text, tmp_path):
            assert distance(crystal.structure, reading) <= EXACT, crystal.id
        found = symmetry_of(reading, EXACT)
        assert found is not None and written_group(text) == found.spacegroup, crystal.id
        groups.add(found.spacegroup)
    assert {space_group(number).family for number in groups} == {
        *("triclinic", "monoclinic", "orthorhombic", "tetragonal", "hexagonal", "cubic")
    }


@pytest.mark.parametrize("number", range(2, 231))
def test_every_group_comes_back(number: int, tmp_path) -> None:
    """A general orbit has exactly the group; letters, origin choice and axes are its own."""
    cells = {"triclinic": (11, 12, 13, 83, 97, 102), "monoclinic": (11, 12, 13, 97)}
    cells |= {"orthorhombic": (11, 12, 13), "tetragonal": (14, 16), "hexagonal": (14, 16)}
    group = space_group(number)
    letter = group.positions[-1].letter
    crystal = WyckoffCrystal(
        spacegroup=number,
        orbits=(
            Orbit(element="Na", letter=letter, coords=(0.07, 0.16, 0.29)),
            Orbit(element="Cl", letter=letter, coords=(0.21, 0.04, 0.12)),
        ),
        cell=cells.get(group.family, (20,)),
    )
    structure = crystal.primitive()
    text = symmetrized_cif(structure)
    assert written_group(text) == number
    for reading in readings(text, tmp_path):
        found = symmetry_of(reading, 1e-3)
        assert found is not None and found.spacegroup == number
        assert found.wyckoff == f"Na:{letter} Cl:{letter}"
        assert reading.volume * len(structure) == pytest.approx(structure.volume * len(reading))


def test_the_group_is_the_one_that_the_crystal_has_exactly() -> None:
    bent = Structure(CSCL.lattice, CSCL.species, [[0, 0, 0], [0.5, 0.5, 0.51]])  # by 0.04 Angstrom
    assert symmetry_of(bent).spacegroup == 221
    for known in (None, symmetry_of(bent)):
        text = symmetrized_cif(bent, known)
        assert written_group(text) == 99
        assert distance(bent, Structure.from_str(text, fmt="cif")) <= EXACT


@pytest.mark.parametrize(
    "structure",
    [
        skewed(),
        Structure(Lattice.cubic(4), ["Na", "Cl"], [[0, 0, 0], [0, 0, 0.01]]),
        Structure(Lattice.cubic(4), ["Na", "Na"], [[0, 0, 0], [0, 0, 1e-5]]),
        # pymatgen reads x as 1/3, which is 0.0003 Angstrom away.
        Structure(Lattice.cubic(12), ["Na", "Cl"], [[0, 0, 0], [1 / 3 + 2.5e-5, 0.0, 0.0]]),
    ],
    ids=["no symmetry", "too close", "no search", "near a third"],
)
def test_other_crystals_have_the_plain_cif(structure: Structure) -> None:
    assert symmetrized_cif(structure) == cif_text(structure)


def test_plain_cifs_are_those_of_pymatgen() -> None:
    for crystal in read(MP20_SAMPLE):
        with ignore_missing_electronegativity():
            assert cif_text(crystal.structure) == str(CifWriter(crystal.structure))
    labelled = SALT.copy()
    labelled[0].label = "Na_first"
    assert cif_text(labelled) == str(CifWriter(labelled))


def test_a_text_with_a_long_line_is_divided() -> None:
    assert loop_text({"_key": ["x" * 80]}) is None
    assert block_text("name", {"_key": "x" * 80}, []) is None
    assert block_text("name", {"_key": 1}, [None]) is None
    assert block_text("name", {"_key": "a b"}, [loop_text({"_k": [1, 2]})]) == (
        "data_name\n_key   'a b'\nloop_\n _k\n  1\n  2\n"
    )
