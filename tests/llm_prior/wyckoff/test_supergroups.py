"""Crystals that have more symmetry than the group in which they are described."""

from __future__ import annotations

import numpy as np
import pytest

from llm_prior.wyckoff.crystal import find_symmetry
from llm_prior.wyckoff.lattices import (
    ANGLE_TOLERANCES,
    GENERIC_CELLS,
    SYMPREC,
    further_maps,
    may_be_higher,
    primitive_change,
    primitive_lattice,
)
from llm_prior.wyckoff.orbits import images
from llm_prior.wyckoff.spacing import cell_metrics
from llm_prior.wyckoff.supergroups import ExtraSymmetry, keeps_group
from llm_prior.wyckoff.table import NUM_GROUPS, space_group

CELLS = {
    "triclinic": (10.3, 11.9, 14.1, 82.0, 74.3, 66.7),
    "monoclinic": (10.3, 11.9, 14.1, 100.3),
    "orthorhombic": (10.3, 11.9, 14.1),
    "tetragonal": (11.1, 14.7),
    "hexagonal": (11.1, 14.7),
    "cubic": (12.3,),
}


def spglib_number(number: int, orbits: list[tuple[int, str]], seed: int) -> int:
    """The group of a crystal with (element, letter) orbits at random coordinates."""
    group, rng = space_group(number), np.random.default_rng(seed)
    points, kinds = [], []
    for kind, letter in orbits:
        points.append(images(number, letter)(rng.random(group.position(letter).num_free)))
        kinds += [kind] * len(points[-1])
    coords = np.concatenate(points) @ primitive_change(number)
    lattice = primitive_lattice(number, CELLS[group.family])
    return find_symmetry(lattice, coords, kinds, 1e-4).number


@pytest.mark.parametrize("start", range(1, NUM_GROUPS + 1, 46))
def test_characteristic_positions_are_those_of_spglib(start):
    for number in range(start, start + 46):
        for position in space_group(number).positions:
            found = spglib_number(number, [(1, position.letter)], seed=number)
            assert position.characteristic == (found == number)


@pytest.mark.parametrize("start", range(1, NUM_GROUPS + 1, 46))
def test_another_orbit_does_not_match_a_characteristic_one_with_free_coordinates(start):
    rng = np.random.default_rng(start)
    for number in range(start, start + 46):
        positions = space_group(number).positions
        for position in positions:
            if position.characteristic and position.num_free and position.num_atoms <= 24:
                other = positions[rng.integers(len(positions))]
                orbits = [(1, position.letter), (1, other.letter)]
                assert spglib_number(number, orbits, seed=number) == number


@pytest.mark.parametrize(
    ("number", "parts", "keeps"),
    [
        (225, ((0,), (1,)), True),  # rock salt
        (225, ((0, 1),), False),  # one element on both: simple cubic
        (221, ((0,), (1,)), True),  # CsCl
        (221, ((0, 1),), False),  # bcc
        (216, ((0,), (2,)), True),  # zinc blende
        (216, ((0, 2),), False),  # diamond
        (194, ((2,),), True),  # hcp
        (136, ((0,), (5,)), True),  # rutile
        (1, ((0,),), False),
        (1, ((0, 0),), False),  # two like atoms have an inversion centre
        (1, ((0, 0, 0),), True),
        (186, ((1,), (1,)), True),  # wurtzite
        (186, ((1,),), False),
    ],
)
def test_known_structure_types(number, parts, keeps):
    assert keeps_group(number, parts) == keeps


def test_cells_of_a_higher_lattice_are_suspected():
    cells = np.full((4, 6), 90.0)
    cells[:, 0] = cells[:, 1] = 4.0
    cells[:, 2] = [4.0, 4.0 * 2**0.5, 2.9, 4.2]
    tetragonal = cell_metrics("tetragonal", cells)
    assert may_be_higher(space_group(123), tetragonal).tolist() == [True, True, False, False]
    # Body centred: c = a is bcc, c = sqrt(2) a is fcc; at 4.2 the angles of the primitive cell are
    # within the tolerance of bcc.
    assert may_be_higher(space_group(139), tetragonal)[[0, 1, 3]].all()
    assert [len(further_maps(139, (4.0, c))) > 1 for c in (4.0, 4.2, 2.9)] == [True, True, False]
    assert not may_be_higher(space_group(225), cell_metrics("cubic", cells)).any()


def test_a_general_lattice_has_the_symmetry_of_its_family():
    orders = {
        "triclinic": 2,
        "monoclinic": 4,
        "orthorhombic": 8,
        "tetragonal": 16,
        "hexagonal": 24,
        "cubic": 48,
    }
    for number in range(1, NUM_GROUPS + 1):
        group = space_group(number)
        rhombohedral = group.family == "hexagonal" and len(group.centring) == 3
        order = 12 if rhombohedral else orders[group.family]
        own = len(np.unique(group.rotations, axis=0))
        assert len(further_maps(number, GENERIC_CELLS[group.family])) * own == order


@pytest.mark.parametrize("seed", range(4))
def test_a_crystal_without_extra_symmetry_has_its_group_by_spglib(seed):
    """Coarse coordinates and cells of like axes, so that about a third has more symmetry."""
    rng = np.random.default_rng(seed)
    exact = extra = 0
    while exact + extra < 150:
        number = int(rng.integers(1, NUM_GROUPS + 1))
        group = space_group(number)
        cell = _coarse_cell(group.family, rng)
        points, kinds = [], []
        for kind in range(rng.integers(1, 3)):
            position = group.positions[rng.integers(len(group.positions))]
            coords = rng.integers(0, 20, position.num_free) / 20
            points.append(images(number, position.letter)(coords))
            kinds += [kind] * position.num_atoms
        points = np.concatenate(points)
        lattice = primitive_lattice(number, cell)
        coords = points @ primitive_change(number)
        gaps = coords[:, None] - coords
        gaps = (gaps - np.rint(gaps)) @ lattice
        if (np.linalg.norm(gaps, axis=-1) + 9 * np.eye(len(coords))).min() < 0.5:
            continue
        found = [find_symmetry(lattice, coords, kinds, SYMPREC, t) for t in ANGLE_TOLERANCES]
        order = group.positions[-1].num_atoms  # of operations modulo lattice vectors
        exactly = [d is not None and (d.number, len(d.rotations)) == (number, order) for d in found]
        if ExtraSymmetry(number, cell).found(points[None], kinds)[0]:
            extra += 1
        else:
            exact += 1
            assert all(exactly)
        if all(exactly):
            agree = not ExtraSymmetry(number, cell).found(points[None], kinds, 0.005)[0]
            assert agree or group.family in ("triclinic", "monoclinic")  # 5.5 for 5 degrees
    assert exact > 50 and extra > 20


def _coarse_cell(family, rng):
    lengths = rng.integers(4, 8, 3).astype(float)
    if family == "triclinic":
        return (*lengths, *rng.integers(70, 111, 3).astype(float))
    if family == "monoclinic":
        return (*lengths, float(rng.integers(84, 120)))
    return tuple(lengths[: len(GENERIC_CELLS[family])])


def test_several_crystals_are_looked_at_together():
    """Rutile on x along the diagonal: at 0.25 and 0.5 its oxygens have more symmetry."""
    number, cell = 136, (4.6, 3.0)
    points = images(136, "f")(np.array([[0.31], [0.25], [0.5], [0.2]]))
    together = ExtraSymmetry(number, cell).found(points, [0] * 4)
    alone = [ExtraSymmetry(number, cell).found(p[None], [0] * 4)[0] for p in points]
    assert together.tolist() == alone
    assert not together[0] and together[2]
