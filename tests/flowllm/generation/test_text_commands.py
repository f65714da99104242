"""score, ipt, infill and mutate: what they compute, write and refuse."""

from __future__ import annotations

import csv
import inspect
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from ase.calculators.calculator import Calculator
from ase.calculators.lj import LennardJones
from click.testing import CliRunner, Result
from pymatgen.core import Lattice, Structure

from flowllm.cli import cli
from flowllm.crystals.io import Crystal, read, write
from flowllm.energy.calculators import load_calculator
from flowllm.energy.minimization import relax
from flowllm.errors import UserError
from flowllm.generation import infilling as infill
from flowllm.generation import mutation as mutate
from flowllm.generation import scoring as likelihood
from llm_prior.infilling import allowed_swaps
from support import SHARED

POTENTIAL = SHARED / "potentials/TensorNet-MatPES-PBE-v2025.1-PES"
COMMANDS: dict[str, tuple[Callable[..., Any], str]] = {
    "score": (likelihood.score, "x"),
    "ipt": (likelihood.ipt, "x"),
    "infill": (infill.infill, "x --mask Na"),
    "mutate": (mutate.mutate, "x -n 1 --out y"),
}
NACL = Structure(
    Lattice.from_parameters(4.02, 4.02, 4.02, 60, 60, 60), ["Na", "Cl"], [[0, 0, 0], [0.5] * 3]
)
ZNS = Structure(
    Lattice.from_parameters(3.85, 3.85, 3.85, 60, 60, 60), ["Zn", "S"], [[0, 0, 0], [0.25] * 3]
)
ARGON = Structure(
    Lattice.cubic(5.4), ["Ar"] * 4, [[0, 0, 0], [0.5, 0.5, 0], [0.5, 0, 0.5], [0, 0.5, 0.5]]
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


def argon() -> Calculator:
    return LennardJones(sigma=3.4, epsilon=0.0104, rc=8.0)


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


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_options_are_the_functions_arguments_with_their_defaults(name: str) -> None:
    function, needed = COMMANDS[name]
    arguments = inspect.signature(function).parameters
    values = cli.commands[name].make_context(name, needed.split()).params
    assert values.keys() == arguments.keys() - {"progress"}
    for key in values:
        default = arguments[key].default
        assert default is inspect.Parameter.empty or values[key] == default, key


def test_score_shows_the_mean_and_writes_a_row_for_each(file: Path, tmp_path: Path) -> None:
    table = tmp_path / "scores.csv"
    result = call("score", file, "--conditions", "formula,band_gap", "--constrain", "--out", table)
    assert result.exit_code == 0, result.output
    rows = list(csv.DictReader(table.read_text().splitlines()))
    assert [row["id"] for row in rows] == ["salt", "blende"]
    values = [float(row["log_likelihood"]) for row in rows]
    error = abs(values[0] - values[1]) / 2  # of the mean of two
    assert f"{sum(values) / 2:.2f} +- {error:.2f} nats per crystal" in result.stdout


def test_one_crystal_has_no_standard_error(file: Path) -> None:
    for command, unit in (("score", "nats per crystal"), ("ipt", "of the mean perplexity")):
        line = call(command, file, "--limit", 1).stdout
        assert unit in line and "(1 crystal" in line
        assert "+-" not in line and "nan" not in line and "crystals" not in line


def test_verbose_may_follow_the_command(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logging.getLogger(), "level", logging.WARNING)
    assert call("ipt", file, "--num-translations", 1, "-v").exit_code == 0
    assert logging.getLogger().level == logging.INFO


def test_ipt_writes_what_it_shows(file: Path, tmp_path: Path) -> None:
    table = tmp_path / "ipt.csv"
    result = call("ipt", file, "--num-translations", 4, "--out", table)
    assert result.exit_code == 0, result.output
    values = [float(row["ipt"]) for row in csv.DictReader(table.read_text().splitlines())]
    assert all(0 < value < 1 for value in values)
    assert f"IPT {sum(values) / 2:.4f}" in result.stdout


def test_infill_keeps_to_the_swap_table(file: Path, tmp_path: Path) -> None:
    salt = write([read(file)[0]], tmp_path / "salt.jsonl")
    table = tmp_path / "infill.csv"
    result = call("infill", salt, "--mask", "Cl", "--swap-table", "--out", table)
    assert result.exit_code == 0, result.output
    rows = list(csv.DictReader(table.read_text().splitlines()))
    assert {row["element"] for row in rows} == allowed_swaps()["Cl"]
    assert sum(float(row["probability"]) for row in rows) == pytest.approx(1)
    assert result.stdout.startswith("salt  NaCl  Cl -> ")


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


def test_argon_relaxes_to_the_known_lattice() -> None:
    # fcc Lennard-Jones crystal: nearest neighbours at 1.09 sigma, so a = 1.09 * sqrt(2) * 3.4.
    found = relax(ARGON, argon(), stress_limit=1e-3)
    assert found.failure is None
    assert found.structure.lattice.a == pytest.approx(1.09 * 2**0.5 * 3.4, rel=0.01)
    assert found.energy_per_atom < 0
    assert ARGON.lattice.a == 5.4
    stopped = relax(ARGON, argon(), stress_limit=1e-3, step_limit=1)
    assert stopped.failure == "relaxation: not converged in 1 steps"


@pytest.mark.skipif(not POTENTIAL.is_dir(), reason="the MatPES potential is not at hand")
def test_rock_salt_relaxes_with_matgl() -> None:
    found = relax(NACL, load_calculator(f"matgl:{POTENTIAL}"))
    # a = 5.69 Angstrom of the conventional cell, PBE.
    assert (4 * found.structure.volume) ** (1 / 3) == pytest.approx(5.69, abs=0.03)


@pytest.mark.parametrize(
    ("potential", "message"),
    [
        ("mace", "write matgl:FOLDER, chgnet or MODULE:FACTORY"),
        ("matgl:no/where", "there is no potential folder no/where"),
        ("no_such_module:make", "No module named 'no_such_module'"),
        ("json:nothing", "has no attribute 'nothing'"),
        ("builtins:dict", "returns no ASE calculator"),
        ("operator:neg", "operator:neg cannot be made: TypeError: .*takes no arguments"),
        ("", "unknown potential ''"),
        (3, "unknown potential 3; write"),
    ],
)
def test_a_potential_that_is_none_is_refused(potential: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_calculator(potential)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("score", "FILE", "--conditions", "colour"), "unknown condition 'colour'"),
        (("score", "FILE", "--conditions", "e_above_hull"), "crystal salt has no e_above_hull"),
        (("score", "FILE", "--out", "FILE"), "exists; choose another name"),
        (("score", "nowhere.cif"), "no such file"),
        (("ipt", "FILE", "--out", "no/folder/x.csv"), "no/folder is no folder"),
        (("infill", "FILE", "--mask", "K"), "K is in no crystal of"),
        (("infill", "FILE", "--mask", "Na", "--swap-table"), "no element for Na"),
        (("infill", "FILE", "--mask", "Xx"), "Xx is in no crystal of"),
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
