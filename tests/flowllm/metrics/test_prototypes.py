from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from pymatgen.core import Lattice, Structure

from flowllm.crystals.io import read
from flowllm.metrics.prototypes import Prototype, is_first, prototype
from support import CSCL, MP20_SAMPLE, SALT, perovskite, skewed

SALT_AS_CSCL = Structure(Lattice.cubic(3.5), ["Na", "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]])


def test_group_gene_and_free_parameters_equal_the_international_tables():
    # Free parameters: a; a; a; a c and z of O in rutile's 4f.
    rutile = Structure.from_spacegroup(
        "P4_2/mnm", Lattice.tetragonal(4.59, 2.96), ["Ti", "O"], [[0, 0, 0], [0.305, 0.305, 0]]
    )
    for structure, expected in (
        (SALT, Prototype(225, 1, "225 Na:a Cl:b")),
        (SALT_AS_CSCL, Prototype(221, 1, "221 Na:a Cl:b")),
        (perovskite(), Prototype(221, 1, "221 Sr:a Ti:b O:c")),
        (rutile, Prototype(136, 3, "136 Ti:a O:f")),
    ):
        assert prototype(structure) == expected
    none = prototype(skewed())  # 6 of the cell, 3 for each of 5 atoms, less the origin
    assert none is not None and (none.spacegroup, none.free_parameters) == (1, 6 + 15 - 3)


def test_both_origin_choices_have_one_gene():
    # Spinel in origin choice 1 of Fd-3m: Mg on 8a, Al on 16d; choice 2 has x - 1/8.
    spinel = Structure.from_spacegroup(
        "Fd-3m", Lattice.cubic(8.08), ["Mg", "Al", "O"], [[0] * 3, [5 / 8] * 3, [0.3874] * 3]
    )
    moved = spinel.copy()
    moved.translate_sites(range(len(moved)), [-1 / 8] * 3)
    found = prototype(spinel)
    assert found == Prototype(227, 2, "227 Mg:a Al:d O:e") and len(spinel) == 56
    assert prototype(moved) == found
    salt = SALT.copy()
    salt.translate_sites(range(len(salt)), [0.5] * 3)  # Na on b, Cl on a
    assert prototype(salt) == prototype(SALT)


@settings(max_examples=20, deadline=None)
@given(index=st.integers(0, 71), seed=st.integers(0, 2**32 - 1))
def test_the_gene_is_that_of_the_crystal_and_not_of_its_cell(index, seed):
    rng = np.random.default_rng(seed)
    structure = read(MP20_SAMPLE)[index].structure
    other = Structure(structure.lattice, structure.species, structure.frac_coords + rng.random(3))
    other = Structure.from_sites([other[i] for i in rng.permutation(len(other))])
    other.make_supercell([[1, 0, 0], [rng.integers(-1, 2), 1, 0], [0, 0, 1]])
    found = prototype(structure)
    assert found is not None and prototype(other) == found


def test_a_failed_search_is_no_prototype():
    piled = Structure(CSCL.lattice, ["Cs", "Cs"], [[0, 0, 0], [0, 0, 1e-4]])
    thin = Structure(Lattice([[30, 0, 0], [0, 30, 0], [0, 0, 2e-4]]), ["Xe"], [[0, 0, 0]])
    assert prototype(piled) is None and prototype(thin) is None


def test_the_first_crystal_of_a_gene_is_unique():
    assert is_first(["a", "b", "a", "a", "c", "b"]).tolist() == [1, 1, 0, 0, 1, 0]
    assert is_first([]).shape == (0,)
