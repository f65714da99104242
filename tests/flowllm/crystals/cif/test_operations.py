"""Lists of symmetry operations."""

from __future__ import annotations

import random

import gemmi
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flowllm.crystals.cif.operations import from_gemmi, parse_operations
from flowllm.errors import InvalidCrystal

GROUPS = list(gemmi.spacegroup_table())


@given(index=st.integers(0, len(GROUPS) - 1), seed=st.integers(0, 99), decimals=st.booleans())
@settings(deadline=None)
def test_a_list_is_its_group_in_any_order_and_spelling(index, seed, decimals):
    group = GROUPS[index]
    triplets = [operation.triplet() for operation in group.operations()]
    if decimals:
        for fraction in ("1/2", "1/3", "2/3", "1/4", "3/4", "1/6", "5/6", "1/8", "3/8", "5/8"):
            above, below = map(int, fraction.split("/"))
            triplets = [t.replace(fraction, f"{above / below:.4f}") for t in triplets]
    random.Random(seed).shuffle(triplets)
    listed = parse_operations(tuple(t.upper().replace(",", " , ") for t in triplets))
    assert listed.same_as(from_gemmi(group.operations()))
    assert listed.number == group.number
    table = listed.products
    assert all(len(set(row)) == len(listed) for row in table.tolist())  # a Latin square


@pytest.mark.parametrize(
    ("triplet", "point", "image"),
    [
        ("x,y,z", [0.1, 0.2, 0.3], [0.1, 0.2, 0.3]),
        ("-X, 1/2+Y, .5-Z", [0.1, 0.2, 0.3], [-0.1, 0.7, 0.2]),
        ("-y,x-y,z+0.333", [0.1, 0.2, 0.3], [-0.2, -0.1, 0.3 + 1 / 3]),
        ("x+1/5, y, z", [0, 0, 0], [0.2, 0, 0]),
        ("x,y,z,-1", [0.1, 0.2, 0.3], [0.1, 0.2, 0.3]),  # time reversal
    ],
)
def test_one_operation(triplet, point, image):
    (rotation,) = parse_operations((triplet,)).rotations
    (translation,) = parse_operations((triplet,)).translations
    difference = rotation @ point + translation - image
    assert difference == pytest.approx(np.round(difference), abs=1e-9)


@pytest.mark.parametrize(
    "triplet",
    ["", "x,y", "x,y,z,z", "2x,y,z", "x,x,z", "x,y,q", "xy,y,z", "x,,z", "x+1/0,y,z", "x,y,1/2"]
    + ["h,k,l", "x;y;z", "x,y,z+" + 5000 * "1"],
)
def test_no_operation(triplet):
    with pytest.raises(InvalidCrystal, match="is no symmetry operation such as"):
        parse_operations((triplet,))


def test_a_list_that_is_no_group():
    with pytest.raises(InvalidCrystal, match="the 2 symmetry operations are no group") as error:
        parse_operations(("x,y,z", "-y,x,z")).products  # noqa: B018
    assert error.value.reason == "wrong_symmetry"


def test_repeated_operations_count_once():
    assert len(parse_operations(("x,y,z", "-x,-y,-z", "1-x,-y,2-z"))) == 2
