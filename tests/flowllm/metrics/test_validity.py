"""Each rule of validity on a crystal made for it."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pymatgen.core import Composition, IStructure, Lattice, Structure

from flowllm.errors import UserError
from flowllm.metrics.validity import (
    OXIDATION_STATE_SETS,
    compositional_validity,
    structural_validity,
)

smact = pytest.importorskip("smact", reason="smact is not installed")
screening = pytest.importorskip("smact.screening", reason="smact is not installed")
NONMETALS = list(Composition("HBCNOFSiPSClAsSeBrTeIXe").as_dict())


def pair(distance: float, cell: float = 4.0) -> Structure:
    return Structure(
        Lattice.cubic(cell), ["Na", "Cl"], [[0, 0, 0.9], [0, 0, 0.9 + distance / cell]]
    )


@pytest.mark.parametrize(("distance", "valid"), [(0.499, False), (0.501, True)])
def test_atoms_closer_than_half_an_angstrom_are_invalid_also_across_the_boundary(distance, valid):
    assert structural_validity(pair(distance)) is valid
    assert structural_validity(pair(distance), own_images=False) is valid


@pytest.mark.parametrize(("distance", "valid"), [(0.49, False), (0.51, True)])
def test_a_large_crystal_is_judged_without_a_matrix_of_all_distances(distance, valid, monkeypatch):
    monkeypatch.delattr(IStructure, "distance_matrix")
    crystal = pair(2.0).make_supercell((8, 6, 6), in_place=False)  # 576 atoms
    assert structural_validity(crystal) and structural_validity(crystal, own_images=False)
    corner = crystal[0].coords + [0, 0, distance]
    crystal.append("Na", corner, coords_are_cartesian=True)
    assert structural_validity(crystal) is valid


def test_an_atom_on_its_own_image_is_invalid_unless_images_are_ignored():
    thin = Structure(Lattice.orthorhombic(0.4, 5, 5), ["Fe"], [[0, 0, 0]])
    assert not structural_validity(thin)
    assert structural_validity(thin, own_images=False)
    skewed = Structure(Lattice([[5, 0, 0], [4.8, 0.3, 0], [0, 0, 5]]), ["Fe"], [[0, 0, 0]])
    assert not structural_validity(skewed)  # |b - a| = 0.36: the cell's own lengths do not show it


def test_a_cell_without_volume_is_invalid():
    flat = Structure(Lattice.orthorhombic(0.6, 0.6, 0.27), ["H"], [[0, 0, 0]])
    assert flat.volume < 0.1
    assert not structural_validity(flat, own_images=False)


@settings(max_examples=25)
@given(seed=st.integers(0, 10_000))
def test_structural_validity_does_not_depend_on_the_cell(seed):
    rng = np.random.default_rng(seed)
    structure = Structure(
        Lattice.from_parameters(*rng.uniform(1, 4, 3), *rng.uniform(70, 110, 3)),
        ["C"] * 3,
        rng.random((3, 3)),
    )
    moved = structure.copy()
    moved.translate_sites(range(3), rng.random(3))
    other = moved.make_supercell([[1, 1, 0], [0, 1, 1], [0, 0, 1]], in_place=False)
    assert structural_validity(other) is structural_validity(structure)


@pytest.mark.parametrize(
    ("formula", "valid"),
    [
        ("NaCl", True),
        ("Na2Cl", False),  # no charges balance
        ("Cl2", True),  # a single element
        ("CuNi", True),  # metals alone
        ("HeO", False),  # no oxidation state in this table
        ("XeF4", True),
        ("He", True),
        ("RfO2", False),  # no data at all
        ("SrTiO3", True),
        ("Na8Cl8", True),
        ("PmCl3", False),  # SMACT has no electronegativity of promethium
        ("NF3", True),
        ("IBr", True),
        ("FeO100000", False),
    ],
)
def test_charges_must_balance(formula, valid):
    assert compositional_validity(Composition(formula)) is valid


@pytest.mark.parametrize("table", OXIDATION_STATE_SETS)
def test_compositional_validity_equals_smact(table):
    generator = random.Random(0)
    symbols = list(smact.element_dictionary())
    found = []
    while len(found) < 150:
        chosen = generator.sample(symbols, generator.randint(1, 4))
        chosen += generator.sample(NONMETALS, generator.randint(0, 2))
        states = [getattr(smact.Element(s), OXIDATION_STATE_SETS[table]) or [] for s in chosen]
        if math.prod(map(len, states)) > 500:
            continue  # SMACT tries them all
        composition = Composition({symbol: generator.randint(1, 6) for symbol in chosen})
        theirs = screening.smact_validity(composition, oxidation_states_set=table)
        found.append(theirs)
        assert compositional_validity(composition, oxidation_states_set=table) is theirs, chosen
    assert 10 < sum(found) < 140


def test_twenty_elements_of_many_states_take_no_time():
    # SMACT would try 1e17 choices of oxidation states.
    many = "MnFeCoCrVTiOSNClBrIRuOsReWMoNbPAs"
    assert compositional_validity(Composition(many))
    assert not compositional_validity(Composition(f"{many}Rb500"))


def test_another_table_of_oxidation_states_can_be_chosen():
    assert compositional_validity(Composition("NaCl"), oxidation_states_set="icsd24")
    with pytest.raises(UserError, match="smact99.*known are smact14"):
        compositional_validity(Composition("NaCl"), oxidation_states_set="smact99")
