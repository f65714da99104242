"""Run folders of refining: crystals of any file, folder or run."""

from __future__ import annotations

import math
import re
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import ase.io
import numpy as np
import pyarrow.parquet as pq
import pytest
from pymatgen.core import Lattice, Structure

import rfm
from flowllm import FlowLLM, RefinementConfig, UserError, run_refinement, run_sampling
from flowllm.crystals.io import Crystal, read, write
from flowllm.generation import sampling_run
from flowllm.generation.sample import SCORE_COLUMNS
from flowllm.hub.locate import BUNDLED_REFINER
from flowllm.runs.outputs import CORE_COLUMNS
from flowllm.runs.records import read_records
from flowllm.runs.sharded import RunFolder
from rfm import Failure, Refinement, Refiner, refining
from run_jobs import contents
from support import same_bits, snapshot

ODD_IDS = ["mp-1", "a b", "a_b", "A_B", "../../etc", ".hidden", "-n", "é", "x" * 300, "1/2", "1_2"]
HEAVY = Crystal(id="Og", structure=Structure(Lattice.cubic(4), ["Og"], [[0, 0, 0]]))
MakeCrystal = Callable[..., Crystal]


@pytest.fixture
def crystals(rough: MakeCrystal) -> list[Crystal]:
    return [rough(name, seed) for seed, name in enumerate(ODD_IDS)]


def test_a_file_is_refined_crystal_by_crystal(tmp_path: Path, crystals: list[Crystal]) -> None:
    file = write(crystals, tmp_path / "in.jsonl")
    again = partial(run_refinement, file, out=tmp_path / "run", device="cpu")
    outcome = again(seed=7, steps=2)
    assert [c.id for c in outcome.crystals] == ODD_IDS
    model = FlowLLM.from_pretrained(device="cpu")
    given = read(file)
    expected = model.refine([c.structure for c in given], seed=7, steps=2)
    for made, known, start in zip(outcome.crystals, expected, given, strict=True):
        assert same_bits(made.structure, known.structure)
        assert made.structure.species == start.structure.species
    for record, start in zip(read_records(RunFolder.open(outcome.folder)), given, strict=True):
        assert same_bits(record.initial_structure, start.structure)
    table = pq.read_table(outcome.folder / "samples.parquet")
    assert table.column_names == list(CORE_COLUMNS)
    assert [c.id for c in read(outcome.folder / "samples.extxyz")] == ODD_IDS
    # Ids may be anything; the names of the CIFs are plain, and as many.
    names = [path.stem for path in (outcome.folder / "cif").iterdir()]
    assert len({name.casefold() for name in names}) == len(ODD_IDS)
    assert {"mp-1", "a_b"} < set(names)
    assert all(re.fullmatch(r"\w[\w.-]{0,120}", name, re.ASCII) for name in names)

    before = snapshot(outcome.folder)
    again(RefinementConfig(seed=7, steps=2))
    again(RefinementConfig(seed=8, steps=2), seed=7)
    assert snapshot(outcome.folder) == before
    for change, message in (({"seed": 8}, "seed is 7 there, 8 here"), ({"steps": 3}, "steps is 2")):
        with pytest.raises(UserError, match=message):
            again(**({"seed": 7, "steps": 2} | change))
    write(crystals[1:], file, overwrite=True)
    with pytest.raises(UserError, match="input is .* there, .* here"):
        again(seed=7, steps=2)
    assert snapshot(outcome.folder) == before


def test_the_crystals_of_a_run_are_refined(tmp_path: Path) -> None:
    made = run_sampling(3, out=tmp_path / "raw", composition="NaCl", refine=False, device="cpu")
    again = partial(run_refinement, made.folder, out=tmp_path / "run", steps=2, device="cpu")
    outcome = again()
    assert [c.id for c in outcome.crystals] == [c.id for c in made.crystals]
    for record, start in zip(
        read_records(RunFolder.open(outcome.folder)), made.crystals, strict=True
    ):
        # The table of a run gives eight decimals.
        assert np.allclose(record.initial_structure.lattice.matrix, start.structure.lattice.matrix)
        assert record.initial_structure.composition == start.structure.composition
    before = snapshot(outcome.folder)
    again()
    assert snapshot(outcome.folder) == before
    with pytest.raises(UserError, match="it is of refine, not of sample"):
        run_sampling(3, out=outcome.folder, device="cpu")


def test_a_refined_run_can_be_refined_again(tmp_path: Path, rough: MakeCrystal) -> None:
    file = write([rough("one"), rough("two", 1)], tmp_path / "in.json")
    refine = partial(run_refinement, steps=1, device="cpu")
    once = refine(file, out=tmp_path / "once")
    twice = refine(once.folder, out=tmp_path / "twice")
    assert [c.id for c in twice.crystals] == ["one", "two"]
    with pytest.raises(UserError, match="input is .* there, .* here"):
        refine(file, out=twice.folder)


def test_the_noise_of_a_crystal_belongs_to_its_place_in_the_file(
    tmp_path: Path, crystals: list[Crystal], monkeypatch: pytest.MonkeyPatch
) -> None:
    places = []

    def record(_: object, structures: list[Structure], **options: Any) -> list[Refinement]:
        places.append((options["seed"], list(options["indices"]), len(structures)))
        return [Refinement(structure=structure) for structure in structures]

    monkeypatch.setattr(sampling_run, "default_batch_size", lambda total: 4)
    monkeypatch.setattr(rfm, "refine", record)
    file = write(crystals, tmp_path / "in.jsonl")
    run_refinement(file, out=tmp_path / "run", seed=7, device="cpu")
    assert places == [(7, [0, 1, 2, 3], 4), (7, [4, 5, 6, 7], 4), (7, [8, 9, 10], 3)]


def test_trajectories_and_scores_come_with_the_run(
    tmp_path: Path, rough: MakeCrystal, monkeypatch: pytest.MonkeyPatch
) -> None:
    quick = partial(refining.batch_log_likelihood, steps=4)
    monkeypatch.setattr(refining, "batch_log_likelihood", quick)
    file = write([rough("one"), rough("a b", 1), HEAVY], tmp_path / "in.json")
    asked: dict[str, Any] = {
        "steps": 4,
        "method": "midpoint",
        "position_slope": 1.0,
        "cell_slope": 0.5,
    }
    again = partial(run_refinement, file, out=tmp_path / "run", device="cpu", **asked)
    outcome = again(trajectory=True, score=True)
    folder = outcome.folder

    table = pq.read_table(folder / "samples.parquet")
    assert table.column_names == [*CORE_COLUMNS, *SCORE_COLUMNS]
    refiner = Refiner.from_pretrained(BUNDLED_REFINER)
    start = [c.structure for c in read(file)][:2]
    integration = refiner.config.integration.but(**asked)
    expected = rfm.refine(refiner, start, score=True, trajectory=True, integration=integration)
    *rows, failed = table.to_pylist()
    for row, known, result in zip(rows, outcome.crystals, expected, strict=True):
        score = result.log_likelihood
        assert score is not None
        assert row["log_likelihood"] == score.total == known.properties["log_likelihood"]
        assert row["log_likelihood_error"] == score.standard_error
        assert row["log_likelihood_per_degree"] == score.total / 9
    assert [failed[name] for name in SCORE_COLUMNS] == [None] * 3

    for name, known, result in zip(("one", "a_b"), outcome.crystals, expected, strict=True):
        frames = ase.io.read(folder / "trajectories" / f"{name}.extxyz", index=":")
        assert [frame.info["t"] for frame in frames] == [0, 0.25, 0.5, 0.75, 1]
        assert np.allclose(frames[-1].cell, known.structure.lattice.matrix, atol=1e-4)
        assert result.trajectory is not None
        first = result.trajectory.frac_coords[0] @ result.trajectory.lattice[0]
        assert np.allclose(frames[0].positions, first, atol=1e-4)
    assert len(list((folder / "trajectories").iterdir())) == 2

    before = contents(folder)
    shutil.rmtree(folder / "trajectories")
    again(trajectory=True, score=True)  # as after a kill before it was written
    assert contents(folder) == before
    after = snapshot(folder)
    for change in ({"score": True}, {"trajectory": True, "score": True, "method": "heun"}):
        with pytest.raises(UserError, match="holds another run"):
            again(**change)
    assert snapshot(folder) == after


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"method": "leapfrog"},
            "method 'leapfrog' is unknown; choose one of euler, midpoint, heun",
        ),
        ({"cell_slope": -1.0}, "cell_slope is -1.0; give a number at least 0"),
        ({"position_slope": math.nan}, "position_slope is nan; give a number at least 0"),
        ({"limit": 0}, "limit is 0; give a whole number at least 1"),
        ({"workers": 0}, "workers is 0; give a whole number at least 1"),
        ({"formula": "NaCl"}, "unknown option 'formula'; known are cell_slope, method"),
    ],
)
def test_an_impossible_request_leaves_no_folder(
    tmp_path: Path, rough: MakeCrystal, change: dict[str, Any], message: str
) -> None:
    file = write([rough("one")], tmp_path / "in.json")
    with pytest.raises(UserError, match=message):
        run_refinement(file, out=tmp_path / "run", device="cpu", **change)
    assert not (tmp_path / "run").exists()


def test_a_folder_of_cifs_is_refined_and_bad_ones_may_be_left_out(
    tmp_path: Path, rough: MakeCrystal
) -> None:
    folder = write([rough("one"), rough("two", 1)], tmp_path / "cifs")
    (folder / "bad.cif").write_text("data_x")
    refine = partial(run_refinement, folder, steps=1, device="cpu")
    with pytest.raises(UserError, match="file bad.cif .id bad.: not a readable CIF"):
        refine(out=tmp_path / "run")
    assert not (tmp_path / "run").exists()
    outcome = refine(out=tmp_path / "run", skip_invalid=True)
    assert [c.id for c in outcome.crystals] == ["one", "two"]
    outcome = refine(out=tmp_path / "first", skip_invalid=True, limit=2)
    assert [c.id for c in outcome.crystals] == ["one"]


def test_failures_are_counted_and_the_rest_is_written(
    tmp_path: Path, rough: MakeCrystal, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write([rough("good"), rough("lost", 1), rough("huge", 2)], tmp_path / "in.json")
    results = [
        Refinement(structure=rough("good").structure),
        Refinement(failure=Failure.NO_CELL),
        Refinement(failure=Failure.BAD_VOLUME),
    ]
    monkeypatch.setattr(rfm, "refine", lambda *_, **__: results)
    outcome = run_refinement(file, out=tmp_path / "run", device="cpu")
    assert [c.id for c in outcome.crystals] == ["good"]
    assert outcome.failures == {"refiner: no_cell": 1, "refiner: bad_volume": 1}
    rows = pq.read_table(outcome.folder / "samples.parquet").to_pylist()
    assert [row["failure"] for row in rows] == [None, "refiner: no_cell", "refiner: bad_volume"]
    # The failed crystals are named by the formula of their initial structure.
    assert [(row["formula"], row["num_atoms"]) for row in rows] == [("TiO", 2)] * 3


def test_a_crystal_larger_than_the_refiner_knows_is_a_bad_row(
    tmp_path: Path, rough: MakeCrystal
) -> None:
    large = Crystal(id="large", structure=rough("x").structure * (11, 1, 1))
    file = write([large, rough("good")], tmp_path / "in.json")
    with pytest.raises(UserError, match="id large.: 22 atoms, over max_atoms=20; .*--skip-invalid"):
        run_refinement(file, out=tmp_path / "run", device="cpu")
    outcome = run_refinement(file, out=tmp_path / "run", steps=1, skip_invalid=True, device="cpu")
    assert [c.id for c in outcome.crystals] == ["good"] and not outcome.failures


def test_an_element_beyond_the_network_fails_alone(tmp_path: Path, rough: MakeCrystal) -> None:
    file = write([HEAVY, rough("good")], tmp_path / "in.json")
    outcome = run_refinement(file, out=tmp_path / "run", steps=1, device="cpu")
    assert [c.id for c in outcome.crystals] == ["good"]
    assert outcome.failures == {"refiner: bad_input": 1}
