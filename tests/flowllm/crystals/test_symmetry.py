"""Tests of `flowllm.crystals.symmetry`: group, orbits, prototype."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from pymatgen.core import Lattice, Structure

import rfm
from flowllm.crystals.io import read
from flowllm.crystals.symmetry import OccupiedOrbit, gene_of, symmetry_of
from llm_prior.wyckoff import describe
from llm_prior.wyckoff.crystal import FREE_CELL, exact_symmetry
from rfm import Operations, find_symmetry
from support import CSCL, MP20_SAMPLE, SALT, perovskite, skewed

QUARTZ = Structure.from_spacegroup(  # left-handed
    "P3_121",
    Lattice.hexagonal(4.913, 5.405),
    ["Si", "O"],
    [[0.4697, 0, 1 / 3], [0.4133, 0.2672, 0.4522]],
)


def mirrored(structure: Structure) -> Structure:
    return Structure(structure.lattice, structure.species, -structure.frac_coords)


def test_group_and_orbits_of_known_crystals() -> None:
    salt = symmetry_of(SALT)
    assert salt is not None
    assert salt.spacegroup == 225
    assert salt.orbits == (OccupiedOrbit("Na", "a", 4), OccupiedOrbit("Cl", "b", 4))
    assert (salt.wyckoff, salt.gene, salt.num_free) == ("Na:a Cl:b", "225 Na:a Cl:b", 1)

    oxide = symmetry_of(perovskite())
    assert oxide is not None and oxide.gene == "221 Sr:a Ti:b O:c"
    quartz = symmetry_of(QUARTZ)
    assert quartz is not None and quartz.gene == "152 Si:a O:c"
    assert quartz.num_free == 6  # a c, x of Si, x y z of O


def test_a_crystal_without_symmetry_has_three_parameters_an_atom_and_three_more() -> None:
    found = symmetry_of(skewed())
    assert found is not None
    assert (found.spacegroup, found.wyckoff) == (1, "Li:a Fe:a P:a O:a O:a")
    assert found.num_free == 6 + 3 * 5 - 3


def test_the_gene_does_not_depend_on_cell_origin_order_or_hand() -> None:
    rng = np.random.default_rng(0)
    for crystal in read(MP20_SAMPLE):
        structure = crystal.structure
        moved = structure.copy()
        moved.translate_sites(range(len(moved)), rng.random(3))
        moved = Structure.from_sites([moved[i] for i in rng.permutation(len(moved))])
        moved.make_supercell([[1, 1, 0], [0, 1, 0], [0, 0, 1]])
        one, other = symmetry_of(structure), symmetry_of(mirrored(moved))
        assert one is not None and other is not None
        assert one.gene == other.gene, crystal.id


def test_mirror_images_have_their_own_group_and_the_same_gene() -> None:
    left, right = symmetry_of(QUARTZ), symmetry_of(mirrored(QUARTZ))
    assert left is not None and right is not None
    assert {left.spacegroup, right.spacegroup} == {152, 154}
    assert left.gene == right.gene


def test_a_failed_search_is_none() -> None:
    piled = Structure(CSCL.lattice, ["Cs", "Cs"], [[0, 0, 0], [0, 0, 1e-4]])
    assert symmetry_of(piled) is None


@pytest.mark.parametrize("symprec", [0.01, 0.3])
def test_the_tolerance_counts(symprec: float) -> None:
    bent = Structure(CSCL.lattice, CSCL.species, [[0, 0, 0], [0.5, 0.5, 0.52]])  # by 0.08 Angstrom
    found = symmetry_of(bent, symprec)
    assert found is not None and found.spacegroup == (221 if symprec > 0.1 else 99)


def test_exact_crystals_are_analysed_as_spglib_does(monkeypatch: pytest.MonkeyPatch) -> None:
    """moyo answers for exactly symmetric crystals, spglib for all others."""
    crystals = read(MP20_SAMPLE)
    rough = [c.structure.copy() for c in crystals[:10]]
    for structure in rough:
        structure.perturb(0.04)
    structures = [*(c.structure for c in crystals), *rough]
    answered = []

    def watched(structure: Structure, symprec: float) -> Any:
        answered.append(exact_symmetry(structure, symprec))
        return answered[-1]

    monkeypatch.setattr("llm_prior.wyckoff.analysis.exact_symmetry", watched)
    fast = [symmetry_of(structure) for structure in structures]
    monkeypatch.setattr("llm_prior.wyckoff.analysis.exact_symmetry", lambda *_: None)
    slow = [symmetry_of(structure) for structure in structures]
    for ours, theirs in zip(fast, slow, strict=True):
        assert (ours is None) == (theirs is None)
        if ours is not None and theirs is not None:
            assert (ours.gene, ours.wyckoff) == (theirs.gene, theirs.wyckoff)
            assert np.allclose(ours.crystal.cell, theirs.crystal.cell, atol=2e-3)
    count = sum(a is not None for a in answered)
    assert 0.7 * len(crystals) < count < len(structures)


def test_a_description_has_the_gene_and_the_operations_of_its_crystal() -> None:
    """One crystal for each group of the sample, of all families."""
    crystals = {}
    for crystal in read(MP20_SAMPLE):
        described = describe(crystal.structure)
        crystals.setdefault(described.spacegroup, described)
    assert {crystal.group.family for crystal in crystals.values()} == set(FREE_CELL)
    for crystal in crystals.values():
        structure = crystal.primitive()
        found = symmetry_of(structure)
        assert found is not None and gene_of(crystal) == found.gene
        searched = find_symmetry(structure, 0.01)
        known = Operations(*crystal.primitive_operations())
        given = rfm.Symmetry.of(structure, known, tolerance=1e-6)
        assert searched is not None and given.holds(structure, 1e-6)
        assert sorted(given.rotations.reshape(-1, 9).tolist()) == sorted(
            searched.rotations.reshape(-1, 9).tolist()
        )


@pytest.mark.parametrize(("shift", "exact"), [(5e-4, True), (5e-3, False)])
def test_a_crystal_is_exact_within_a_hundredth_of_the_tolerance(shift: float, exact: bool) -> None:
    structure = perovskite()
    structure.translate_sites([1], [shift, 0, 0], frac_coords=False)
    assert (exact_symmetry(structure, 0.1) is not None) == exact
    stretched = Structure(
        Lattice.tetragonal(3.905, 3.905 + 1.5 * shift), structure.species, perovskite().frac_coords
    )
    assert (exact_symmetry(stretched, 0.1) is not None) == exact
