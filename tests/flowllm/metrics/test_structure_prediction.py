from __future__ import annotations

import time

import numpy as np
import pytest
from pymatgen.core import Lattice, Structure
from pymatgen.core.structure_matcher import StructureMatcher

from flowllm.metrics.csp import (
    CSP_TOLERANCES,
    everyone_to_reference,
    match_metrics,
    metre,
    paired_distances,
    rms_distance,
)
from flowllm.metrics.uniqueness import PrimitiveCells
from support import CSCL

SALT = Structure.from_spacegroup(
    "Fm-3m", Lattice.cubic(6.9), ["Cs", "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]]
)
IRON = Structure(Lattice.cubic(2.87), ["Fe", "Fe"], [[0, 0, 0], [0.5, 0.5, 0.5]])


def moved(structure: Structure, x: float) -> Structure:
    other = structure.copy()
    other.translate_sites([0], [x, 0, 0])
    return other


def test_the_distance_of_one_shifted_atom_equals_a_hand_calculation():
    # Both atoms take half the shift; in units of (V / 2)^(1/3).
    shift = 0.05 * 4.12
    expected = (shift / 2) / (4.12**3 / 2) ** (1 / 3)
    assert rms_distance(moved(CSCL, 0.05), CSCL) == pytest.approx(expected, rel=1e-6)
    assert rms_distance(IRON, CSCL) is None
    theirs = StructureMatcher(stol=0.5, angle_tol=10, ltol=0.3)
    assert rms_distance(SALT, moved(SALT, 0.02)) == theirs.get_rms_dist(SALT, moved(SALT, 0.02))[0]


def test_the_best_of_several_samples_counts_and_a_failed_one_does_not():
    targets = {"a": CSCL, "b": IRON, "c": SALT}
    samples = [("a", moved(CSCL, 0.1)), ("a", moved(CSCL, 0.05)), ("b", None), ("c", CSCL)]
    distances = paired_distances(targets, samples)
    assert distances[0] == pytest.approx(rms_distance(moved(CSCL, 0.05), CSCL))
    assert np.isnan(distances[1:]).all()  # none, and another polymorph
    found = match_metrics(distances)
    assert found["match_rate"].value == 1 / 3 and found["match_rate"].low > 0
    assert found["rmse"].value == distances[0]


def test_metre_counts_any_sample_of_the_formula():
    targets = [CSCL, SALT, IRON]
    distances = everyone_to_reference(targets, [SALT, moved(CSCL, 0.05)])
    found = metre(distances)
    assert found["metre"].value == 2 / 3
    close = rms_distance(moved(CSCL, 0.05), CSCL)
    assert found["crmse"].value == pytest.approx((close + 0 + 0.5) / 3)
    nothing = metre(everyone_to_reference(targets, []))
    assert nothing["metre"].value == 0 and nothing["crmse"].value == 0.5


def test_a_crystal_in_a_strongly_skewed_cell_is_matched_quickly() -> None:
    crystal = Structure.from_spacegroup(
        "P6_3mc",
        Lattice.hexagonal(3.25, 5.2),
        ["Zn", "O"],
        [[1 / 3, 2 / 3, 0], [1 / 3, 2 / 3, 0.38]],
    )
    lattice = Lattice([[1, 20, 400], [0, 1, 20], [20, 0, 1]] @ crystal.lattice.matrix)
    assert lattice.volume == pytest.approx(crystal.volume)
    skewed = Structure(lattice, crystal.species, crystal.cart_coords, coords_are_cartesian=True)
    start = time.process_time()
    assert rms_distance(skewed, crystal) == pytest.approx(0, abs=1e-6)
    assert PrimitiveCells(CSP_TOLERANCES).match(skewed, crystal)
    assert time.process_time() - start < 2  # most of a minute by pymatgen alone
