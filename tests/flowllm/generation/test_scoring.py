"""score and ipt: values, files and refusals."""

from __future__ import annotations

import csv
import inspect
import logging
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flowllm.cli import cli
from flowllm.generation.scoring import ScoringConfig, TranslationConfig, ipt, score
from flowllm.system.options import Options, specs
from support import ROOT, run_command


@pytest.mark.parametrize(
    ("function", "config", "name"),
    [(score, ScoringConfig, "score"), (ipt, TranslationConfig, "ipt")],
)
def test_the_options_are_the_arguments_and_the_settings(
    function: Callable[..., Any], config: type[Options], name: str
) -> None:
    arguments = inspect.signature(function).parameters.keys() - {"config", "options", "progress"}
    values = cli.commands[name].make_context(name, ["x"]).params
    assert values.keys() == arguments | specs(config).keys()
    # The function has the defaults.
    assert not any(value for key, value in values.items() if key != "file")


def test_score_shows_the_mean_and_writes_a_row_for_each(two_crystals: Path, tmp_path: Path) -> None:
    table = tmp_path / "scores.csv"
    result = run_command(
        "score", two_crystals, "--conditions", "formula,band_gap", "--constrain", "--out", table
    )
    assert result.exit_code == 0, result.output
    rows = list(csv.DictReader(table.read_text().splitlines()))
    assert [row["id"] for row in rows] == ["salt", "blende"]
    values = [float(row["log_likelihood"]) for row in rows]
    error = abs(values[0] - values[1]) / 2  # of the mean of two
    assert f"{sum(values) / 2:.2f} +- {error:.2f} nats per crystal" in result.stdout


def test_one_crystal_has_no_standard_error(two_crystals: Path) -> None:
    for command, unit in (("score", "nats per crystal"), ("ipt", "of the mean perplexity")):
        line = run_command(command, two_crystals, "--limit", 1).stdout
        assert unit in line and "(1 crystal" in line
        assert "+-" not in line and "nan" not in line and "crystals" not in line


def test_verbose_may_follow_the_command(
    two_crystals: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger(), "level", logging.WARNING)
    assert run_command("ipt", two_crystals, "--num-translations", 1, "-v").exit_code == 0
    assert logging.getLogger().level == logging.INFO


def test_ipt_writes_what_it_shows(two_crystals: Path, tmp_path: Path) -> None:
    table = tmp_path / "ipt.csv"
    options = ["--num-translations", 4, "--prior", "bundled:sites", "--out", table]
    result = run_command("ipt", two_crystals, *options)
    assert result.exit_code == 0, result.output
    values = [float(row["ipt"]) for row in csv.DictReader(table.read_text().splitlines())]
    assert all(0 < value < 1 for value in values)
    assert f"IPT {sum(values) / 2:.4f}" in result.stdout


def test_the_texts_of_the_bundled_prior_do_not_change_with_the_origin(two_crystals: Path) -> None:
    result = run_command("ipt", two_crystals, "--num-translations", 2)
    assert result.exit_code == 0, result.output
    assert "IPT 0.0000" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("score", "FILE", "--conditions", "colour"), "unknown condition 'colour'"),
        (("score", "FILE", "--conditions", "e_above_hull"), "crystal salt has no e_above_hull"),
        (("score", "FILE", "--out", "FILE"), "exists; choose another name"),
        (("score", "nowhere.cif"), "no such file"),
        (("score", "FILE", "--device", "tpu"), "unknown device 'tpu'"),
        (("score", "FILE", "--batch-size", 0), "--batch-size is 0; give a whole number at least 1"),
        (("ipt", "FILE", "--num-translations", 0), "--num-translations is 0"),
        (("ipt", "FILE", "--out", "no/folder/x.csv"), "no/folder is not a folder"),
    ],
)
def test_a_mistake_is_one_line(
    two_crystals: Path, tmp_path: Path, arguments: tuple[object, ...], message: str
) -> None:
    places = {"FILE": two_crystals, "OUT": tmp_path / "run"}
    result = run_command(*(places.get(word, word) for word in arguments))
    assert result.exit_code == 2, result.output
    assert message in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert not result.stdout


def test_settings_come_as_a_config_or_as_keywords(two_crystals: Path) -> None:
    one = score(two_crystals, ScoringConfig(conditions=("formula",)), constrain=True)
    other = score(two_crystals, conditions="formula", constrain=True)
    assert one.rows == other.rows
    assert one.rows != score(two_crystals, constrain=True).rows


def test_bad_settings_are_refused_before_torch_is_imported(two_crystals: Path) -> None:
    program = """
import sys
from flowllm.errors import UserError
from flowllm.generation.infilling import infill
from flowllm.generation.scoring import ipt, score
for call in (
    lambda: score(sys.argv[1], conditions="colour"),
    lambda: score(sys.argv[1], device="tpu"),
    lambda: score("nowhere.cif"),
    lambda: ipt(sys.argv[1], seed=-1),
    lambda: infill(sys.argv[1], "Xx"),
    lambda: infill(sys.argv[1], "Na", prior="no/where/else"),
):
    try:
        call()
    except UserError as error:
        print(error)
assert "torch" not in sys.modules
"""
    command = [sys.executable, "-c", program, str(two_crystals)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert len(result.stdout.splitlines()) == 6
