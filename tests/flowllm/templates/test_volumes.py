"""Volumes that templates suggest for crystals."""

from __future__ import annotations

import pytest
from pymatgen.core import Lattice, Structure

from flowllm.crystals.io import read
from flowllm.templates.volumes import template_volume, with_template_volume
from llm_prior.wyckoff import describe
from support import MP20_SAMPLE

# Group, species and coordinates, and its volume at the minimum of
# the energy by PBE, as Materials Project has it (Angstrom^3)
KNOWN = [
    ("Fm-3m", ["K", "Cl"], [[0, 0, 0], [0.5] * 3], 65.1),
    ("F-43m", ["Ga", "As"], [[0, 0, 0], [0.25] * 3], 47.5),
]


def cesium_iodide(length: float) -> Structure:
    return Structure.from_spacegroup(
        "Pm-3m", Lattice.cubic(length), ["Cs", "I"], [[0, 0, 0], [0.5, 0.5, 0.5]]
    )


@pytest.mark.parametrize("size", [3.0, 5.0, 9.0])
@pytest.mark.parametrize(("group", "species", "coords", "volume"), KNOWN)
def test_the_volume_does_not_depend_on_that_of_the_crystal(group, species, coords, volume, size):
    crystal = Structure.from_spacegroup(
        group, Lattice.cubic(size), species, coords
    ).get_primitive_structure()
    assert template_volume(crystal, exclude_formula=True) == pytest.approx(volume, rel=0.08)


def test_polymorphs_have_volumes_of_their_own():
    rock_salt = Structure.from_spacegroup(
        "Fm-3m", Lattice.cubic(5.0), ["Zn", "S"], [[0, 0, 0], [0.5] * 3]
    )
    blende = Structure.from_spacegroup(
        "F-43m", Lattice.cubic(5.0), ["Zn", "S"], [[0, 0, 0], [0.25] * 3]
    )
    dense, open_ = template_volume(rock_salt), template_volume(blende)
    assert dense is not None and open_ is not None
    assert dense < 0.9 * open_


def test_a_supercell_has_the_volume_of_its_cells():
    crystal = Structure.from_spacegroup(
        "Pm-3m", Lattice.cubic(4.0), ["Cs", "I"], [[0] * 3, [0.5] * 3]
    )
    alone = template_volume(crystal)
    assert alone is not None
    assert template_volume(crystal.make_supercell([2, 1, 1], in_place=False)) == pytest.approx(
        2 * alone
    )


def test_a_crystal_without_templates_stays_as_it_is():
    alloy = Structure(
        Lattice.cubic(9.0),
        ["H"] * 7 + ["Xe"] * 11,
        [[k / 18, (5 * k % 18) / 18, (7 * k % 18) / 18] for k in range(18)],
    )
    assert template_volume(alloy) is None
    assert with_template_volume(alloy) is alloy


def test_scaling_keeps_coordinates_and_the_given_crystal():
    crystal = Structure.from_spacegroup(
        "Pm-3m", Lattice.cubic(9.0), ["Cs", "I"], [[0] * 3, [0.5] * 3]
    )
    scaled = with_template_volume(crystal)
    assert crystal.lattice.a == 9.0
    assert scaled.lattice.a < 5.5
    assert (scaled.frac_coords == crystal.frac_coords).all()


def test_a_known_description_changes_no_volume() -> None:
    for crystal in read(MP20_SAMPLE):
        described = describe(crystal.structure)
        structure = described.primitive()
        assert template_volume(structure, crystal=described) == template_volume(structure)


def test_a_description_of_a_lower_group_is_not_believed() -> None:
    """The bases of the flow were scaled by the group that is found at 0.1 Angstrom."""
    shifted = Structure(
        Lattice.tetragonal(3.9, 3.92),
        ["Sr", "Ti", "O", "O", "O"],
        [[0, 0, 0], [0.5, 0.5, 0.508], [0.5, 0.5, 0], [0.5, 0, 0.5], [0, 0.5, 0.5]],
    )
    described = describe(shifted, 0.01)
    assert described.spacegroup == 99
    structure = described.primitive()
    assert template_volume(structure, crystal=described) == template_volume(structure)
