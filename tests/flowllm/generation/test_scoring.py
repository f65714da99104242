"""score and ipt: what they compute, write and refuse."""

from __future__ import annotations

import csv
import inspect
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from flowllm.cli import cli
from flowllm.generation.scoring import ipt, score


def call(*arguments: object) -> Result:
    return CliRunner().invoke(cli, [str(a) for a in arguments], prog_name="flowllm")


@pytest.mark.parametrize(
    ("function", "name", "needed"),
    [
        (score, "score", "x"),
        (ipt, "ipt", "x"),
    ],
)
def test_options_are_the_functions_arguments_with_their_defaults(
    function: Callable[..., Any], name: str, needed: str
) -> None:
    arguments = inspect.signature(function).parameters
    values = cli.commands[name].make_context(name, needed.split()).params
    assert values.keys() == arguments.keys() - {"progress"}
    for key in values:
        default = arguments[key].default
        assert default is inspect.Parameter.empty or values[key] == default, key


def test_score_shows_the_mean_and_writes_a_row_for_each(two_crystals: Path, tmp_path: Path) -> None:
    table = tmp_path / "scores.csv"
    result = call(
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
        line = call(command, two_crystals, "--limit", 1).stdout
        assert unit in line and "(1 crystal" in line
        assert "+-" not in line and "nan" not in line and "crystals" not in line


def test_verbose_may_follow_the_command(
    two_crystals: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger(), "level", logging.WARNING)
    assert call("ipt", two_crystals, "--num-translations", 1, "-v").exit_code == 0
    assert logging.getLogger().level == logging.INFO


def test_ipt_writes_what_it_shows(two_crystals: Path, tmp_path: Path) -> None:
    table = tmp_path / "ipt.csv"
    result = call("ipt", two_crystals, "--num-translations", 4, "--out", table)
    assert result.exit_code == 0, result.output
    values = [float(row["ipt"]) for row in csv.DictReader(table.read_text().splitlines())]
    assert all(0 < value < 1 for value in values)
    assert f"IPT {sum(values) / 2:.4f}" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("score", "FILE", "--conditions", "colour"), "unknown condition 'colour'"),
        (("score", "FILE", "--conditions", "e_above_hull"), "crystal salt has no e_above_hull"),
        (("score", "FILE", "--out", "FILE"), "exists; choose another name"),
        (("score", "nowhere.cif"), "no such file"),
        (("ipt", "FILE", "--out", "no/folder/x.csv"), "no/folder is no folder"),
    ],
)
def test_a_mistake_is_one_line(
    two_crystals: Path, tmp_path: Path, arguments: tuple[object, ...], message: str
) -> None:
    places = {"FILE": two_crystals, "OUT": tmp_path / "run"}
    result = call(*(places.get(word, word) for word in arguments))
    assert result.exit_code == 2, result.output
    assert message in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert not result.stdout
