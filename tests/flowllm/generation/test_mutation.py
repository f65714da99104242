"""mutate: its draws, files and refusals."""

from __future__ import annotations

import inspect
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from ase.calculators.calculator import Calculator
from click.testing import CliRunner, Result
from pymatgen.core import Lattice, Structure

from flowllm.cli import cli
from flowllm.crystals.io import Crystal, read, write
from flowllm.energy import calculators
from flowllm.generation import mutation as mutate
from flowllm.generation.mutation import MutationConfig
from flowllm.system.options import specs
from llm_prior.infilling import allowed_swaps

NACL = Structure(
    Lattice.from_parameters(4.02, 4.02, 4.02, 60, 60, 60), ["Na", "Cl"], [[0, 0, 0], [0.5] * 3]
)
ZNS = Structure(
    Lattice.from_parameters(3.85, 3.85, 3.85, 60, 60, 60), ["Zn", "S"], [[0, 0, 0], [0.25] * 3]
)


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    crystals = [
        Crystal(id="salt", structure=NACL, properties={"band_gap": 5.0}),
        Crystal(id="blende", structure=ZNS, properties={"band_gap": 2.0}),
    ]
    return write(crystals, tmp_path_factory.mktemp("files") / "two.jsonl")


def call(*arguments: object) -> Result:
    return CliRunner().invoke(cli, [str(a) for a in arguments], prog_name="flowllm")


class Blind(Calculator):
    """A potential that takes every crystal for relaxed, and has no parameters for sodium."""

    implemented_properties = ["energy", "forces", "stress"]

    def calculate(
        self, atoms: Any = None, properties: Any = None, system_changes: Any = ()
    ) -> None:
        super().calculate(atoms, properties, system_changes)
        if "Na" in atoms.get_chemical_symbols():
            raise ValueError("no parameters for Na")
        self.results = {"energy": -1.0, "forces": np.zeros((len(atoms), 3)), "stress": np.zeros(6)}


def test_options_are_the_functions_arguments_with_their_defaults() -> None:
    arguments = inspect.signature(mutate.mutate).parameters
    values = cli.commands["mutate"].make_context("mutate", ["x", "-n", "1", "--out", "y"]).params
    own = arguments.keys() - {"progress", "config", "options"}
    assert values.keys() == own | specs(MutationConfig).keys()
    for key in values:
        default = arguments[key].default if key in own else None
        assert default is inspect.Parameter.empty or values[key] in (None, default), key


@pytest.mark.parametrize("method", ["llm", "uniform"])
def test_mutations_change_one_element_and_nothing_else(
    file: Path, tmp_path: Path, method: str
) -> None:
    out = tmp_path / "run"
    command = ("mutate", file, "-n", 20, "--method", method, "--seed", 3, "--out", out)
    result = call(*command)
    assert result.exit_code == 0, result.output
    parents = {crystal.id: crystal.structure for crystal in read(file)}
    rows = pq.read_table(out / "samples.parquet").to_pylist()
    assert len({row["id"] for row in rows}) == 20
    for row in rows:
        parent = parents[row["parent"]]
        child = Structure.from_str(row["structure"], fmt="json")
        old, new = row["swap"].split("->")
        assert child.lattice == parent.lattice
        assert (child.frac_coords == parent.frac_coords).all()
        expected = [new if s.specie.symbol == old else s.specie.symbol for s in parent]
        assert [site.specie.symbol for site in child] == expected
        assert new in allowed_swaps()[old]
        if method == "uniform":
            others = allowed_swaps()[old] - {e.symbol for e in parent.composition.elements}
            assert row["probability"] == pytest.approx(1 / len(others))
    frame = read(out / "samples.extxyz")[0]
    assert frame.properties["swap"] == rows[0]["swap"]
    assert len(list((out / "cif").iterdir())) == 20

    # The second shard is lost, as by a kill before it was written: it comes back as it was.
    lost = out / "shards" / "00001.jsonl"
    before = lost.read_bytes()
    lost.unlink()
    assert call(*command).exit_code == 0
    assert lost.read_bytes() == before


@pytest.mark.parametrize("method", ["llm", "uniform"])
def test_a_mutation_depends_on_its_index_and_not_on_the_batch(
    file: Path, tmp_path: Path, method: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def swaps(n: int, name: str) -> list[tuple[Any, ...]]:
        outcome = mutate.mutate(file, n, out=tmp_path / name, method=method, seed=4, device="cpu")
        return [(c.properties["parent"], c.properties["swap"]) for c in outcome.crystals]

    whole = swaps(20, "whole")
    assert len(set(whole)) > 3
    monkeypatch.setattr(mutate, "_BATCH_SIZE", 3)
    assert swaps(20, "small") == whole
    assert swaps(7, "few") == whole[:7]


def test_too_few_different_swaps_are_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    # Na has no partner of its size, and Cl only N: all eight are NaN, sodium nitride.
    salt = write([Crystal(id="salt", structure=NACL)], tmp_path / "salt.jsonl")
    asked: dict[str, Any] = {"method": "uniform", "progress": False}
    outcome = mutate.mutate(salt, 8, out=tmp_path / "many", **asked)
    assert {c.properties["swap"] for c in outcome.crystals} == {"Cl->N"}
    (message,) = caplog.messages
    assert message == (
        f"the crystals of {salt} allow 1 different swaps (none for Na), so that some of the 8 "
        "mutations are repeated; give more crystals or leave the swap table out (--no-swap-table)"
    )
    caplog.clear()
    mutate.mutate(salt, 1, out=tmp_path / "one", **asked)
    assert not caplog.messages


def test_a_run_is_relaxed_crystal_by_crystal(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calculators, "load_calculator", lambda potential, check: Blind())
    monkeypatch.setattr(calculators, "potential_identity", lambda potential: {"name": potential})
    config = MutationConfig(method="uniform", potential="CHGNet")
    mutate.mutate(file, 5, config, out=tmp_path / "run", progress=False)
    assert len(list((tmp_path / "run" / "shards").iterdir())) == 5
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())["run"]
    assert manifest["potential"] == {"name": "chgnet"}


def test_settings_can_be_checked_without_torch() -> None:
    code = """
import sys
from flowllm.generation.mutation import MutationConfig
try:
    MutationConfig(potential="no potential")
except ValueError as error:
    assert "unknown potential" in str(error)
assert not {"torch", "transformers", "chgnet"} & sys.modules.keys()
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_failed_relaxation_is_recorded_alone(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calculators, "load_calculator", lambda potential, check: Blind())
    result = call(
        *("mutate", file, "-n", 12, "--method", "uniform"),
        *("--potential", "blind:Blind", "--out", tmp_path / "run"),
    )
    assert result.exit_code == 1
    rows = pq.read_table(tmp_path / "run" / "samples.parquet").to_pylist()
    for row in rows:
        failed = row["parent"] == "salt"
        assert (row["structure"] is None) == failed
        assert row["failure"] == ("relaxation: no parameters for Na" if failed else None)
        assert row["initial_structure"] is not None
    assert {row["parent"] for row in rows} == {"salt", "blende"}
    assert "failed: relaxation: no parameters for Na" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("mutate", "FILE", "-n", 1, "--out", "OUT", "--temperature", -1), "temperature is -1"),
        (("mutate", "FILE", "-n", 0, "--out", "OUT"), "n is 0; give a whole number at least 1"),
        (("mutate", "nowhere.cif", "-n", 1, "--out", "OUT"), "nowhere.cif: no such file"),
        (("mutate", "FILE", "-n", 1, "--out", "FILE"), "is a file; choose a new folder"),
        (
            ("mutate", "FILE", "-n", 1, "--out", "OUT", "--method", "uniform", "--no-swap-table"),
            "method uniform draws from the swap table",
        ),
        (("mutate", "FILE", "-n", 1, "--out", "OUT", "--potential", "x"), "unknown potential 'x'"),
    ],
)
def test_a_mistake_is_one_line(
    file: Path, tmp_path: Path, arguments: tuple[object, ...], message: str
) -> None:
    places = {"FILE": file, "OUT": tmp_path / "run"}
    result = call(*(places.get(word, word) for word in arguments))
    assert result.exit_code == 2, result.output
    assert message in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert not result.stdout


def test_a_run_of_other_arguments_is_left_alone(file: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    command = ("mutate", file, "-n", 2, "--method", "uniform", "--out", out)
    assert call(*command).exit_code == 0
    result = call(*command, "--seed", 1)
    assert result.exit_code == 2
    assert "holds another run" in result.stderr
    assert json.loads((out / "manifest.json").read_text())["run"]["seed"] == 0
