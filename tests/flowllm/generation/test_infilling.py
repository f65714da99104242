"""infill: values, files and refusals."""

from __future__ import annotations

import csv
import inspect
from pathlib import Path

import pytest

from flowllm.cli import cli
from flowllm.crystals.io import read, write
from flowllm.errors import UserError
from flowllm.generation.infilling import InfillingConfig, infill
from flowllm.system.options import specs
from llm_prior import allowed_swaps
from support import MP20_SAMPLE, run_command


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


def test_the_likeliest_swaps_are_written_as_a_run(tmp_path: Path) -> None:
    results = infill(
        MP20_SAMPLE, "O", structures=tmp_path / "run", out=tmp_path / "o.csv", device="cpu"
    )
    made = read(tmp_path / "run", reduce=False)
    assert [crystal.id for crystal in made] == [result.crystal.id for result in results]
    for crystal, result in zip(made, results, strict=True):
        element = next(symbol for symbol in result.probabilities if symbol != "O")
        assert crystal.properties["swap"] == f"O->{element}"
        assert crystal.properties["probability"] == result.probabilities[element]
        counts = result.crystal.structure.composition.as_dict()
        counts[element] = counts.pop("O") + counts.get(element, 0)
        assert crystal.structure.composition.as_dict() == counts
    with pytest.raises(UserError, match="holds another run"):
        infill(MP20_SAMPLE, "F", structures=tmp_path / "run", device="cpu")
