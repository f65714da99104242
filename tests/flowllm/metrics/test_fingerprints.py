from __future__ import annotations

import numpy as np
import pytest
from pymatgen.core import Composition, Lattice, Structure

from flowllm.metrics import fingerprints as module
from flowllm.metrics.fingerprints import composition_fingerprint, structure_fingerprint
from support import CSCL, SALT

pytest.importorskip("matminer", reason="matminer is not installed")


def test_the_structure_fingerprint_shows_the_coordination():
    labels = module._structure_featurizer().feature_labels()
    primitive = SALT.get_primitive_structure()
    salt = dict(zip(labels, structure_fingerprint(primitive), strict=True))
    assert salt["wt CN_6"] == pytest.approx(1, abs=0.01)
    assert salt["octahedral CN_6"] == pytest.approx(1, abs=0.01)
    cscl = dict(zip(labels, structure_fingerprint(CSCL), strict=True))
    assert cscl["body-centered cubic CN_8"] > 0.5


def test_magpie_features_equal_a_hand_calculation():
    vector = composition_fingerprint(Composition("Na3Cl"))
    labels = module._composition_featurizer().feature_labels()
    features = dict(zip(labels, vector, strict=True))
    assert features["MagpieData mean Number"] == pytest.approx((3 * 11 + 17) / 4)
    assert features["MagpieData range Number"] == 6


def test_a_crystal_without_volume_or_radii_has_no_structure_fingerprint():
    squeezed = Structure(Lattice.cubic(0.4), ["Fe"], [[0, 0, 0]])
    heavy = Structure(Lattice.cubic(4.0), ["Og", "O"], [[0, 0, 0], [0.5, 0.5, 0.5]])
    for structure in (squeezed, heavy):  # CrystalNN has no radius of Og
        assert np.isnan(structure_fingerprint(structure)).all()
