from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flowllm.metrics.coverage import coverage, diversity, feature_novelty, nearest_distances
from flowllm.metrics.fingerprints import Fingerprints


def prints(structure: list[float], composition: list[float]) -> Fingerprints:
    return Fingerprints(
        structure=np.array(structure, dtype=float)[:, None],
        composition=np.array(composition, dtype=float)[:, None],
    )


def test_coverage_novelty_and_diversity_equal_a_hand_calculation():
    samples = prints([0.0, 1.0, np.nan], [0, 30, 0])
    reference = prints([0.3, 1.35, 5.0], [8, 0, 1])
    found = coverage(nearest_distances(samples, reference), num_generated=4)
    # Sample 0 has a structure at 0.3 and a composition at 0; sample 1 one at 0.35, but 22 away.
    assert found["coverage_precision"].value == 1 / 4
    assert found["coverage_recall"].value == 2 / 3  # each within 0.4 and 10 of sample 0 or 1
    assert found["amsd_precision"].value == pytest.approx((0.3 + 0.35) / 2)
    assert found["amcd_recall"].value == pytest.approx((8 + 0 + 1) / 3)
    novelty = feature_novelty(nearest_distances(samples, reference))
    assert novelty["structural_feature_novelty"].value == 1
    assert novelty["compositional_feature_novelty"].value == 1 / 2
    assert novelty["feature_novelty"].count == 2
    assert diversity(samples)["compositional_diversity"].value == 30


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 1000), num_samples=st.integers(1, 1100), num_reference=st.integers(1, 40)
)
def test_blocks_change_nothing_and_a_set_covers_itself(seed, num_samples, num_reference):
    rng = np.random.default_rng(seed)
    samples = prints(list(rng.random(num_samples)), list(20 * rng.random(num_samples)))
    reference = prints(list(rng.random(num_reference)), list(20 * rng.random(num_reference)))
    distances = nearest_distances(samples, reference)
    whole = np.abs(samples.structure - reference.structure.T)
    assert np.allclose(distances.sample_structure, whole.min(axis=1))
    assert np.allclose(distances.reference_structure, whole.min(axis=0))
    itself = coverage(nearest_distances(samples, samples))
    assert itself["coverage_recall"].value == itself["coverage_precision"].value == 1


def test_an_empty_side_gives_no_value_or_zero():
    some, none = prints([0.0], [0.0]), prints([], [])
    assert coverage(nearest_distances(none, some))["coverage_precision"].value is None
    assert coverage(nearest_distances(none, some))["coverage_recall"].value == 0
    assert coverage(nearest_distances(some, none))["coverage_precision"].value == 0
    assert diversity(some)["structural_diversity"].value is None
