from __future__ import annotations

import importlib.util
import json
import logging

import numpy as np
import pytest
from pymatgen.core import Lattice, Structure

from flowllm.crystals.cache import cache_folder
from flowllm.errors import UserError
from flowllm.evaluation import features as module
from flowllm.evaluation.features import cached_fingerprints, cached_prototypes, read_scale
from flowllm.metrics.fingerprints import Fingerprints
from flowllm.metrics.prototypes import prototype
from flowllm.system.extras import require
from support import CSCL, SALT

PRIMITIVE = SALT.get_primitive_structure()
needs_matminer = pytest.mark.skipif(
    importlib.util.find_spec("matminer") is None,
    reason="matminer is not installed",
)


def never(*_, **__):
    raise AssertionError("computed again")


@needs_matminer
def test_fingerprints_are_computed_once(monkeypatch):
    first = cached_fingerprints([PRIMITIVE, CSCL, PRIMITIVE])
    assert first.structure.shape == (3, 61) and first.composition.shape == (3, 132)
    monkeypatch.setattr(module, "structure_fingerprint", never)
    monkeypatch.setattr(module, "composition_fingerprint", never)
    again = cached_fingerprints([CSCL, PRIMITIVE])
    assert np.array_equal(again.structure, first.structure[[1, 2]])
    assert np.array_equal(again.composition, first.composition[[1, 0]])


@needs_matminer
def test_a_damaged_cache_is_not_used(caplog):
    before = cached_fingerprints([CSCL])
    (file,) = cache_folder().glob("fingerprints*.sqlite")
    file.write_bytes(b"no database" * 100)
    with caplog.at_level(logging.WARNING):
        after = cached_fingerprints([CSCL])
    assert "not kept" in caplog.text
    assert np.array_equal(before.structure, after.structure)


@needs_matminer
def test_crystals_without_a_fingerprint_and_rare_elements_keep_their_rows():
    squeezed = Structure(Lattice.cubic(0.4), ["Fe"], [[0, 0, 0]])
    noble = Structure(Lattice.cubic(4.0), ["He"], [[0, 0, 0]])
    heavy = Structure(Lattice.cubic(4.0), ["Og", "O"], [[0, 0, 0], [0.5, 0.5, 0.5]])
    prints = cached_fingerprints([squeezed, noble, heavy])
    assert prints.usable.tolist() == [False, True, False]  # CrystalNN has no radius of Og
    assert np.isfinite(prints.composition).all()
    assert cached_fingerprints([]).structure.shape == (0, 61)


def test_prototypes_and_failed_searches_are_computed_once(monkeypatch):
    piled = Structure(CSCL.lattice, ["Cs", "Cs"], [[0, 0, 0], [0, 0, 1e-4]])
    first = cached_prototypes([SALT, CSCL, SALT, piled])
    assert first == [prototype(SALT), prototype(CSCL), prototype(SALT), None]
    monkeypatch.setattr(module, "prototype", never)
    assert cached_prototypes([piled, CSCL, SALT]) == [None, first[1], first[0]]
    assert cached_prototypes([]) == []


def test_a_scale_is_read_from_a_file(tmp_path):
    file = tmp_path / "scale.json"
    file.write_text(json.dumps({"means": [1.0] * 132, "stds": [2.0] * 132}))
    given = np.array([[5.0] * 131 + [np.nan]])
    scaled = read_scale(file)(Fingerprints(structure=np.zeros((1, 61)), composition=given))
    assert scaled.composition.tolist() == [[2.0] * 131 + [0.0]]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"means": [1.0] * 132}, "no composition scale"),
        ({"means": [1.0] * 132, "stds": [2.0] * 131}, "132 numbers each"),
        ([1], "no composition scale"),
        ({"means": [1.0] * 132, "stds": [0.0] * 132}, "not above 0"),
        (None, "no such file"),
    ],
)
def test_a_file_without_a_scale_is_refused(tmp_path, content, message):
    file = tmp_path / "scale.json"
    if content is not None:
        file.write_text(json.dumps(content))
    with pytest.raises(UserError, match=message):
        read_scale(file)


def test_a_missing_extra_is_one_line():
    with pytest.raises(UserError, match=r"needs no_such_package.*flowllm-crystal\[eval\]"):
        require("no_such_package.module")
