from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from pymatgen.core import Lattice, Structure
from pymatgen.core.structure_matcher import StructureMatcher

from flowllm.metrics.uniqueness import Tolerances, duplicates, matches
from support import SALT

# Salt in the structure of CsCl.
CSCL = Structure(Lattice.cubic(3.5), ["Na", "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]])
KCL = SALT.copy()
KCL.replace_species({"Na": "K"})


def test_a_primitive_cell_and_a_larger_lattice_are_the_same_crystal():
    swollen = SALT.get_primitive_structure()
    swollen.scale_lattice(swollen.volume * 1.3)
    assert duplicates([SALT, CSCL, swollen, KCL, CSCL]) == [None, None, 0, None, 1]
    assert matches([KCL, swollen], [CSCL, SALT]) == [None, 1]


def test_twenty_copies_are_one_crystal_and_empty_sets_have_none():
    assert duplicates([SALT] * 20) == [None] + [0] * 19
    assert duplicates([]) == [] and matches([], [SALT]) == [] and matches([SALT], []) == [None]


def test_single_atoms_and_irreducible_cells_are_compared():
    atom = Structure(Lattice.cubic(3), ["Xe"], [[0, 0, 0]])
    thin = Structure(Lattice([[30, 0, 0], [0, 30, 0], [0, 0, 2e-4]]), ["Xe"], [[0, 0, 0]])
    assert duplicates([atom, thin, atom]) == [None, None, 0]


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 1000))
def test_buckets_lose_no_match(seed):
    rng = np.random.default_rng(seed)
    crystals = []
    for _ in range(6):
        structure = SALT.get_primitive_structure() if rng.random() < 0.5 else CSCL.copy()
        structure.perturb(float(rng.uniform(0, 0.9)), seed=int(rng.integers(1000)))
        if rng.random() < 0.3:
            structure.make_supercell([1, 1, 2])
        crystals.append(structure)
    matcher = StructureMatcher()
    groups: list[int] = []
    expected: list[int | None] = []
    for i, structure in enumerate(crystals):
        first = next((g for g in groups if matcher.fit(crystals[g], structure)), None)
        expected.append(first)
        if first is None:
            groups.append(i)
    assert duplicates(crystals) == expected


def test_tolerances_reach_the_matcher():
    moved = CSCL.copy()
    moved.translate_sites([0], [0.12, 0, 0])
    assert matches([moved], [CSCL]) == [0]
    assert matches([moved], [CSCL], tolerances=Tolerances(stol=0.02)) == [None]
