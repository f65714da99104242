"""Files for public leaderboards, read back as the leaderboards read them."""

from __future__ import annotations

import json
import logging

import pandas as pd
import pytest
from click.testing import CliRunner
from pymatgen.core import Lattice, Structure

from flowllm.cli import cli
from flowllm.crystals.crystal import Crystal
from flowllm.crystals.io import write
from flowllm.errors import UserError
from flowllm.evaluation import leaderboards as submission
from flowllm.evaluation.config import EvaluationConfig
from flowllm.evaluation.sets import GeneratedCrystal, GeneratedSet
from support import CSCL

TITANIA = Structure.from_spacegroup(
    "P4_2/mnm", Lattice.tetragonal(4.594, 2.959), ["Ti", "O"], [[0, 0, 0], [0.305, 0.305, 0]]
)
MADE = GeneratedSet(
    name="my set.zip",
    crystals=[
        GeneratedCrystal(id="a", structure=TITANIA),
        GeneratedCrystal(id="b", structure=None, failure="no answer that decodes"),
        GeneratedCrystal(id="c", structure=CSCL),
    ],
)


def read_back(path) -> dict[str, Structure]:
    # As the README of LeMat-GenBench has it: a column `structure` with pymatgen's JSON.
    table = pd.read_csv(path, dtype={"material_id": str})
    return {
        row.material_id: Structure.from_dict(json.loads(row.structure))
        for row in table.itertuples()
    }


def test_a_submission_holds_every_crystal_exactly_and_warns_of_too_few(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        (path,) = submission.write_submission([MADE], tmp_path)
    assert read_back(path) == {"a": TITANIA, "c": CSCL}
    assert "takes exactly 2500 structures and there are 2; generate 2498 more" in caplog.text


def test_the_first_of_too_many_crystals_are_written(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(submission, "LEMAT_SIZE", 1)
    (path,) = submission.write_submission([MADE], tmp_path)
    assert read_back(path) == {"a": TITANIA}
    assert "the first of 2 are written" in caplog.text


def test_files_are_named_after_the_set_without_its_suffix(tmp_path):
    pytest.importorskip("smact", reason="smact is not installed")
    pytest.importorskip("plotly", reason="plotly is not installed")
    samples = []
    for folder, crystal in (("one", CSCL), ("two", TITANIA)):
        (tmp_path / folder).mkdir()
        samples.append(write([Crystal(id="a", structure=crystal)], tmp_path / folder / "b.csv"))
    out = tmp_path / "out"
    given = [*map(str, samples), "--submission", "lemat", "--out", str(out)]
    ran = CliRunner().invoke(cli, ["evaluate", *given])
    assert ran.exit_code == 0, ran.output
    assert sorted(path.name for path in out.glob("lemat*")) == ["lemat-b.csv", "lemat-b__2_.csv"]
    (of_first,) = read_back(out / "lemat-b.csv").values()
    assert of_first.composition == CSCL.composition


def test_an_unknown_leaderboard_is_refused():
    with pytest.raises(UserError, match="submission .matbench. is unknown; choose one of lemat, "):
        EvaluationConfig(submission="matbench")
