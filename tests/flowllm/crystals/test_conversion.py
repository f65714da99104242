"""Conversion from and to pymatgen and ASE."""

from __future__ import annotations

import numpy as np
import pytest
from ase import Atoms
from pymatgen.core import DummySpecies, Lattice, Structure

from flowllm.crystals.io import to_atoms, to_structure
from flowllm.errors import InvalidCrystal, UserError
from support import disordered, same, skewed

SUFFIXES = [".csv", ".parquet", ".extxyz", ".xyz", ".json", ".jsonl"]


def test_structures_of_both_libraries_come_in():
    charged = Structure(
        Lattice.cubic(4), ["Cl-", "Na+"], [[0, 0, 0], [0.5] * 3], site_properties={"m": [1, 2]}
    )
    expected = Structure(Lattice.cubic(4), ["Cl", "Na"], [[0, 0, 0], [0.5] * 3])
    assert to_structure(charged) == expected
    assert to_structure(charged).site_properties == {}
    assert to_structure(to_atoms(charged)) == expected
    assert to_atoms(charged).pbc.all()
    assert same(to_structure(to_atoms(skewed())), skewed(), atol=1e-12)


@pytest.mark.parametrize(
    ("crystal", "reason"),
    [
        (disordered(), "disorder"),
        (Structure(Lattice.cubic(4), [DummySpecies("Xx")], [[0, 0, 0]]), "unknown_element"),
        (Structure(np.zeros((3, 3)), ["Na"], [[0, 0, 0]]), "bad_cell"),
        (Structure(Lattice.cubic(4), ["Na"], [[0, 0, np.nan]]), "bad_cell"),
        (Structure(Lattice.cubic(4), [], []), "unreadable"),
        (Atoms("X", cell=[3, 3, 3], pbc=True), "unknown_element"),
        (Atoms("Na", cell=[3, 3, 3]), "not_periodic"),
        (Atoms("Na", pbc=True), "bad_cell"),
        (Atoms(cell=[3, 3, 3], pbc=True), "unreadable"),
    ],
)
def test_structures_that_are_refused(crystal, reason):
    with pytest.raises(InvalidCrystal) as error:
        to_structure(crystal)
    assert error.value.reason == reason


def test_other_objects_are_refused():
    with pytest.raises(UserError, match="pymatgen Structure or ASE Atoms, not str"):
        to_structure("NaCl")
