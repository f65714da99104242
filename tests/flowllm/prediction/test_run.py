"""Runs of predictions: files, ranks, failures, and what a killed run leaves."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from cli_support import environment

import flowllm
from flowllm import FlowLLM, PredictionConfig, UserError, predict
from flowllm.crystals.symmetry import symmetry_of
from flowllm.prediction.outputs import PredictionRun
from flowllm.runs.sharded import RunFolder
from rfm import matrix_precision
from run_jobs import contents, wait_until
from support import run_command, same_bits

EMT_NAME = "ase.calculators.emt:EMT"
ALLOYS = ["Cu3Au", "CuAu", "Al3Ni", "NaCl"]  # EMT does not know the last one
FAST: dict[str, Any] = {"num_samples": 0, "num_templates": 3, "max_atoms": 8, "progress": False}


@pytest.fixture(scope="module")
def alloys(tmp_path_factory: pytest.TempPathFactory) -> PredictionRun:
    out = tmp_path_factory.mktemp("alloys") / "run"
    return predict(ALLOYS, 2, out=out, potential=EMT_NAME, **FAST)


def test_a_run_ends_with_ranked_files(alloys: PredictionRun) -> None:
    names = {path.name for path in alloys.folder.iterdir()}
    assert names >= {"predictions.parquet", "predictions.extxyz", "cif", "report.html"}
    rows = pq.read_table(alloys.folder / "predictions.parquet").to_pylist()
    made = [row for row in rows if row["failure"] is None]
    assert [row["id"] for row in made] == [
        f"{outcome.formula}-{p.rank}" for outcome in alloys.outcomes for p in outcome.predictions
    ]
    files = {path.stem for path in (alloys.folder / "cif").iterdir()}
    assert files == {row["id"] for row in made}
    for row in made:
        assert row["formula"] == row["id"].rpartition("-")[0] or row["id"].startswith("AlNi")
        assert row["source"].startswith("template ") and row["symbol"]
        assert np.isfinite(row["energy_per_atom"]) and 0 < row["probability"] <= 1


def test_ranks_are_in_the_order_of_the_scores(alloys: PredictionRun) -> None:
    for outcome in alloys.outcomes:
        scores = [prediction.score for prediction in outcome.predictions]
        chances = [prediction.probability for prediction in outcome.predictions]
        assert scores == sorted(scores)
        assert chances == sorted(chances, reverse=True) and sum(chances) <= 1 + 1e-9
        assert [p.rank for p in outcome.predictions] == list(range(1, len(scores) + 1))
        for prediction in outcome.predictions:
            symmetry = symmetry_of(prediction.structure)
            assert symmetry is not None and symmetry.gene == prediction.gene


def test_a_potential_that_fails_on_every_candidate_fails_the_formula_alone(
    alloys: PredictionRun,
) -> None:
    *others, salt = alloys.outcomes
    assert all(outcome.predictions for outcome in others)
    assert salt.predictions == [] and salt.problem is not None
    assert salt.problem.startswith(f"NaCl: {EMT_NAME} failed on all 3 candidates (relaxation: ")
    rows = pq.read_table(alloys.folder / "predictions.parquet").to_pylist()
    (row,) = [row for row in rows if row["failure"] is not None]
    assert (row["id"], row["formula"], row["failure"]) == ("NaCl", "NaCl", salt.problem)


def test_the_number_of_workers_changes_nothing(alloys: PredictionRun, tmp_path: Path) -> None:
    predict(ALLOYS, 2, out=tmp_path / "two", potential=EMT_NAME, workers=2, **FAST)
    assert contents(tmp_path / "two") == contents(alloys.folder)


def test_a_formula_has_the_same_predictions_in_every_list(
    alloys: PredictionRun, tmp_path: Path
) -> None:
    run = predict("CuAu", 2, out=tmp_path / "one", potential=EMT_NAME, **FAST)
    ours, theirs = run.outcomes[0].predictions, alloys.outcomes[1].predictions
    assert [(p.gene, p.score) for p in ours] == [(p.gene, p.score) for p in theirs]
    assert all(same_bits(p.structure, q.structure) for p, q in zip(ours, theirs, strict=True))


def test_energies_above_the_hull(tmp_path: Path) -> None:
    hull = tmp_path / "hull.csv"
    hull.write_text("composition,formation_energy_per_atom\nCuAu,-0.5\n")
    with pytest.raises(UserError, match="hull .* holds formation energies"):
        predict("CuAu", out=tmp_path / "x", potential=EMT_NAME, hull=hull, **FAST)
    assert not (tmp_path / "x").exists()


def test_a_finished_run_can_be_read_and_is_not_made_again(alloys: PredictionRun) -> None:
    before = {path: path.stat().st_mtime_ns for path in alloys.folder.rglob("*") if path.is_file()}
    again = predict(ALLOYS, 2, out=alloys.folder, potential=EMT_NAME, **FAST)
    assert again.outcomes[0].predictions[0].gene == alloys.outcomes[0].predictions[0].gene
    after = {path: path.stat().st_mtime_ns for path in alloys.folder.rglob("*") if path.is_file()}
    assert {p: t for p, t in after.items() if p.name != ".lock"} == {
        p: t for p, t in before.items() if p.name != ".lock"
    }
    assert len(flowllm.read(alloys.folder)) == sum(len(o.predictions) for o in alloys.outcomes)
    with pytest.raises(UserError, match="holds another run"):
        predict(ALLOYS, 3, out=alloys.folder, potential=EMT_NAME, **FAST)


def test_a_killed_run_goes_on_and_ends_with_the_same_bytes(
    alloys: PredictionRun, tmp_path: Path
) -> None:
    out = tmp_path / "killed"
    words = ["predict", *ALLOYS, "-n", "2", "--potential", EMT_NAME, "--num-samples", "0"]
    words += ["--num-templates", "3", "--max-atoms", "8", "-o", str(out)]
    process = subprocess.Popen(
        [sys.executable, "-m", "flowllm", *words],
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        wait_until(lambda: any(out.glob("shards/*.jsonl")) or process.poll() is not None, 200)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    first = {path.name: path.read_bytes() for path in out.glob("shards/*.jsonl")}
    assert first
    time.sleep(0.1)
    result = run_command(*words)
    assert result.exit_code == 1  # NaCl
    assert contents(out) == contents(alloys.folder)
    assert first.items() <= {p.name: p.read_bytes() for p in out.glob("shards/*.jsonl")}.items()


def test_the_screen_shows_a_table_and_the_failures(alloys: PredictionRun) -> None:
    words = ["predict", *ALLOYS, "-n", "2", "--potential", EMT_NAME, "--num-samples", "0"]
    words += ["--num-templates", "3", "--max-atoms", "8", "-o", alloys.folder]
    result = run_command(*words)
    assert result.exit_code == 1
    lines = result.stdout.splitlines()
    assert lines[0].startswith("Cu3Au: ") and "candidate" in lines[0]
    assert lines[1].split()[:4] == ["rank", "group", "prototype", "atoms"]
    assert "eV/atom" in lines[1] and lines[2].startswith("1 ")
    assert "NaCl: no structure" in lines
    assert lines[-1] == f"6 structures of 3 formulas in {alloys.folder}"
    assert f"failed: NaCl: {EMT_NAME} failed on all 3 candidates" in result.stderr


def test_without_a_potential_the_screen_says_so(tmp_path: Path) -> None:
    file = tmp_path / "formulas.txt"
    file.write_text("SrTiO3\n")
    words = ["predict", "NaCl", file, "--num-samples", "0", "-o", tmp_path / "run"]
    result = run_command(*words)
    assert result.exit_code == 0, result.output
    assert "perovskite" in result.stdout and "rock salt" in result.stdout
    assert "ranked by the sources alone; --potential" in result.stdout
    assert "eV/atom" not in result.stdout.replace("ranks by energy", "")


def test_the_bundled_models_add_candidates_and_python_gives_the_same(tmp_path: Path) -> None:
    options: dict[str, Any] = {"num_templates": 1, "num_samples": 4, "seed": 3}
    run = predict("NaCl", 3, out=tmp_path / "run", device="cpu", progress=False, **options)
    (outcome,) = run.outcomes
    assert {p.source.split()[0] for p in outcome.predictions} == {"template", "sample"}
    precision = matrix_precision(torch.device("cpu"))
    assert RunFolder.open(run.folder).run["precision"] == precision
    model = FlowLLM.from_pretrained(device="cpu")
    found = model.predict("Na2Cl2", 3, PredictionConfig(**options))
    assert [p.id for p in found] == [p.id for p in outcome.predictions]
    assert all(
        same_bits(p.structure, q.structure) for p, q in zip(found, outcome.predictions, strict=True)
    )


def test_python_ranks_by_energy_too() -> None:
    model = FlowLLM(None, None)
    found = model.predict(
        "CuAu", 2, num_samples=0, num_templates=3, max_atoms=8, potential=EMT_NAME
    )
    assert found and all(p.energy_per_atom is not None for p in found)
    again = model.predict(
        "CuAu", 2, num_samples=0, num_templates=3, max_atoms=8, potential=EMT_NAME
    )
    assert [p.score for p in again] == [p.score for p in found]


def test_elements_that_the_potential_has_not_learnt_are_ranked_without_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from flowllm.evaluation import energies

    monkeypatch.setattr(energies, "known_elements", lambda name: frozenset({"Cu", "Au"}))
    run = predict("NaCl", 2, out=tmp_path / "run", potential=EMT_NAME, **FAST)
    (outcome,) = run.outcomes
    assert outcome.warning == f"{EMT_NAME} has not learnt Cl, Na: ranked by the sources alone"
    assert outcome.predictions and outcome.predictions[0].energy_per_atom is None


def test_an_element_without_scattering_factors_has_no_pattern(tmp_path: Path) -> None:
    result = run_command("predict", "Na7Cl11", "LrO", "--num-samples", "0", "-o", tmp_path / "run")
    assert result.exit_code == 1
    assert result.stdout.splitlines()[0] == "Na7Cl11: no structure"
    assert "failed: Na7Cl11: no template has its stoichiometry" in result.stderr
    page = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert "simulated powder patterns" not in page and "LrO-1" in page


def test_the_order_does_not_depend_on_the_number_asked_for() -> None:
    model = FlowLLM(None, None)
    options = {**FAST, "potential": EMT_NAME, "num_templates": 8}
    del options["progress"]
    few, many = (model.predict("CuAu", n, **options) for n in (1, 6))
    assert [p.score for p in few] == [p.score for p in many[:1]]


def test_a_potential_that_cannot_be_started_stops_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from flowllm.prediction import prediction
    from flowllm.system.isolation import SetupFailed

    def fail(*_: Any) -> Any:
        raise SetupFailed("the potential could not be loaded")

    monkeypatch.setattr(prediction, "predict_formula", fail)
    with pytest.raises(SetupFailed):
        predict("CuAu", out=tmp_path / "run", potential=EMT_NAME, **FAST)
    assert not list((tmp_path / "run").glob("shards/*.jsonl"))
