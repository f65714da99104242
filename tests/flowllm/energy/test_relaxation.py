"""Relaxation of one crystal, and of many of which some bring their process down."""

from __future__ import annotations

import inspect
import json
import math
from pathlib import Path
from typing import Any

import ase.io
import numpy as np
import pyarrow.parquet as pq
import pytest
from ase import units
from ase.calculators.calculator import Calculator
from ase.calculators.emt import EMT
from click.testing import CliRunner
from pymatgen.core import Lattice, Structure

from flowllm.cli import cli
from flowllm.crystals.crystal import to_atoms
from flowllm.crystals.io import Crystal, read, write
from flowllm.energy import isolated
from flowllm.energy import relaxation as relaxing
from flowllm.energy.calculators import accepted_elements
from flowllm.energy.formation import formation_energy_per_atom, read_references
from flowllm.energy.minimization import RelaxationConfig, relax_structure
from flowllm.energy.relaxation import RelaxedRun, read_relaxed, relax, relax_crystals
from flowllm.errors import UserError
from flowllm.runs.outputs import CORE_COLUMNS, Outcome
from flowllm.runs.sharded import run_job
from flowllm.system.options import specs

# What a potential may do: silver ends the process, gold hangs, palladium has no finite energy.
FAULTY = """
import os, time
from ase.calculators.emt import EMT

class Faulty(EMT):
    def calculate(self, atoms=None, properties=None, system_changes=()):
        symbols = set(atoms.get_chemical_symbols())
        if "Ag" in symbols:
            os._exit(7)
        if "Au" in symbols and len(symbols) == 1:
            time.sleep(600)
        super().calculate(atoms, properties, system_changes)
        if "Pd" in symbols:
            self.results["energy"] = float("nan")
"""


def fcc(symbol: str, a: float) -> Structure:
    side = a / 2**0.5
    return Structure(Lattice.from_parameters(side, side, side, 60, 60, 60), [symbol], [[0, 0, 0]])


def ordered(a: float) -> Structure:
    face = [[0, 0.5, 0.5], [0.5, 0, 0.5], [0.5, 0.5, 0]]
    return Structure(Lattice.cubic(a), ["Pt", "Cu", "Cu", "Cu"], [[0, 0, 0], *face])


EMT_NAME = "ase.calculators.emt:EMT"
CRYSTALS = [
    Crystal(id="copper", structure=fcc("Cu", 3.7)),
    Crystal(id="silver", structure=fcc("Ag", 4.1)),
    Crystal(id="gold", structure=fcc("Au", 4.1)),
    Crystal(id="palladium", structure=fcc("Pd", 3.9)),
    Crystal(id="platinum", structure=fcc("Pt", 4.0)),
    Crystal(id="sodium", structure=fcc("Na", 5.3)),
    Crystal(id="Cu3Pt 1/2", structure=ordered(3.6)),
]


@pytest.fixture(scope="module")
def outcome(tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    folder = tmp_path_factory.mktemp("faulty")
    (folder / "faulty_potential.py").write_text(FAULTY)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        patch.setattr(isolated, "_GRACE", 1.0)
        return relax_crystals(
            CRYSTALS,
            potential="faulty_potential:Faulty",
            out=folder / "run",
            time_limit=3.0,
            trajectories=True,
            progress=False,
        )


@pytest.fixture(scope="module")
def run(outcome: Outcome) -> RelaxedRun:
    return read_relaxed(outcome.folder)


def test_a_crystal_that_hangs_or_ends_its_process_is_recorded_alone(
    outcome: Outcome, run: RelaxedRun
) -> None:
    assert dict(zip(run.ids, run.failures, strict=True)) == {
        "copper": None,
        "silver": "relaxation: its process ended with exit code 7",
        "gold": "relaxation: hung, killed after 4 s",
        "palladium": "relaxation: the energy is not finite",
        "platinum": None,
        "sodium": "relaxation: No EMT-potential for Na",
        "Cu3Pt 1/2": None,
    }
    assert [crystal.id for crystal in outcome.crystals] == ["copper", "platinum", "Cu3Pt 1/2"]
    assert outcome.failures.total() == 4
    rows = pq.read_table(outcome.folder / "samples.parquet").to_pylist()
    assert [row["id"] for row in rows] == list(run.ids)
    assert list(rows[0]) == [
        *CORE_COLUMNS,
        *("energy_per_atom", "initial_energy_per_atom", "steps"),
    ]
    assert [row["structure"] is None for row in rows] == [f is not None for f in run.failures]
    assert len(read(outcome.folder / "samples.extxyz")) == 3
    assert len(list((outcome.folder / "cif").iterdir())) == 3


BATCHED = """
import os
from ase.calculators.emt import EMT
from flowllm.energy.single_points import BatchCalculator, SinglePoint

class Batched(BatchCalculator):
    batch_atoms = 4

    def evaluate(self, batch):
        if any("Ag" in atoms.symbols for atoms in batch):
            os._exit(7)
        points = []
        for atoms in batch:
            atoms = atoms.copy()
            atoms.calc = EMT()
            points.append(
                SinglePoint(atoms.get_potential_energy(), atoms.get_forces(), atoms.get_stress())
            )
        return points
"""


@pytest.mark.parametrize("workers", [1, 2])
def test_a_batch_that_ends_its_process_is_halved_and_loses_one_crystal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    (tmp_path / "batched_potential.py").write_text(BATCHED)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=":")
    monkeypatch.setattr(relaxing, "_shard_size", lambda total, device: 5)
    symbols = ["Cu", "Pt", "Ag", "Pd", "Au", "Cu", "Ni"]
    crystals = [
        Crystal(id=f"{symbol}-{i}", structure=fcc(symbol, 3.9)) for i, symbol in enumerate(symbols)
    ]
    found = relax_crystals(
        crystals,
        potential="batched_potential:Batched",
        out=tmp_path / "run",
        workers=workers,
        progress=False,
    )
    assert found.failures == {"relaxation: its process ended with exit code 7": 1}
    assert [c.id for c in found.crystals] == [c.id for c in crystals if "Ag" not in c.id]
    assert len(list((tmp_path / "run" / "shards").iterdir())) == 2
    for crystal, relaxed in zip(crystals, read_relaxed(tmp_path / "run").structures, strict=True):
        if relaxed is not None:
            assert relaxed == relax_structure(crystal.structure, EMT()).structure


def test_the_relaxed_crystal_is_at_rest_and_lower(run: RelaxedRun) -> None:
    relaxed, initial = run.structures[6], run.initial[6]
    assert relaxed is not None
    assert run.energies_per_atom[6] < run.initial_energies_per_atom[6]
    assert initial.lattice.a == 3.6 != relaxed.lattice.a
    atoms = to_atoms(relaxed)
    atoms.calc = EMT()
    assert np.abs(atoms.get_stress()).max() < 0.5 * units.GPa
    assert atoms.get_potential_energy() / 4 == pytest.approx(run.energies_per_atom[6])


def test_trajectories_lead_from_the_given_to_the_relaxed_crystal(
    outcome: Outcome, run: RelaxedRun
) -> None:
    assert {path.stem for path in (outcome.folder / "trajectories").iterdir()} == {
        *("copper", "platinum", "Cu3Pt_1_2")
    }
    frames = ase.io.read(outcome.folder / "trajectories" / "copper.extxyz", ":")
    assert len(frames) == run.steps[0] + 1
    assert frames[0].cell.volume == pytest.approx(run.initial[0].volume)
    assert frames[-1].cell.volume == pytest.approx(run.structures[0].volume)
    assert frames[-1].get_potential_energy() == pytest.approx(run.energies_per_atom[0])


def test_a_run_on_elements_gives_references_of_its_own(outcome: Outcome, run: RelaxedRun) -> None:
    references = read_references(outcome.folder)
    assert references.energies.keys() == {"Cu", "Pt"}
    assert references.potential == run.potential
    alloy = formation_energy_per_atom(
        run.structures[6], run.energies_per_atom[6], scheme="own", references=references
    )
    copper, platinum = run.energies_per_atom[0], run.energies_per_atom[4]
    assert alloy == pytest.approx(run.energies_per_atom[6] - (3 * copper + platinum) / 4)


def test_a_run_goes_on_with_what_is_missing(tmp_path: Path) -> None:
    def start() -> Outcome:
        return relax_crystals(
            [CRYSTALS[0], CRYSTALS[4]],
            potential="ase.calculators.emt:EMT",
            out=tmp_path / "run",
            workers=2,
            progress=False,
        )

    start()
    shards = [tmp_path / "run" / "shards" / f"0000{i}.jsonl" for i in range(2)]
    before = [path.read_bytes() for path in shards]
    stamp = shards[1].stat().st_mtime_ns
    shards[0].unlink()
    assert len(start().crystals) == 2
    assert [path.read_bytes() for path in shards] == before
    assert shards[1].stat().st_mtime_ns == stamp
    with pytest.raises(UserError, match="holds another run"):
        relax_crystals(CRYSTALS[:1], potential="ase.calculators.emt:EMT", out=tmp_path / "run")


class Slow(Calculator):
    """Never at rest."""

    implemented_properties = ["energy", "forces", "stress"]

    def __init__(self, pressure: float) -> None:
        super().__init__()
        self.pressure = pressure

    def calculate(
        self, atoms: Any = None, properties: Any = None, system_changes: Any = ()
    ) -> None:
        super().calculate(atoms, properties, system_changes)
        stress = np.array([self.pressure] * 3 + [0.0] * 3)
        self.results = {"energy": 1.0, "forces": np.zeros((len(atoms), 3)), "stress": stress}


def test_limits_end_a_relaxation() -> None:
    timed = relax_structure(CRYSTALS[0].structure, Slow(1e-2), time_limit=1e-9)
    assert timed.failure == "relaxation: over the time limit of 1e-09 s"
    assert timed.steps == 0
    assert timed.initial_energy_per_atom == 1.0
    stepped = relax_structure(CRYSTALS[0].structure, Slow(1e-2), step_limit=3)
    assert stepped.failure == "relaxation: not converged in 3 steps"
    # 1e-2 eV/A^3 is 1.6 GPa.
    assert relax_structure(CRYSTALS[0].structure, Slow(1e-2), stress_limit=1.7).failure is None


def test_a_cell_that_explodes_is_stopped() -> None:
    exploded = relax_structure(CRYSTALS[0].structure, Slow(-10.0), step_limit=10000)
    assert exploded.failure is not None
    assert "A^3 an atom" in exploded.failure


def test_the_command_has_the_functions_arguments(tmp_path: Path) -> None:
    arguments = inspect.signature(relax).parameters
    values = cli.commands["relax"].make_context("relax", ["x", "--out", "y"]).params
    own = arguments.keys() - {"progress", "config", "options"}
    assert values.keys() == own | specs(RelaxationConfig).keys()
    for key in values:
        default = arguments[key].default if key in own else None
        assert default is inspect.Parameter.empty or values[key] in (None, default), key


def test_the_command_reports_what_failed(tmp_path: Path) -> None:
    file = write([CRYSTALS[0], CRYSTALS[5]], tmp_path / "two.jsonl")
    command = ["relax", str(file), "--potential", "ase.calculators.emt:EMT"]
    result = CliRunner().invoke(cli, [*command, "--out", str(tmp_path / "run")])
    assert result.exit_code == 1, result.output
    assert "1 of 2 crystals in" in result.stdout
    assert "failed: relaxation: No EMT-potential for Na 1" in result.stderr
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())["run"]
    assert manifest["energy_scheme"] == "own"
    assert manifest["potential"] == {"name": "ase.calculators.emt:EMT"}


@pytest.mark.parametrize("name", ["force_limit", "stress_limit", "step_limit", "time_limit"])
@pytest.mark.parametrize("value", [0, -1, math.nan])
def test_a_limit_that_is_none_is_refused(tmp_path: Path, name: str, value: float) -> None:
    with pytest.raises(UserError, match=f"{name} is {value}"):
        relax_crystals(CRYSTALS, out=tmp_path / "run", **{name: value})


def test_an_element_that_the_potential_cannot_compute_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    copper = frozenset({"Cu"})
    monkeypatch.setattr(isolated, "accepted_elements", lambda name: copper)
    monkeypatch.setattr("flowllm.energy.elements.known_elements", lambda name: copper)
    crystals = [
        Crystal(id="copper", structure=fcc("Cu", 3.7)),
        Crystal(id="lawrencium", structure=fcc("Lr", 5.0)),
    ]
    file = write(crystals, tmp_path / "two.json")
    with caplog.at_level("WARNING"):
        found = relax(file, out=tmp_path / "out", potential=EMT_NAME, progress=False)
    assert [crystal.id for crystal in found.crystals] == ["copper"]
    assert found.failures == {f"relaxation: {EMT_NAME} does not know Lr": 1}
    assert f"1 of 2 crystals hold elements that {EMT_NAME} has not learnt (Lr)" in caplog.text


@pytest.mark.parametrize(
    ("potential", "inside", "outside"), [("chgnet", "Po", "Lr"), ("chgnet", "Pu", "Am")]
)
def test_potentials_tell_what_they_compute(potential: str, inside: str, outside: str) -> None:
    accepted = accepted_elements(potential)
    assert accepted is not None and inside in accepted and outside not in accepted
    assert accepted_elements(EMT_NAME) is None


def test_no_crystals_and_repeated_ids_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no crystals to relax"):
        relax_crystals([], out=tmp_path / "run")
    with pytest.raises(UserError, match="the id 'copper' occurs twice"):
        relax_crystals([CRYSTALS[0], CRYSTALS[0]], out=tmp_path / "run")


def test_another_run_is_no_relaxed_one(tmp_path: Path) -> None:
    run_job(tmp_path / "run", manifest={}, total=0, batch_size=1, work=lambda *_: [])
    with pytest.raises(UserError, match="is no run of flowllm relax"):
        read_relaxed(tmp_path / "run")
    with pytest.raises(UserError, match="is no finished run of flowllm relax"):
        read_references(tmp_path / "run")


KILLED = """
import os, pathlib, signal
from ase.calculators.emt import EMT

class Killed(EMT):
    def calculate(self, atoms=None, properties=None, system_changes=()):
        marker = pathlib.Path(os.environ["MARKER"])
        if "Ag" in atoms.symbols or ("Ni" in atoms.symbols and not marker.exists()):
            marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        super().calculate(atoms, properties, system_changes)
"""


def test_a_crystal_fails_if_it_is_killed_twice_and_not_by_one_kill(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "killed_potential.py").write_text(KILLED)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=":")
    monkeypatch.setenv("MARKER", str(tmp_path / "marker"))
    crystals = [Crystal(id=symbol, structure=fcc(symbol, 3.9)) for symbol in ("Cu", "Ni", "Ag")]
    found = relax_crystals(
        crystals, potential="killed_potential:Killed", out=tmp_path / "run", progress=False
    )
    assert (tmp_path / "marker").exists()
    assert found.failures == {"relaxation: its process was killed by SIGKILL": 1}
    assert [crystal.id for crystal in found.crystals] == ["Cu", "Ni"]
