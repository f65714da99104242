"""mutate: what it computes, writes and refuses."""

from __future__ import annotations

import inspect
import json
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
from flowllm.generation import mutation as mutate
from llm_prior.swaps import allowed_swaps

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
    """A potential that holds every crystal for relaxed, and knows no sodium."""

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
    assert values.keys() == arguments.keys() - {"progress"}
    for key in values:
        default = arguments[key].default
        assert default is inspect.Parameter.empty or values[key] == default, key


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


def test_a_failed_relaxation_is_recorded_alone(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mutate, "load_calculator", lambda potential, check: Blind())
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
        assert row["proposed"] is not None
    assert {row["parent"] for row in rows} == {"salt", "blende"}
    assert "failed: relaxation: no parameters for Na" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("mutate", "FILE", "-n", 1, "--out", "OUT", "--temperature", -1), "temperature -1"),
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
