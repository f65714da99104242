from __future__ import annotations

import numpy as np
import pytest

from flowllm.metrics.composition_scale import CompositionScale
from flowllm.metrics.fingerprints import Fingerprints


def prints(composition: np.ndarray) -> Fingerprints:
    return Fingerprints(structure=np.zeros((len(composition), 61)), composition=composition)


def test_a_set_on_its_own_scale_has_mean_0_and_deviation_1():
    vectors = np.random.default_rng(0).normal(30, 5, size=(50, 132))
    vectors[:, 1] = 0.1  # constant: its computed deviation is a rounding error
    vectors[:10, 2] = np.nan
    vectors[:, 3] = np.nan
    scale = CompositionScale.over(prints(vectors), "a set")
    scaled = scale(prints(vectors)).composition
    assert np.allclose(scaled.mean(axis=0), 0)
    assert np.allclose(np.delete(scaled.std(axis=0), [1, 2, 3]), 1)
    assert np.allclose(scaled[10:, 2].std(), 1) and not scaled[:10, 2].any()
    assert np.allclose(scaled[:, [1, 3]], 0)
    other = vectors[:1] + 1
    assert scale(prints(other)).composition[0, 1] == pytest.approx(1)  # in its own unit
    assert scale.source == "mean and standard deviation over a set"
