from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pymatgen.core import Lattice, Structure

from flowllm.crystals.io import read
from flowllm.metrics.intervals import rate
from flowllm.metrics.prototypes import Prototype, prototype
from flowllm.metrics.symmetry import (
    chi_square,
    js_distance,
    spacegroup_number,
    symmetry_metrics,
)
from support import CSCL, MP20_SAMPLE, SALT

groups = st.lists(st.integers(1, 230), min_size=1, max_size=30).map(np.array)


def prototypes(*numbers: int | None) -> list[Prototype | None]:
    """Prototypes of these groups, with as many free parameters as the number of the group."""
    return [None if n is None else Prototype(n, n, str(n)) for n in numbers]


def test_distances_of_space_groups_equal_a_hand_calculation():
    one, other = np.array([1, 225]), np.array([225, 225])
    # M = (1/4, 3/4): (KL(P, M) + KL(Q, M)) / 2 = (log2(2) / 2 + log2(2/3) / 2 + log2(4/3)) / 2
    expected = (0.5 + 0.5 * np.log2(2 / 3) + np.log2(4 / 3)) / 2
    assert js_distance(one, other) == pytest.approx(expected**0.5)
    assert js_distance(np.array([1]), np.array([2, 3])) == pytest.approx(1)
    # p = (1, 0), q = (1/4, 3/4): (3/4)^2 / (1/4) + (3/4)^2 / (3/4) = 3
    assert chi_square(np.array([2, 2]), np.array([2, 5, 5, 5])) == pytest.approx(3)


@given(one=groups, other=groups)
def test_a_distance_is_0_to_itself_symmetric_and_at_most_1(one, other):
    assert js_distance(one, one) == pytest.approx(0, abs=1e-7) and chi_square(one, one) == 0
    assert js_distance(one, other) == pytest.approx(js_distance(other, one))
    assert 0 <= js_distance(one, other) <= 1 + 1e-12
    assert js_distance(np.repeat(one, 3), other) == pytest.approx(js_distance(one, other))


def test_figures_of_a_set_equal_a_hand_calculation():
    found = symmetry_metrics(prototypes(1, 1, 2, None, 225), prototypes(1, 2, 2, 225))
    assert found["symmetry_found"] == rate(4, 5)
    assert found["p1"] == rate(2, 4) and found["p1_reference"] == rate(1, 4)
    assert found["free_parameters"].value == (1 + 1 + 2 + 225) / 4
    assert found["free_parameters_reference"].value == (1 + 2 + 2 + 225) / 4
    assert found["free_parameters_distance"].value == 0.25  # one of four moves by 1
    for name in ("spacegroup_js_distance", "spacegroup_chi_square", "free_parameters_distance"):
        for key in (name, f"{name}_reference"):
            estimate = found[key]
            assert estimate.count == 4 and estimate.low <= estimate.value <= estimate.high
    assert found["spacegroup_js_distance_reference"].value > 0
    alone = symmetry_metrics(prototypes(1, 1, 2, None, 225))
    assert alone == {name: found[name] for name in ("symmetry_found", "p1", "free_parameters")}


def test_groups_that_the_reference_lacks_count():
    found = symmetry_metrics(prototypes(1, 3, 3), prototypes(1, 2))
    # p = (1, 0, 2) / 3; counts (1, 1, 0) of the reference + 1/2: q = (3, 3, 1) / 7
    expected = (1 / 3 - 3 / 7) ** 2 / (3 / 7) + 3 / 7 + (2 / 3 - 1 / 7) ** 2 / (1 / 7)
    assert found["spacegroup_chi_square"].value == pytest.approx(expected)
    assert found["spacegroup_chi_square"].count == found["spacegroup_js_distance"].count == 3
    apart = symmetry_metrics(prototypes(3), prototypes(1, 2))
    assert apart["spacegroup_chi_square"].value == pytest.approx(6 / 7 + 36 / 7)
    assert apart["spacegroup_js_distance"].value == pytest.approx(1)
    # One of many crystals with a new group changes little.
    many = np.repeat([1, 2], 500)
    assert 0 < chi_square(np.append(many, 3), many) < 0.01


def test_the_interval_of_a_distance_holds_it_and_shrinks_with_the_number_of_crystals():
    rng = np.random.default_rng(0)
    reference = prototypes(*rng.integers(1, 231, 3000).tolist())
    widths = []
    for count in (1, 100, 2000):
        found = symmetry_metrics(reference[:count], reference)["spacegroup_js_distance"]
        if count == 1:
            assert found.low is found.high is None
            continue
        assert 0 <= found.low < found.value < found.high
        widths.append(found.high - found.low)
    assert widths[1] < widths[0]


def test_sets_without_any_space_group_have_no_figures():
    for samples, reference in (([], []), (prototypes(None), prototypes(1)), (prototypes(1), [])):
        found = symmetry_metrics(samples, reference)
        assert found["spacegroup_js_distance"].value is None
        assert found["free_parameters_distance_reference"].value is None
    assert symmetry_metrics(prototypes(None))["p1"].value is None


def test_disturbed_crystals_are_in_p1_and_far_from_the_data():
    data = [crystal.structure for crystal in read(MP20_SAMPLE)]
    disturbed = [structure.copy() for structure in data]
    for i, structure in enumerate(disturbed):
        structure.perturb(0.5, seed=i)
    reference = [prototype(structure) for structure in data]
    found = symmetry_metrics([prototype(structure) for structure in disturbed], reference)
    # A cell with one atom, or two of one element, keeps an inversion centre whatever moves.
    assert found["p1"].value > 0.9 and found["p1_reference"] == rate(5, 72)
    assert found["free_parameters"].value > found["free_parameters_reference"].high
    js_distance = found["spacegroup_js_distance"]
    assert js_distance.low > found["spacegroup_js_distance_reference"].high
    same = symmetry_metrics(reference, reference)
    assert same["spacegroup_js_distance"].value == pytest.approx(0, abs=1e-7)
    assert same["spacegroup_js_distance"].value < same["spacegroup_js_distance_reference"].low


def test_the_group_does_not_depend_on_the_cell_and_a_flat_cell_has_none():
    skewed = SALT.copy()
    skewed.make_supercell([[1, 40, 0], [0, 1, 0], [0, 0, 1]])
    # spglib would take minutes for this one.
    flat = Structure(
        Lattice.from_parameters(36.6, 12, 0.018, 122.9, 110.6, 43.6),
        ["H"] * 2,
        [[0] * 3, [0.4] * 3],
    )
    assert spacegroup_number(SALT, symprec=0.1) == spacegroup_number(skewed, symprec=0.1) == 225
    assert spacegroup_number(flat, symprec=0.1) is prototype(flat) is None
    assert prototype(skewed) == prototype(SALT)


def test_the_groups_of_known_crystals_are_found():
    found = symmetry_metrics([prototype(SALT), prototype(CSCL)], [prototype(SALT)] * 2)
    assert found["p1"] == rate(0, 2)
    assert found["spacegroup_chi_square"].count == 2  # CsCl is in no group of the reference
    assert found["free_parameters"].value == 1
