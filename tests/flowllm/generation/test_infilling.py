"""infill: what it computes, writes and refuses."""

from __future__ import annotations

import csv
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from flowllm.cli import cli
from flowllm.crystals.io import read, write
from flowllm.generation.infilling import infill
from llm_prior.swaps import allowed_swaps


def call(*arguments: object) -> Result:
    return CliRunner().invoke(cli, [str(a) for a in arguments], prog_name="flowllm")


@pytest.mark.parametrize(
    ("function", "name", "needed"),
    [
        (infill, "infill", "x --mask Na"),
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


def test_infill_keeps_to_the_swap_table(two_crystals: Path, tmp_path: Path) -> None:
    salt = write([read(two_crystals)[0]], tmp_path / "salt.jsonl")
    table = tmp_path / "infill.csv"
    result = call("infill", salt, "--mask", "Cl", "--swap-table", "--out", table)
    assert result.exit_code == 0, result.output
    rows = list(csv.DictReader(table.read_text().splitlines()))
    assert {row["element"] for row in rows} == allowed_swaps()["Cl"]
    assert sum(float(row["probability"]) for row in rows) == pytest.approx(1)
    assert result.stdout.startswith("salt  NaCl  Cl -> ")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("infill", "FILE", "--mask", "K"), "K is in no crystal of"),
        (("infill", "FILE", "--mask", "Na", "--swap-table"), "no element for Na"),
        (("infill", "FILE", "--mask", "Xx"), "Xx is in no crystal of"),
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
