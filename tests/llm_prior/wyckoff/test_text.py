"""Crystals written as group, orbits and free parameters, and read again."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pymatgen.analysis.structure_matcher import StructureMatcher
from pymatgen.core import Lattice, Structure

from llm_prior.errors import PriorError
from llm_prior.text import ParseError
from llm_prior.wyckoff import (
    Orbit,
    WyckoffCrystal,
    WyckoffFormat,
    WyckoffReject,
    actual_group,
    decode,
    describe,
    describe_anew,
    encode,
    space_group,
    to_text,
)
from llm_prior.wyckoff.crystal import FREE_CELL
from llm_prior.wyckoff.orbits import lies_special
from llm_prior.wyckoff.supergroups import keeps_group

FMT = WyckoffFormat()
ROCK_SALT = "225\nNa a\nCl b\n5.6"
RUTILE = "136\nTi a\nO f\n4.6 3.0\n0.31"


def rock_salt() -> Structure:
    return Structure.from_spacegroup(
        "Fm-3m", Lattice.cubic(5.6), ["Na", "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]]
    )


def test_rock_salt_is_four_lines():
    assert encode(rock_salt(), FMT) == ROCK_SALT


def test_rutile_has_one_free_coordinate():
    # Baur 1956: a = 4.594, c = 2.958, u = 0.305 Angstrom.
    rutile = Structure.from_spacegroup(
        "P4_2/mnm",
        Lattice.tetragonal(4.594, 2.958),
        ["Ti", "O"],
        [[0, 0, 0], [0.305, 0.305, 0]],
    )
    assert encode(rutile, WyckoffFormat(length_decimals=3, coord_bins=1000)) == (
        "136\nTi a\nO f\n4.594 2.958\n0.305"
    )


def test_the_polar_coordinate_of_the_first_orbit_is_not_written():
    wurtzite = Structure.from_spacegroup(
        "P6_3mc",
        Lattice.hexagonal(3.82, 6.26),
        ["Zn", "S"],
        [[1 / 3, 2 / 3, 0.2], [1 / 3, 2 / 3, 0.2 + 0.375]],
    )
    text = encode(wurtzite, WyckoffFormat(length_decimals=2, coord_bins=1000))
    group, zn, s, cell, z = text.split("\n")
    assert (group, zn, s, cell) == ("186", "Zn b", "S b", "3.82 6.26")
    assert float(z) == pytest.approx(0.375)  # or its mirror image 0.625, which is not smaller


def test_decoding_gives_primitive_and_conventional_cell():
    crystal = decode(ROCK_SALT, FMT)
    assert (len(crystal.primitive()), len(crystal.conventional())) == (2, 8)
    assert crystal.num_atoms == 2
    assert crystal.composition == {"Na": 1, "Cl": 1}
    assert crystal.site_orbits().tolist() == [0, 1]
    assert crystal.site_orbits(conventional=True).tolist() == [0] * 4 + [1] * 4
    assert crystal.conventional().lattice.abc == pytest.approx((5.6, 5.6, 5.6))
    assert crystal.primitive().volume == pytest.approx(5.6**3 / 4)


def test_the_primitive_cell_is_reduced_and_right_handed(mp20_structures):
    for structure in mp20_structures:
        lattice = decode(encode(structure, FMT), FMT).primitive().lattice
        matrix = lattice.matrix
        assert np.linalg.det(matrix) > 0
        assert np.abs(np.triu(matrix, 1)).max() < 1e-9
        a, b, c = lattice.abc
        assert a <= b + 1e-3 and b <= c + 1e-3


def test_real_crystals_come_back(mp20_structures):
    matcher = StructureMatcher()
    for structure in mp20_structures:
        crystal = decode(encode(structure, FMT), FMT)
        assert matcher.fit(crystal.primitive(), structure)
        assert actual_group(crystal) == crystal.spacegroup


def test_sites_belong_to_the_orbits_that_are_named(mp20_structures):
    for structure in mp20_structures:
        crystal = decode(encode(structure, FMT), FMT)
        for conventional in (False, True):
            made = crystal.conventional() if conventional else crystal.primitive()
            orbits = crystal.site_orbits(conventional=conventional)
            assert len(orbits) == len(made)
            elements = [crystal.orbits[o].element for o in orbits]
            assert [site.specie.symbol for site in made] == elements


def test_augmented_texts_are_the_same_crystal_and_differ(mp20_structures):
    matcher = StructureMatcher()
    rng = np.random.default_rng(0)
    different = 0
    for structure in mp20_structures:
        text = encode(structure, FMT)
        augmented = encode(structure, FMT, rng)
        different += text != augmented
        crystal = decode(augmented, FMT)
        assert crystal.composition == decode(text, FMT).composition
        assert actual_group(crystal) == crystal.spacegroup
        assert matcher.fit(crystal.primitive(), structure)
    assert different > len(mp20_structures) / 3


def test_the_canonical_text_does_not_depend_on_the_cell_the_origin_or_the_order(mp20_structures):
    rng = np.random.default_rng(0)
    fine = WyckoffFormat(coord_bins=1000, length_decimals=2, symprec=0.01)
    same = 0
    for structure in mp20_structures:
        exact = decode(encode(structure, fine), fine).primitive()
        order = rng.permutation(len(exact))
        moved = Structure(
            exact.lattice,
            [exact.species[i] for i in order],
            exact.frac_coords[order] + rng.random(3),
        )
        moved.make_supercell([[1, 1, 0], [0, 1, 0], [0, -1, 1]], to_unit_cell=False)
        same += encode(moved, fine) == encode(exact, fine)
    # The rest have two descriptions that only rounding tells apart.
    assert same >= 0.9 * len(mp20_structures)


def test_mirror_images_have_one_text_unless_the_hand_is_kept():
    quartz = Structure.from_spacegroup(
        "P3_221",
        Lattice.hexagonal(4.913, 5.405),
        ["Si", "O"],
        [[0.4697, 0, 0], [0.4135, 0.2669, 0.1191]],
    )
    other = Structure(quartz.lattice, quartz.species, -quartz.frac_coords)
    texts = {encode(structure, FMT) for structure in (quartz, other)}
    assert len(texts) == 1
    assert texts.pop().startswith("152\n")
    kept = WyckoffFormat(keep_hand=True)
    assert {encode(s, kept).split("\n")[0] for s in (quartz, other)} == {"152", "154"}


@st.composite
def descriptions(draw):
    """A random crystal of a random group, general enough to have exactly that group."""
    number = draw(st.integers(1, 230))
    group = space_group(number)
    rng = np.random.default_rng(draw(st.integers(0, 10**6)))
    places = [int(p) for p in rng.integers(0, len(group.positions), 3)]
    places += [len(group.positions) - 1]
    orbits = []
    for element, place in zip(["Li", "Fe", "O", "O"], places, strict=True):
        position = group.positions[place]
        if position.num_free or position.letter not in {o.letter for o in orbits}:
            coords = tuple(rng.random(position.num_free).tolist())
            orbits.append(Orbit(element=element, letter=position.letter, coords=coords))
    parts: dict[str, list[int]] = {}
    for orbit in orbits:
        parts.setdefault(orbit.element, []).append(group.position(orbit.letter).index)
    if not keeps_group(number, tuple(sorted(tuple(sorted(p)) for p in parts.values()))):
        orbits.append(
            Orbit(element="N", letter=group.positions[-1].letter, coords=(0.1, 0.23, 0.37))
        )
        orbits.append(
            Orbit(element="F", letter=group.positions[-1].letter, coords=(0.3, 0.11, 0.7))
        )
    lengths = rng.uniform(9, 30, 3)
    angles = rng.uniform(80, 100, 3)
    every = (*lengths.tolist(), *angles.tolist())
    cell = tuple(every[place] for place in FREE_CELL[group.family])
    return WyckoffCrystal(spacegroup=number, orbits=tuple(orbits), cell=cell)


@settings(max_examples=120, deadline=None)
@given(descriptions())
def test_any_group_comes_back_from_its_structure(crystal):
    fine = WyckoffFormat(
        coord_bins=1000, length_decimals=3, angle_decimals=3, max_atoms=1000, keep_hand=True
    )
    found = describe(crystal.primitive(), 1e-4, keep_hand=True)
    assert found.spacegroup == crystal.spacegroup
    assert found.num_atoms == crystal.num_atoms
    canonical = describe_anew(crystal, fine)
    again = describe_anew(found, fine)
    assert canonical.gene == again.gene
    assert canonical.cell == pytest.approx(again.cell, abs=1e-3)
    distances = [
        np.sort(c.primitive().distance_matrix, axis=None) for c in (crystal, canonical, again)
    ]
    assert distances[1] == pytest.approx(distances[0], abs=1e-4)
    assert distances[2] == pytest.approx(distances[0], abs=1e-3)


@settings(max_examples=60, deadline=None)
@given(descriptions(), st.integers(0, 1000))
def test_a_drawn_description_is_the_same_crystal(crystal, seed):
    drawn = describe_anew(crystal, FMT, np.random.default_rng(seed))
    before, after = (np.sort(c.primitive().distance_matrix, axis=None) for c in (crystal, drawn))
    assert after == pytest.approx(before, abs=1e-4)


@settings(max_examples=60, deadline=None)
@given(descriptions())
def test_text_is_a_fixed_point_of_reading_and_writing(crystal):
    fine = WyckoffFormat(max_atoms=1000)
    text = to_text(describe_anew(crystal, fine), fine)
    try:
        read = decode(text, fine)
    except ParseError as error:
        assert error.reason == WyckoffReject.COINCIDING_ATOMS  # random atoms in one bin
        return
    assert to_text(read, fine) == text
    for orbit in read.orbits:
        ticks = tuple(round(x * 100) for x in orbit.coords)
        assert not ticks or not lies_special(read.spacegroup, orbit.letter, 100, ticks)


def test_a_coordinate_that_rounds_onto_a_special_position_takes_the_next_bin():
    crystal = WyckoffCrystal(
        spacegroup=221,
        orbits=(Orbit(element="Na", letter="e", coords=(0.497,)),),
        cell=(30.0,),
    )
    assert to_text(crystal, FMT).split("\n")[-1] == "0.49"


def test_coordinates_are_rounded_half_to_even_and_wrapped_after():
    def written(x: float) -> str:
        orbit = Orbit(element="Na", letter="e", coords=(x,))
        crystal = WyckoffCrystal(spacegroup=81, orbits=(orbit,), cell=(9.0, 9.0))
        return to_text(crystal, WyckoffFormat(coord_bins=10)).split("\n")[-1]

    assert [written(x) for x in (0.25, 0.35, 0.14, 1.12)] == ["0.2", "0.4", "0.1", "0.1"]


def test_half_hundredths_are_written_with_three_decimals():
    fmt = WyckoffFormat(coord_bins=200)
    assert fmt.coord_decimals == 3
    crystal = decode("136\nTi a\nO f\n4.6 3.0\n0.304", fmt)
    assert to_text(crystal, fmt).endswith("\n0.305")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("0\nNa a\n5.6", "unknown_group"),
        ("231\nNa a\n5.6", "unknown_group"),
        ("Fm-3m\nNa a\n5.6", "unknown_group"),
        ("225\nXx a\n5.6", "unknown_element"),
        ("225\nNa m\n5.6", "unknown_letter"),
        ("225\nNa\n5.6", "unknown_letter"),
        ("225\nNa a\nCl a\n5.6", "repeated_position"),
        ("225\n5.6", "line_count"),
        ("225\nNa a\nCl b", "line_count"),
        ("225\nNa a\nCl b\n5.6\n0.1", "line_count"),
        ("136\nTi a\nO f\n4.6 3.0", "line_count"),
        ("225\nNa a\nCl b\n5.6 5.6", "not_a_number"),
        ("225\nNa a\nCl b\n5,6", "not_a_number"),
        ("225\nNa a\nCl b\n0.0", "impossible_cell"),
        ("136\nTi a\nO f\n4.6 3.0\n0.5", "special_coordinates"),
        ("2\nNa i\nNa i\n5 6 7 80 90 95\n0.1 0.2 0.3\n0.9 0.8 0.7", "coinciding_atoms"),
        ("2\nNa a\n5 6 7 20 90 20", "impossible_cell"),
        ("225\nNa l\n5.6\n0.1 0.2 0.3", "too_many_atoms"),
        ("", "unknown_group"),
    ],
)
def test_what_is_no_crystal_is_refused_with_its_reason(text, reason):
    with pytest.raises(ParseError) as caught:
        decode(text, FMT)
    assert caught.value.reason == reason
    assert "\n" not in str(caught.value)


def test_a_text_that_was_cut_off_is_refused():
    with pytest.raises(ParseError) as caught:
        decode(ROCK_SALT, FMT, complete=False)
    assert caught.value.reason == "truncated"


def test_a_crystal_with_too_many_atoms_is_not_written():
    with pytest.raises(PriorError, match="Na4 Cl4 has 2 atoms in the primitive cell, the text"):
        encode(rock_salt(), WyckoffFormat(max_atoms=1))


def test_a_disordered_crystal_is_not_written():
    disordered = Structure(Lattice.cubic(4), [{"Cu": 0.5, "Au": 0.5}], [[0, 0, 0]])
    with pytest.raises(PriorError, match="partial occupancies"):
        encode(disordered, FMT)


@pytest.mark.parametrize(
    "setting",
    [{"coord_bins": 30}, {"length_decimals": -1}, {"max_atoms": 0}, {"symprec": 0.0}],
)
def test_a_format_out_of_range_is_refused(setting):
    with pytest.raises(PriorError, match=f"text.{next(iter(setting))} "):
        WyckoffFormat(**setting)


def test_higher_symmetry_is_seen():
    # CsCl with one element on both positions is body centred.
    crystal = decode("221\nW a\nW b\n3.2", FMT)
    assert actual_group(crystal) == 229
    # Tetragonal with c = a.
    assert actual_group(decode("123\nPo a\n3.4 3.4", FMT)) == 221
    # A coordinate that fits a supergroup: zinc blende at 1/4 as a free one of P-43m.
    assert actual_group(decode(RUTILE, FMT)) == 136
