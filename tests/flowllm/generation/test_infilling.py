"""infill: values, files and refusals."""

from __future__ import annotations

import csv
import inspect
from pathlib import Path

import pytest

from flowllm.cli import cli
from flowllm.crystals.io import read, write
from flowllm.generation.infilling import InfillingConfig, infill
from flowllm.system.options import specs
from llm_prior import allowed_swaps
from support import run_command


def test_the_options_are_the_arguments_and_the_settings() -> None:
    arguments = inspect.signature(infill).parameters.keys() - {"config", "options"}
    values = cli.commands["infill"].make_context("infill", ["x", "--mask", "Na"]).params
    assert values.keys() == arguments | specs(InfillingConfig).keys()
    # The function has the defaults.
    assert not any(value for key, value in values.items() if key not in ("file", "mask"))


def test_infill_keeps_to_the_swap_table(two_crystals: Path, tmp_path: Path) -> None:
    salt = write([read(two_crystals)[0]], tmp_path / "salt.jsonl")
    table = tmp_path / "infill.csv"
    result = run_command("infill", salt, "--mask", "Cl", "--swap-table", "--out", table)
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
        (("infill", "FILE", "--mask", "Na", "--temperature", -1), "--temperature is -1"),
        (("infill", "FILE", "--mask", "Xx"), "mask 'Xx' is not the symbol of an element"),
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
