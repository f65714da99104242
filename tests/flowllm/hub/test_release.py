"""The release: a seed gives the same crystals in every process; its recipe uses real commands."""

from __future__ import annotations

import importlib.util
import os
import shlex
import subprocess
import sys
from pathlib import Path

import click
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from flowllm.cli import cli
from flowllm.training.recipes import PriorRecipe, RefinerRecipe, load_recipe
from support import ROOT


def test_a_seed_gives_the_same_16_crystals_in_every_process(tmp_path: Path) -> None:
    arguments = ["sample", "-n", "16", "--refine", "--seed", "7", "--device", "cpu", "--out"]
    other = subprocess.Popen(
        [sys.executable, "-m", "flowllm", *arguments, str(tmp_path / "other")],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    result = CliRunner().invoke(cli, [*arguments, str(tmp_path / "one")])
    log = other.communicate(timeout=300)[1]
    assert result.exit_code == other.returncode, log
    assert result.exit_code in (0, 1), log  # 1: some failed, in both alike
    one, two = (
        {
            str(path.relative_to(tmp_path / name)): path.read_bytes()
            for path in (tmp_path / name).rglob("*")
            if path.is_file()
        }
        for name in ("one", "other")
    )
    assert one == two
    assert pq.read_metadata(tmp_path / "one" / "samples.parquet").num_rows == 16
    assert len([name for name in one if name.startswith("cif/")]) >= 12
    for role in ("prior: bundled", "refiner: bundled"):
        assert role in log  # and their sizes and hashes: which models these are


def command_of(file: str) -> click.Command:
    spec = importlib.util.spec_from_file_location(Path(file).stem, ROOT / file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main


def release(**settings: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", str(ROOT / "tools" / "release.sh")],
        env={**os.environ, "DRY": "1", **settings},
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize(
    ("pair", "recipes"),
    [({}, ("llm/wyckoff", "rfm/wyckoff")), ({"PAIR": "sites"}, ("llm/release", "rfm/release"))],
)
def test_every_command_of_the_release_recipe_is_one(
    pair: dict[str, str], recipes: tuple[str, str], tmp_path: Path
) -> None:
    ended = release(RUNS=str(tmp_path), LIMIT="--limit 64", PRIOR="seed=1 a=b", **pair)
    assert ended.returncode == 0, ended.stderr
    printed = ended.stdout
    lines = [shlex.split(line) for line in printed.splitlines()]
    assert [line[:2] for line in lines if line[0] == "flowllm"] == [
        ["flowllm", name]
        for name in ("train-llm", "train-llm", "pair", "pair", "train-rfm", "sample", "evaluate")
    ]
    both, last, pairs = [line for line in lines if line[0] == "flowllm"][:3]
    given = [word for word in last if "=" in word]
    used = [line[line.index("--config") + 1] for line in lines if "--config" in line]
    assert used == [recipes[0], *recipes]
    model = load_recipe(PriorRecipe, recipes[0], given).model
    assert (model.architecture, model.name) == (None, f"{tmp_path}/prior-of-all/model")
    assert both[both.index("--out") + 1] == f"{tmp_path}/prior-of-all"
    assert pairs[pairs.index("--prior") + 1] == last[last.index("--out") + 1] + "/model"
    for program, first, *rest in lines:
        if program == "flowllm":
            command, arguments = cli.commands[first], rest
        else:
            command, arguments = command_of(first), rest
            if isinstance(command, click.Group):
                command, arguments = command.commands[rest[0]], rest[1:]
        try:
            command.make_context(first, list(arguments))  # parses, and refuses what it knows not
        except click.UsageError as error:
            pytest.fail(f"{shlex.join([program, first, *rest])}: {error.format_message()}")


def test_an_unknown_pair_is_one_line() -> None:
    ended = release(PAIR="wyckof")
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr == "error: PAIR is wyckof; set it to wyckoff or sites\n"


@pytest.mark.parametrize("pair", ["release", "wyckoff"])
def test_the_release_recipes_are_recipes(pair: str) -> None:
    load_recipe(PriorRecipe, f"llm/{pair}", [])
    assert load_recipe(RefinerRecipe, f"rfm/{pair}", []).base.kind == "llm"
