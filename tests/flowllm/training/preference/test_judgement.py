"""Classes of samples, and runs and evaluations that do not go together."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from training_support import KNOWN, UNSTABLE, sample_row, write_evaluation, write_run

from flowllm.errors import UserError
from flowllm.training.preference.judgement import (
    JudgedSample,
    SampleClass,
    read_judged,
    read_runs,
)

NEW, INVALID = SampleClass.NEW, SampleClass.INVALID
REPEATED, UNJUDGED = SampleClass.REPEATED, SampleClass.UNJUDGED


def judge(folder: Path, *sets: list[dict[str, Any]], below: float = 0.1) -> list[JudgedSample]:
    runs = [write_run(folder / f"run{k}", rows) for k, rows in enumerate(sets)]
    read_runs(runs)
    evaluation = write_evaluation(folder / "judged", dict(zip(runs, sets, strict=True)))
    return read_judged(runs, evaluation, stable_below=below)


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        ({}, NEW),
        ({"e_above_hull": -0.2}, NEW),
        ({"e_above_hull": 0.0999}, NEW),
        ({"e_above_hull": 0.1}, SampleClass.UNSTABLE),
        (KNOWN, SampleClass.KNOWN),
        ({"novel": False}, SampleClass.KNOWN),
        ({"gene_novel": False}, SampleClass.KNOWN),
        ({"relaxed_novel": False}, SampleClass.KNOWN),
        ({"relaxed_unique": False}, REPEATED),
        ({"gene": None, "gene_novel": None}, NEW),
        ({**KNOWN, **UNSTABLE}, SampleClass.UNSTABLE),
        ({"failure": "refiner: two atoms"}, INVALID),
        ({"structural_validity": False, "e_above_hull": None}, INVALID),
        ({"relaxation_failure": "timeout", "e_above_hull": None}, INVALID),
        ({"failure": "prior: near_atoms"}, INVALID),
        ({"failure": "prior: truncated"}, UNJUDGED),
        ({"text": None, "failure": "prior: near_atoms"}, UNJUDGED),
        ({"e_above_hull": None}, UNJUDGED),
    ],
)
def test_a_sample_has_its_class(values: dict[str, Any], kind: SampleClass, tmp_path: Path) -> None:
    rows = [sample_row(1, **values), sample_row(2)]
    first, second = judge(tmp_path, rows)
    assert (first.kind, second.kind) == (kind, NEW)
    assert (first.run, first.id, first.text) == ("run0", "sample-00001", rows[0]["text"] or "")
    assert first.num_words == len((rows[0]["text"] or "").split())


def test_the_threshold_is_that_of_the_caller(tmp_path: Path) -> None:
    (sample,) = judge(tmp_path, [sample_row(1, **UNSTABLE)], below=0.6)
    assert sample.kind is NEW


def test_of_equal_new_samples_the_lowest_is_new_also_across_runs(tmp_path: Path) -> None:
    first = [
        sample_row(1, gene="one", e_above_hull=0.05),
        sample_row(2, gene="one", e_above_hull=0.01),
        sample_row(3, gene="two", e_above_hull=0.02),
        sample_row(4, e_above_hull=0.09, duplicate_of="sample-00003"),  # another gene, as distorted
        sample_row(5, **KNOWN, gene="three"),
        sample_row(6, **KNOWN, gene="three"),
    ]
    second = [sample_row(1, gene="one", e_above_hull=0.0), sample_row(2, gene="three")]
    kinds = [sample.kind for sample in judge(tmp_path, first, second)]
    known = SampleClass.KNOWN
    assert kinds == [REPEATED, REPEATED, NEW, REPEATED, known, known, NEW, NEW]


def refused(folder: Path, message: str, run: Path, evaluation: Path) -> None:
    with pytest.raises(UserError, match=message) as error:
        read_runs([run])
        read_judged([run], evaluation, stable_below=0.1)
    assert "\n" not in str(error.value)


def test_what_is_missing_is_one_line(tmp_path: Path) -> None:
    rows = [sample_row(1), sample_row(2, **KNOWN)]
    run = write_run(tmp_path / "run", rows)
    judged = write_evaluation(tmp_path / "judged", {run: rows})
    refused(tmp_path, "no file or folder .*nowhere", tmp_path / "nowhere", judged)
    refused(tmp_path, "judged is not a run folder: tuning needs", judged, judged)
    other = write_run(tmp_path / "relaxed", rows, command="relax")
    refused(tmp_path, "relaxed is a run of flowllm relax: tuning needs the texts", other, judged)
    swapped = write_run(tmp_path / "like", rows, prior=None)
    refused(tmp_path, r"drawn without a prior \(--like\)", swapped, judged)
    cut = write_run(tmp_path / "cut", rows)
    (cut / "samples.parquet").unlink()
    refused(tmp_path, "cut: the run is not finished", cut, judged)

    refused(tmp_path, "run is no folder of flowllm evaluate", run, run)
    for key, value, message in (
        ("train", [], "does not say what is novel; .* with --train"),
        ("potential", None, r"has no energies above a hull \(no potential\)"),
        ("hull", None, r"has no energies above a hull \(no hull\)"),
    ):
        poor = write_evaluation(tmp_path / f"no-{key}", {run: rows}, **{key: value})
        refused(tmp_path, message, run, poor)
    unfinished = write_evaluation(tmp_path / "unfinished", {run: rows})
    (unfinished / "structures.parquet").unlink()
    refused(tmp_path, "unfinished: the evaluation is not finished", run, unfinished)


def test_an_evaluation_of_other_samples_is_refused(tmp_path: Path) -> None:
    rows = [sample_row(1), sample_row(2)]
    run = write_run(tmp_path / "run", rows)
    other = write_run(tmp_path / "other", [sample_row(1), sample_row(3)])
    judged = write_evaluation(tmp_path / "judged", {run: rows})
    refused(tmp_path, "judged is not an evaluation of .*other .*one of run, and", other, judged)
    # The same samples, but rows of others.
    wrong = write_evaluation(tmp_path / "wrong", {run: [sample_row(1), sample_row(3)]})
    refused(tmp_path, "the crystals of .*wrong are not those of .*run", run, wrong)
    (judged / "evaluation.json").write_text("{")
    refused(tmp_path, "evaluation.json is missing or damaged", run, judged)


def test_a_run_is_found_by_its_content_among_sets_of_one_name(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    first, second = [sample_row(1)], [sample_row(2, **KNOWN)]
    runs = [write_run(tmp_path / "a" / "run", first), write_run(tmp_path / "b" / "run", second)]
    judged = write_evaluation(tmp_path / "judged", dict(zip(runs, (first, second), strict=True)))
    # As an evaluation names sets of one name.
    metrics = {"sets": [{"name": "run"}, {"name": "run (2)"}]}
    (judged / "metrics.json").write_text(json.dumps(metrics))
    import pandas as pd

    table = pd.read_parquet(judged / "structures.parquet")
    table["set"] = ["run", "run (2)"]
    table.to_parquet(judged / "structures.parquet")
    found = read_judged(runs[::-1], judged, stable_below=0.1)
    assert [(one.run, one.id) for one in found] == [
        ("run (2)", "sample-00002"),
        ("run", "sample-00001"),
    ]
