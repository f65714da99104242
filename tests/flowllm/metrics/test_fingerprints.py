from __future__ import annotations

import logging

import numpy as np
import pytest
from pymatgen.core import Composition, Lattice, Structure

from flowllm.crystals.cache import cache_folder
from flowllm.errors import UserError
from flowllm.metrics import fingerprints as module
from flowllm.metrics.fingerprints import composition_fingerprint, fingerprints
from flowllm.system.extras import require

pytest.importorskip("matminer", reason="matminer is not installed")

SALT = Structure.from_spacegroup(
    "Fm-3m", Lattice.cubic(5.69), ["Na", "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]]
).get_primitive_structure()
CSCL = Structure(Lattice.cubic(4.12), ["Cs", "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]])


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("FLOWLLM_CACHE", str(tmp_path / "cache"))


def test_it_sees_the_coordination():
    prints = fingerprints([SALT, CSCL])
    assert prints.structure.shape == (2, 61) and prints.composition.shape == (2, 132)
    labels = module._structure_featurizer().feature_labels()
    salt = dict(zip(labels, prints.structure[0], strict=True))
    assert salt["wt CN_6"] == pytest.approx(1, abs=0.01)
    assert salt["octahedral CN_6"] == pytest.approx(1, abs=0.01)
    cscl = dict(zip(labels, prints.structure[1], strict=True))
    assert cscl["body-centered cubic CN_8"] > 0.5


def test_magpie_features_by_hand():
    vector = composition_fingerprint(Composition("Na3Cl"))
    labels = module._composition_featurizer().feature_labels()
    features = dict(zip(labels, vector, strict=True))
    assert features["MagpieData mean Number"] == pytest.approx((3 * 11 + 17) / 4)
    assert features["MagpieData range Number"] == 6


def test_what_was_computed_once_is_read_ever_after(monkeypatch):
    first = fingerprints([SALT, CSCL, SALT])

    def never(*_):
        raise AssertionError("computed again")

    monkeypatch.setattr(module, "structure_fingerprint", never)
    monkeypatch.setattr(module, "composition_fingerprint", never)
    again = fingerprints([CSCL, SALT])
    assert np.array_equal(again.structure, first.structure[[1, 2]])
    assert np.array_equal(again.composition, first.composition[[1, 0]])


def test_a_damaged_cache_is_not_used(caplog):
    before = fingerprints([CSCL])
    (file,) = cache_folder().glob("fingerprints*.sqlite")
    file.write_bytes(b"no database" * 100)
    with caplog.at_level(logging.WARNING):
        after = fingerprints([CSCL])
    assert "not kept" in caplog.text
    assert np.array_equal(before.structure, after.structure)


def test_crystals_without_a_fingerprint_and_odd_elements():
    squeezed = Structure(Lattice.cubic(0.4), ["Fe"], [[0, 0, 0]])
    noble = Structure(Lattice.cubic(4.0), ["He"], [[0, 0, 0]])
    heavy = Structure(Lattice.cubic(4.0), ["Og", "O"], [[0, 0, 0], [0.5, 0.5, 0.5]])
    prints = fingerprints([squeezed, noble, heavy])
    assert prints.usable.tolist() == [False, True, False]  # CrystalNN knows no radius of Og
    assert np.isfinite(prints.composition).all()
    assert fingerprints([]).structure.shape == (0, 61)


def test_a_missing_extra_is_one_line():
    with pytest.raises(UserError, match=r"needs no_such_package.*flowllm-crystal\[eval\]"):
        require("no_such_package.module")
