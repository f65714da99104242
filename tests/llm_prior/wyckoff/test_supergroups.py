"""Crystals that have more symmetry than the group in which they are described."""

from __future__ import annotations

import numpy as np
import pytest

from llm_prior.wyckoff.crystal import find_symmetry
from llm_prior.wyckoff.orbits import images
from llm_prior.wyckoff.spacing import cell_metrics
from llm_prior.wyckoff.supergroups import keeps_group, may_be_higher, primitive_lattice
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
    coords = np.concatenate(points) @ np.linalg.inv(group.primitive_basis)
    lattice = primitive_lattice(group, CELLS[group.family])
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
    cells[:, 2] = [4.0, 4.0 * 2**0.5, 5.0, 4.2]
    tetragonal = cell_metrics("tetragonal", cells)
    assert may_be_higher(space_group(123), tetragonal).tolist()[0]
    # Body centred: c = a is bcc, c = sqrt(2) a is fcc.
    assert may_be_higher(space_group(139), tetragonal).tolist() == [True, True, False, False]
    assert not may_be_higher(space_group(225), cell_metrics("cubic", cells)).any()
