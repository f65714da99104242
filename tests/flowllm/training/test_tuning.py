"""Preference tuning as a whole: what it learns, records and refuses; `test_resume` kills it."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from training_support import (
    ALL_PAIRS,
    KNOWN,
    UNSTABLE,
    sample_row,
    small_training,
    write_evaluation,
    write_run,
)

from flowllm.errors import UserError
from flowllm.generation.sampling_run import run_sampling
from flowllm.hub.card import CARD_FILE, check_weights
from flowllm.training.tuning import tune_prior
from llm_prior import Prior
from prior_support import make_base, with_trained_adapter
from support import ROOT

WYCKOFF = ROOT / "flowllm" / "hub" / "bundled" / "wyckoff" / "prior"


@pytest.fixture(scope="module")
def judged(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A run of the bundled prior, and an evaluation with made-up energies: every third is new."""
    folder = tmp_path_factory.mktemp("judged")
    run = folder / "run"
    run_sampling(36, out=run, refine=False, temperature=1.0, seed=5, device="cpu", progress=False)
    written = pd.read_parquet(run / "samples.parquet", columns=["id", "prompt", "text", "failure"])
    kinds: list[dict[str, Any]] = [{}, KNOWN, UNSTABLE]
    rows = [
        {**sample_row(k, **kinds[k % 3]), **row} for k, row in enumerate(written.to_dict("records"))
    ]
    return run, write_evaluation(folder / "evaluation", {run: rows})


def test_the_command_tunes_the_bundled_prior(judged: tuple[Path, Path], tmp_path: Path) -> None:
    run, evaluation = judged
    out = tmp_path / "tuned"
    arguments = ["tune-llm", "--samples", run, "--evaluation", evaluation, "-o", out]
    arguments += ["--device", "cpu", "training.epochs=6", "training.batch_size=8"]
    arguments += ["training.learning_rate=2e-4"]
    arguments += ["training.eval_steps=4", "training.eval_crystals=24", "preference.held_out=0.2"]
    ended = subprocess.run(
        [sys.executable, "-m", "flowllm", *map(str, arguments)],
        env={"PYTHONPATH": str(ROOT), "PATH": "", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout == f"{out / 'model'}\n"
    assert "samples and pairs: new " in ended.stderr

    with (out / "counts.csv").open(newline="") as file:
        counts = {row["what"]: int(row["count"]) for row in csv.DictReader(file)}
    assert counts["new"] + counts["known"] + counts["unstable"] + counts["invalid"] == 36
    pairs = pd.read_parquet(out / "pairs.parquet")
    assert len(pairs[~pairs["held_out"]]) == counts["pairs"] > 8
    assert len(pairs[pairs["held_out"]]) == counts["held out: pairs"]

    progress = pd.read_csv(out / "progress.csv")
    assert list(progress["step"])[0] == 4 and progress["step"].is_monotonic_increasing
    figures = json.loads((out / "run.json").read_text())["info"]["figures"]
    assert figures["margin"] > 0.1 and figures["accuracy"] > 0.8
    assert figures["chosen"] > figures["rejected"]
    assert figures["kl_error"] > 0 and abs(figures["kl"]) < 30
    last = progress.iloc[-1].drop("step").dropna().to_dict()
    assert figures == pytest.approx(last, rel=1e-12)

    model = Prior.from_pretrained(out / "model")
    assert model.info["tuning"]["figures"] == figures
    assert model.info["tuning"]["rounds"] == 1
    assert model.info["recipe"] == Prior.from_pretrained(WYCKOFF).info["recipe"]
    card = (out / "model" / CARD_FILE).read_text()
    assert "## Preference tuning" in card and "| margin |" in card and "| new > known |" in card
    check_weights(out / "model")
    # The next round draws from it.
    outcome = run_sampling(2, out=tmp_path / "next", prior=out, refine=False, progress=False)
    assert len(outcome.crystals) == 2


def test_the_tuned_model_is_the_start_before_it_learns(files: Path, tmp_path: Path) -> None:
    train = small_training("tune", files)
    overrides = [*ALL_PAIRS, "training.max_steps=1", "training.learning_rate=1e-30"]
    model = train(out=tmp_path / "run", overrides=overrides)
    figures = json.loads((tmp_path / "run" / "run.json").read_text())["info"]["figures"]
    for name in ("margin", "chosen", "rejected"):
        assert figures[name] == pytest.approx(0, abs=0.05)
    assert figures.get("kl", 0) == pytest.approx(0, abs=0.05)
    assert "held_out_margin" not in figures
    start, tuned = (Prior.from_pretrained(p) for p in (files / "prior", model))
    for one, other in zip(start.model.parameters(), tuned.model.parameters(), strict=True):
        assert torch.equal(one, other)


def test_an_adapter_is_tuned_and_its_base_is_not(tmp_path: Path, files: Path) -> None:
    base = make_base(tmp_path / "base", sizes={"max_position_embeddings": 1024})
    prior = with_trained_adapter(base)
    prior.save_pretrained(tmp_path / "prior")
    train = small_training("tune", files)
    overrides = [*ALL_PAIRS, "training.max_steps=3", "training.batch_size=4"]
    model = train(out=tmp_path / "run", prior=tmp_path / "prior", overrides=overrides)
    assert (model / "adapter_model.safetensors").is_file()
    assert not (model / "model.safetensors").exists()
    changed = [
        name
        for (name, one), other in zip(
            Prior.from_pretrained(tmp_path / "prior").model.named_parameters(),
            Prior.from_pretrained(model).model.parameters(),
            strict=True,
        )
        if not torch.equal(one, other)
    ]
    assert changed and all("lora_" in name for name in changed)


def test_texts_of_another_layout_are_refused_before_the_folder_is_made(
    files: Path, tmp_path: Path
) -> None:
    train = small_training("tune", files)
    with pytest.raises(UserError, match="not one of the layout wyckoff .*prior that wrote the sam"):
        train(out=tmp_path / "run", prior=WYCKOFF)
    assert not (tmp_path / "run").exists()


def test_samples_of_another_prior_are_named_in_the_log(
    files: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    overrides = [*ALL_PAIRS, "training.max_steps=1"]
    small_training("tune", files)(out=tmp_path / "run", overrides=overrides)
    assert "samples was written by another prior than" in caplog.text


def test_a_text_beyond_the_context_is_refused(files: Path, tmp_path: Path) -> None:
    long = " ".join(["0.25"] * 600)
    rows = [sample_row(1), sample_row(2, text=long, **KNOWN)]
    run = write_run(tmp_path / "samples", rows)
    judged = write_evaluation(tmp_path / "judged", {run: rows})
    arguments = {"samples": run, "evaluation": judged, "prior": files / "prior"}
    overrides = ["preference.held_out=0", "preference.length_tolerance=0.99"]
    with pytest.raises(ValueError, match="tokens, the context of this model"):
        tune_prior(out=tmp_path / "run", overrides=overrides, device="cpu", **arguments)


def test_a_run_given_twice_is_refused(files: Path, tmp_path: Path) -> None:
    twice = [files / "samples", files / "judged" / ".." / "samples"]
    with pytest.raises(UserError, match="is given twice as samples; give each run once"):
        tune_prior(samples=twice, evaluation=files / "judged", out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_pairs_that_train_and_pairs_that_measure_share_no_sample(
    judged: tuple[Path, Path], tmp_path: Path
) -> None:
    run, evaluation = judged
    overrides = ["training.max_steps=1", "preference.held_out=0.3", "training.eval_crystals=4"]
    tune_prior(
        samples=[run], evaluation=evaluation, out=tmp_path / "x", overrides=overrides, device="cpu"
    )
    pairs = pd.read_parquet(tmp_path / "x" / "pairs.parquet")
    ends = [
        set(np.ravel(part[["chosen_id", "rejected_id"]]))
        for part in (pairs[pairs["held_out"]], pairs[~pairs["held_out"]])
    ]
    assert all(ends) and not ends[0] & ends[1]
