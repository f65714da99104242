"""The table of Wyckoff positions against spglib, for all groups and letters."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest

from llm_prior.errors import PriorError
from llm_prior.text import SYMBOLS
from llm_prior.wyckoff.crystal import Orbit, WyckoffCrystal, symmetry_dataset
from llm_prior.wyckoff.orbits import coset_letter, equivalents, images, special_bins
from llm_prior.wyckoff.table import GRID, NUM_GROUPS, group_number, parse_coordinates, space_group

GROUPS = range(1, NUM_GROUPS + 1)
# Six numbers without a relation, in Angstrom and degrees, large enough for hundreds of atoms.
GENERIC_CELL = {
    "triclinic": (19.1, 23.7, 27.9, 81.0, 75.3, 67.7),
    "monoclinic": (19.1, 23.7, 27.9, 101.3),
    "orthorhombic": (19.1, 23.7, 27.9),
    "tetragonal": (23.1, 29.9),
    "hexagonal": (23.1, 29.9),
    "cubic": (29.9,),
}


@cache
def crystal_on_every_letter(number: int) -> WyckoffCrystal:
    """A crystal with an element of its own on every letter, at random coordinates, and two more
    orbits on the general position, so that its group is exact."""
    group = space_group(number)
    rng = np.random.default_rng(number)
    letters = [*(p.letter for p in group.positions), *[group.positions[-1].letter] * 2]
    orbits = tuple(
        Orbit(
            element=SYMBOLS[index],
            letter=letter,
            coords=tuple(rng.random(group.position(letter).num_free).tolist()),
        )
        for index, letter in enumerate(letters)
    )
    return WyckoffCrystal(spacegroup=number, orbits=orbits, cell=GENERIC_CELL[group.family])


def found_by_spglib(number: int):
    return symmetry_dataset(crystal_on_every_letter(number).primitive(), symprec=1e-5)


def test_there_are_1731_positions():
    # International Tables for Crystallography, volume A.
    assert sum(len(space_group(number).positions) for number in GROUPS) == 1731


@pytest.mark.parametrize("number", GROUPS)
def test_letters_multiplicities_and_site_symmetries_are_spglibs(number):
    group, crystal, found = space_group(number), crystal_on_every_letter(number), None
    found = found_by_spglib(number)
    assert (found.number, found.hall_number) == (number, group.hall_number)
    owner = crystal.site_orbits()
    first = [int(np.flatnonzero(owner == i)[0]) for i in range(len(crystal.orbits))]
    theirs = [found.wyckoffs[site] for site in first]
    # spglib may choose another origin or other axes than the crystal was made with: then its
    # letters are those after an element of the normalizer.
    ours = [
        [coset_letter(number, coset, orbit.letter)[0] for orbit in crystal.orbits]
        for coset in range(len(group.cosets))
    ]
    assert theirs in ours
    for site, letter, orbit in zip(first, theirs, range(len(first)), strict=True):
        position = group.position(letter)
        assert found.site_symmetry_symbols[site] == position.site_symmetry
        atoms = int(np.sum(owner == orbit))
        assert atoms * len(group.centring) == position.multiplicity


@pytest.mark.parametrize("number", GROUPS)
def test_orbits_of_random_points_are_spglibs(number):
    crystal, found = crystal_on_every_letter(number), found_by_spglib(number)
    owner = crystal.site_orbits()
    first = [int(np.flatnonzero(owner == o)[0]) for o in owner]
    assert found.crystallographic_orbits.tolist() == first


@pytest.mark.parametrize("number", GROUPS)
def test_the_general_position_has_as_many_points_as_operations(number):
    group = space_group(number)
    general = group.positions[-1]
    assert general.num_free == 3
    assert general.multiplicity == len(group.rotations)
    assert all(p.multiplicity < general.multiplicity for p in group.positions[:-1])


@pytest.mark.parametrize("number", GROUPS)
def test_equivalent_coordinates_give_the_same_orbit(number):
    rng = np.random.default_rng(number)
    group = space_group(number)
    for position in group.positions:
        coords = rng.random(position.num_free)
        points = images(number, position.letter)(coords)
        for other in equivalents(number, position.letter)(coords):
            gaps = images(number, position.letter)(other)[:, None, None] - points[:, None]
            gaps = gaps - group.centring / GRID  # (n, n, l, 3)
            apart = np.abs(gaps - np.rint(gaps)).max(-1).min(-1)
            assert (apart.min(0) < 1e-9).all()
            assert (apart.min(1) < 1e-9).all()


@pytest.mark.parametrize("number", GROUPS)
def test_normalizer_maps_the_group_onto_itself(number):
    group = space_group(number)
    operations = {
        (w.tobytes(), tuple(t)) for w, t in zip(group.rotations, group.shifts.tolist(), strict=True)
    }
    for change in (*group.cosets, *group.cells):
        inverse = np.rint(np.linalg.inv(change.linear)).astype(int)
        images_ = set()
        for w, t in zip(group.rotations, group.shifts, strict=True):
            turned = change.linear @ w @ inverse
            shift = change.shift + change.linear @ t - turned @ change.shift
            images_.add((turned.tobytes(), tuple((shift % GRID).tolist())))
        assert images_ == operations


# Index of the group in its Euclidean normalizer (for orthorhombic groups of permuted axes, the
# affine one), without the continuous shifts: International Tables A, section 3.5.
@pytest.mark.parametrize(
    ("number", "index"),
    [(1, 2), (2, 8), (16, 96), (47, 48), (75, 8), (89, 8), (123, 4), (146, 4), (166, 2), (194, 2)]
    + [(195, 8), (221, 2), (225, 2), (227, 2), (229, 1), (230, 1)],
)
def test_index_in_the_normalizer_is_that_of_the_tables(number, index):
    assert len(space_group(number).cosets) == index


def test_enantiomorphic_groups_come_in_eleven_pairs():
    pairs = {(g.number, g.enantiomorph) for g in map(space_group, GROUPS) if g.enantiomorph}
    assert len(pairs) == 22
    assert {(b, a) for a, b in pairs} == pairs
    for number, partner in pairs:
        # No operation turns a hand, and each is the mirror image of the other.
        assert (np.linalg.det(space_group(number).rotations) > 0).all()
        crystal = crystal_on_every_letter(number).primitive()
        crystal = type(crystal)(crystal.lattice, crystal.species, -crystal.frac_coords)
        assert symmetry_dataset(crystal, 1e-5).number == partner


def test_polar_groups_are_68():
    # Groups of the ten polar crystal classes 1, 2, m, mm2, 4, 4mm, 3, 3m, 6, 6mm.
    assert sum(bool(space_group(number).polar_axes) for number in GROUPS) == 68


def test_bins_of_a_more_special_position_are_known():
    # Pm-3m, 6e (x, 0, 0): x = 0 is 1a, x = 1/2 is 3d.
    assert np.flatnonzero(special_bins(221, "e", 100)).tolist() == [0, 50]
    # P-1, 2i: no single coordinate decides; the eight inversion centres are at 0 and 1/2.
    assert not special_bins(2, "i", 100).any()
    assert np.flatnonzero(special_bins(2, "i", 100, (0, 50))).tolist() == [0, 50]
    assert not special_bins(2, "i", 100, (0, 49)).any()
    # P4/mmm, 16u: the mirrors at z, x, y, and x = y, x = -y.
    assert np.flatnonzero(special_bins(123, "u", 100, (20,))).tolist() == [0, 20, 50, 80]


@pytest.mark.parametrize("number", [2, 14, 62, 123, 166, 194, 216, 225, 230])
def test_special_bins_are_where_the_orbit_has_fewer_points(number):
    rng = np.random.default_rng(0)
    for position in space_group(number).positions:
        if not position.num_free:
            continue
        for _ in range(10):
            ticks = tuple(rng.integers(0, 24, position.num_free).tolist())
            masked = any(
                special_bins(number, position.letter, 24, ticks[:place])[ticks[place]]
                for place in range(position.num_free)
            )
            points = images(number, position.letter)(np.array(ticks) / 24)
            gaps = points[:, None, None] - points[:, None] - space_group(number).centring / GRID
            same = (np.abs(gaps - np.rint(gaps)).max(-1) < 1e-9).any(-1)
            assert masked == (same.sum() > len(points))


@pytest.mark.parametrize(
    ("name", "number"),
    [("225", 225), ("Fm-3m", 225), ("P2_1/c", 14), ("P 21/c", 14), ("P-1", 2), ("I4_1/amd", 141)],
)
def test_a_group_is_known_by_number_and_symbol(name, number):
    assert group_number(name) == number


def test_all_symbols_are_distinct():
    assert [group_number(space_group(number).symbol) for number in GROUPS] == list(GROUPS)


@pytest.mark.parametrize("name", ["231", "0", "Fm3x", "", "-1"])
def test_an_unknown_group_is_refused(name):
    with pytest.raises(PriorError, match="is not a space group; give"):
        group_number(name)


def test_an_unknown_letter_is_refused():
    with pytest.raises(PriorError, match=r"space group 221 \(Pm-3m\) has no Wyckoff letter 'o'"):
        space_group(221).position("o")


def test_a_triplet_is_read():
    linear, shift = parse_coordinates("x-2z,-y+1/4,5/6")
    assert linear.tolist() == [[1, 0, -2], [0, -1, 0], [0, 0, 0]]
    assert shift.tolist() == [0, 6, 20]


def test_sohncke_groups_are_65():
    assert sum(space_group(number).is_sohncke for number in GROUPS) == 65
