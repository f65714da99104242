"""Files for Matbench Discovery, read back as its guide describes them."""

from __future__ import annotations

import logging
from pathlib import Path

import pandas as pd
import pytest
from pymatgen.core import Structure

from flowllm import Crystal, read
from flowllm.energy.hull import HullDistance
from flowllm.evaluation.energies import EnergyModel, RelaxedSet
from flowllm.evaluation.matbench import write_matbench
from flowllm.evaluation.sets import GeneratedCrystal, GeneratedSet
from flowllm.metrics.relaxation import RelaxationChange
from support import CSCL, SALT, same

MADE = GeneratedSet(
    name="wbm.json",
    crystals=[
        GeneratedCrystal(id="wbm-1-1", structure=SALT),
        GeneratedCrystal(id="wbm-1,2", structure=None, failure="no answer"),
        GeneratedCrystal(id="wbm-1-3", structure=CSCL),
    ],
)
RELAXED = RelaxedSet(
    model=EnergyModel(
        potential="p", identity={}, scheme="mp2020", elements=None, hull=None, references=None
    ),
    relaxed=[SALT, None, CSCL],
    failures=[None, "no answer", None],
    energies_per_atom=[-3.5, None, -3.25],
    changes=[RelaxationChange(steps=4), RelaxationChange(), RelaxationChange(steps=9)],
    distances=[
        HullDistance(formation_energy_per_atom=-2.125, e_above_hull=0.0),
        HullDistance(failure="not relaxed"),
        HullDistance(failure="no reference"),
    ],
    num_tried=2,
)


def test_the_files_hold_what_the_guide_asks_for(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        table, relaxed = write_matbench([MADE], [RELAXED], tmp_path)
    assert table.name == "matbench-discovery-wbm-discovery.csv.gz"
    energies = pd.read_csv(table, index_col="material_id")["e_form_per_atom"]
    assert energies["wbm-1-1"] == -2.125
    assert energies[["wbm-1,2", "wbm-1-3"]].isna().all()
    rows = pd.read_json(relaxed, lines=True).set_index("material_id")
    assert list(rows.index) == ["wbm-1-1", "wbm-1-3"]
    assert list(rows["energy"]) == [-28.0, -6.5] and list(rows["n_steps"]) == [4, 9]
    assert rows["converged"].all()
    assert same(Structure.from_dict(rows["structure"]["wbm-1-3"]), CSCL, 1e-12)
    assert "1 of 3 crystals could not be relaxed" in caplog.text


def test_the_files_are_read_by_flowllm_too(tmp_path: Path) -> None:
    _, relaxed = write_matbench([MADE], [RELAXED], tmp_path)
    back: list[Crystal] = read(relaxed, reduce=False)
    assert [crystal.id for crystal in back] == ["wbm-1-1", "wbm-1-3"]
    assert back[0].properties == {"energy": -28.0, "converged": True, "n_steps": 4}


def test_the_files_are_the_same_at_any_time(tmp_path: Path) -> None:
    first = [path.read_bytes() for path in write_matbench([MADE], [RELAXED], tmp_path)]
    assert [path.read_bytes() for path in write_matbench([MADE], [RELAXED], tmp_path)] == first
