"""Run folders of `sample` and `refine`: whole, exact, repeatable, never overwritten."""

from __future__ import annotations

import json
import math
import re
import shutil
from collections import Counter, deque
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import ase.io
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from pymatgen.core import Lattice, Structure
from safetensors.torch import load_file

import rfm
from flowllm import FlowLLM, Sample, UserError
from flowllm.crystals.io import Crystal, read, write
from flowllm.generation import sampling_run as runs
from flowllm.generation.sample import SCORE_COLUMNS
from flowllm.generation.sampling_run import Outcome, refine, sample
from flowllm.hub.locate import BUNDLED_PRIOR, BUNDLED_REFINER
from flowllm.runs.sharded import RunFolder
from flowllm.system.files import sha256_folder
from flowllm.system.versions import versions
from llm_prior import PriorError, proposals
from llm_prior.proposals import Question
from rfm import Failure, Refinement, Refiner, RefinerError, refining

ASKED = {"formula": "NaCl", "refine": True, "seed": 3, "steps": 3, "batch_size": 2}
Run = tuple[Outcome, Callable[..., Outcome]]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A finished run of sampling, and how to ask for it again."""
    again = partial(sample, 5, out=tmp_path_factory.mktemp("sample") / "run", device="cpu", **ASKED)
    return again(), again


def contents(folder: Path) -> dict[str, tuple[bytes, int]]:
    return {
        str(path.relative_to(folder)): (path.read_bytes(), path.stat().st_mtime_ns)
        for path in folder.rglob("*")
        if path.is_file()
    }


def file_bytes(folder: Path) -> dict[str, bytes]:
    return {name: data for name, (data, _) in contents(folder).items()}


def crystal(name: str, seed: int = 0) -> Crystal:
    rng = np.random.default_rng(seed)
    lattice = Lattice.from_parameters(*rng.uniform(4, 6, 3), *rng.uniform(80, 100, 3))
    return Crystal(id=name, structure=Structure(lattice, ["Ti", "O"], rng.random((2, 3))))


def same_bits(one: Structure, two: Structure) -> bool:
    return (
        one.species == two.species
        and one.lattice.matrix.tobytes() == two.lattice.matrix.tobytes()
        and one.frac_coords.tobytes() == two.frac_coords.tobytes()
    )


# --- sampling ------------------------------------------------------------------------------------


def test_the_manifest_says_what_was_asked_of_which_models(run: Run) -> None:
    outcome, _ = run
    manifest = json.loads((outcome.folder / "manifest.json").read_text())
    assert manifest["run"] == {
        "command": "sample",
        "prior": {"name": "prior", "sha256": sha256_folder(BUNDLED_PRIOR)},
        "refiner": {"name": "refiner", "sha256": sha256_folder(BUNDLED_REFINER)},
        "device": "cpu",
        "conditions": {"formula": "NaCl"},
        "refine": True,
        "seed": 3,
        "temperature": 0.7,
        "top_p": 0.9,
        "max_attempts": 10,
        "constrain": True,
        "exclude_elements": [],
        "novel_to": [],
        "best_of": 1,
        "rank": "prior",
        "steps": 3,
        **dict.fromkeys(("potential", "method", "position_slope", "cell_slope")),
        "trajectory": False,
        "score": False,
        "total": 5,
        "batch_size": 2,
        "niggli_tolerance": 1e-5,
    }
    folders = {"prior": BUNDLED_PRIOR, "refiner": BUNDLED_REFINER}
    parameters = {  # tied weights are in the file once
        name: sum(w.numel() for w in load_file(folder / "model.safetensors").values())
        for name, folder in folders.items()
    }
    assert manifest["info"] == {**versions(), "parameters": parameters}


def test_n_asked_for_gives_n_ids(run: Run) -> None:
    outcome, _ = run
    samples = [Sample.from_record(r) for r in RunFolder.open(outcome.folder).records()]
    assert [s.id for s in samples] == [f"sample-{i:05d}" for i in range(5)]
    made = [s for s in samples if s.structure is not None]
    assert len(made) >= 2
    assert [c.id for c in outcome.crystals] == [s.id for s in made]
    assert outcome.failures == Counter(s.failure for s in samples if s.failure)
    assert len(made) + outcome.failures.total() == 5
    for known, kept in zip(outcome.crystals, made, strict=True):
        assert same_bits(known.structure, kept.structure)


def test_every_file_holds_the_crystals(run: Run) -> None:
    outcome, _ = run
    for name in ("samples.extxyz", "cif"):
        found = read(outcome.folder / name, reduce=False)
        assert [c.id for c in found] == [c.id for c in outcome.crystals]
        for there, known in zip(found, outcome.crystals, strict=True):
            assert there.structure.composition == known.structure.composition
            assert np.allclose(there.structure.lattice.abc, known.structure.lattice.abc, atol=1e-6)
    assert sorted(p.name for p in (outcome.folder / "cif").iterdir()) == [
        f"{c.id}.cif" for c in outcome.crystals
    ]
    # The table can be read as crystals too: the failed ones are its bad rows.
    table = read(outcome.folder / "samples.parquet", skip_invalid=True)
    assert [c.id for c in table] == [c.id for c in outcome.crystals]


COLUMNS = ["id", "formula", "num_atoms", "cif", "structure", "prior_structure", "prompt", "text"]
COLUMNS += ["attempts", "rejects", "failure"]


def test_the_table_is_what_the_shards_hold(run: Run) -> None:
    outcome, _ = run
    table = pq.read_table(outcome.folder / "samples.parquet")
    assert table.column_names == COLUMNS
    records = list(RunFolder.open(outcome.folder).records())
    for row, record in zip(table.to_pylist(), records, strict=True):
        known = Sample.from_record(record)
        for name in ("id", "prompt", "text", "attempts", "failure"):
            assert row[name] == record[name]
        assert json.loads(row["rejects"]) == record["rejects"]
        for name in ("structure", "prior_structure"):
            structure = getattr(known, name)
            if structure is None:
                assert row[name] is None
            else:
                assert same_bits(Structure.from_str(row[name], fmt="json"), structure)
        if known.structure is not None:
            assert (row["formula"], row["num_atoms"]) == ("NaCl", len(known.structure))
            assert row["cif"] == (outcome.folder / "cif" / f"{known.id}.cif").read_text()


def test_a_finished_run_gives_its_result_again_and_changes_no_byte(run: Run) -> None:
    outcome, again = run
    before = contents(outcome.folder)
    repeated = again(formula="Cl3Na3", workers=2)  # says the same; the number of workers is free
    assert contents(outcome.folder) == before
    assert [c.id for c in repeated.crystals] == [c.id for c in outcome.crystals]
    assert repeated.failures == outcome.failures


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": 4}, "seed is 3 there, 4 here"),
        ({"formula": "KCl"}, 'conditions.formula is "NaCl" there, "KCl" here'),
        ({"num_atoms": 2}, 'conditions.num_atoms is not given there, "2" here'),
        ({"steps": 4}, "steps is 3 there, 4 here"),
        ({"refine": False, "steps": None}, "refine is true there, false here"),
        ({"temperature": 1.0}, "temperature is 0.7 there, 1.0 here"),
        ({"batch_size": 3}, "batch_size is 2 there, 3 here"),
    ],
)
def test_another_run_is_refused_and_nothing_is_overwritten(
    run: Run, change: dict[str, Any], message: str
) -> None:
    outcome, again = run
    before = contents(outcome.folder)
    with pytest.raises(UserError, match=f"holds another run .*{message}"):
        again(**change)
    assert contents(outcome.folder) == before


def test_another_model_is_another_run(run: Run, tmp_path: Path) -> None:
    outcome, again = run
    refiner = Path(shutil.copytree(BUNDLED_REFINER, tmp_path / "refiner"))
    before = contents(outcome.folder)
    again(refiner=refiner)  # the same content elsewhere is the same model
    with open(refiner / "config.json", "a") as file:
        file.write("\n")
    with pytest.raises(UserError, match=r'refiner is "refiner" \w{8} there, "refiner" \w{8} h'):
        again(refiner=refiner)
    assert contents(outcome.folder) == before


def test_the_result_is_that_of_the_model_in_memory(run: Run) -> None:
    outcome, _ = run
    samples = FlowLLM.from_pretrained(device="cpu").sample(5, **ASKED)
    records = list(RunFolder.open(outcome.folder).records())
    assert json.loads(json.dumps([s.to_record() for s in samples])) == records


def test_workers_and_restarts_do_not_change_a_byte(run: Run, tmp_path: Path) -> None:
    outcome, again = run
    out = tmp_path / "run"
    again(out=out)  # by this process
    shutil.rmtree(out / "cif")
    for name in ("shards/00000.jsonl", "shards/00002.jsonl", "samples.parquet", "samples.extxyz"):
        (out / name).unlink()
    again(out=out, workers=2)  # by two others
    assert file_bytes(out) == file_bytes(outcome.folder)


def test_the_language_model_alone_names_no_refiner(tmp_path: Path) -> None:
    outcome = sample(1, out=tmp_path / "run", formula="NaCl", device="cpu")
    assert RunFolder.open(outcome.folder).run["refiner"] is None
    (record,) = RunFolder.open(outcome.folder).records()
    assert record["structure"] == record["prior_structure"]


def no_crystals(_: object, queue: deque[Question], **__: Any) -> Iterator[tuple[int, str, bool]]:
    """In place of the prior."""
    while queue:
        yield queue.popleft().place, "none", True


def test_a_run_without_a_crystal_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proposals, "generate_texts", no_crystals)
    outcome = sample(3, out=tmp_path / "run", max_attempts=2, device="cpu")
    assert (outcome.crystals, outcome.failures) == ([], {"prior: line_count": 3})
    assert sorted(p.name for p in outcome.folder.iterdir()) == [
        ".lock",
        "manifest.json",
        "samples.parquet",
        "shards",
    ]
    table = pq.read_table(outcome.folder / "samples.parquet")
    assert table.column_names == COLUMNS
    assert table["failure"].to_pylist() == ["prior: line_count"] * 3
    assert table["rejects"].to_pylist() == ['{"line_count": 2}'] * 3
    assert sample(3, out=tmp_path / "run", max_attempts=2, device="cpu") == outcome


def test_an_empty_run_is_a_run(tmp_path: Path) -> None:
    outcome = sample(0, out=tmp_path / "run", device="cpu")
    assert (outcome.crystals, outcome.failures) == ([], Counter())
    assert pq.read_table(outcome.folder / "samples.parquet").column_names == COLUMNS


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ({"n": -1}, "total is -1; give 0 or more"),
        ({"batch_size": 0}, "batch_size is 0; give 1 or more"),
        ({"workers": 0}, "workers is 0; give 1 or more"),
        ({"seed": -1}, "seed -1 is negative"),
        ({"temperature": math.nan}, "temperature nan is no number"),
        ({"top_p": math.inf}, "top_p inf is not in"),
        ({"refiner": "x"}, "a refiner is given and not used; ask for refine as well"),
        ({"steps": 3}, "steps is a setting of the refiner; ask for refine as well"),
        ({"steps": 0, "refine": True}, "steps"),
        ({"formula": "Na11Cl10"}, "formula Na11Cl10 has 21 atoms"),
        ({"device": "tpu"}, "unknown device 'tpu'"),
        ({"prior": "./nowhere"}, "there is no model folder ./nowhere"),
    ],
)
def test_an_impossible_request_leaves_the_folder_free(
    tmp_path: Path, request_: dict[str, Any], message: str
) -> None:
    with pytest.raises((UserError, PriorError, RefinerError), match=message):
        sample(**({"n": 1, "out": tmp_path / "run", "device": "cpu"} | request_))
    made = {path.name for path in (tmp_path / "run").rglob("*")}
    assert made <= {".lock"}


def test_a_run_that_failed_before_its_first_shard_can_be_mended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise torch.OutOfMemoryError("the device is full")

    with monkeypatch.context() as patch:
        patch.setattr(FlowLLM, "sample_batch", full)
        with pytest.raises(torch.OutOfMemoryError):
            sample(3, out=tmp_path / "run", batch_size=3, device="cpu")
    assert len(sample(3, out=tmp_path / "run", batch_size=1, device="cpu").crystals) <= 3
    # From the first shard on the folder is the run's.
    shutil.rmtree(tmp_path / "run" / "cif", ignore_errors=True)
    (tmp_path / "run" / "shards" / "00002.jsonl").unlink()
    monkeypatch.setattr(FlowLLM, "sample_batch", full)
    with pytest.raises(torch.OutOfMemoryError):
        sample(3, out=tmp_path / "run", batch_size=1, device="cpu")
    with pytest.raises(UserError, match="holds another run"):
        sample(3, out=tmp_path / "run", batch_size=3, device="cpu")


# --- refining ------------------------------------------------------------------------------------

ODD_IDS = ["mp-1", "a b", "a_b", "A_B", "../../etc", ".hidden", "-n", "é", "x" * 300, "1/2", "1_2"]


@pytest.fixture(scope="module")
def crystals() -> list[Crystal]:
    return [crystal(name, seed) for seed, name in enumerate(ODD_IDS)]


def test_a_file_is_refined_crystal_by_crystal(tmp_path: Path, crystals: list[Crystal]) -> None:
    file = write(crystals, tmp_path / "in.jsonl")
    outcome = refine(file, out=tmp_path / "run", seed=7, steps=2, device="cpu")
    assert [c.id for c in outcome.crystals] == ODD_IDS
    model = FlowLLM.from_pretrained(device="cpu")
    given = read(file)
    expected = model.refine([c.structure for c in given], seed=7, steps=2)
    for made, known, start in zip(outcome.crystals, expected, given, strict=True):
        assert same_bits(made.structure, known.structure)
        assert made.structure.species == start.structure.species
    for record, start in zip(RunFolder.open(outcome.folder).records(), given, strict=True):
        assert same_bits(Sample.from_record(record).prior_structure, start.structure)
    assert [c.id for c in read(outcome.folder / "samples.extxyz")] == ODD_IDS
    # Ids may be anything; the names of the CIFs are plain, and as many.
    names = [path.stem for path in (outcome.folder / "cif").iterdir()]
    assert len({name.casefold() for name in names}) == len(ODD_IDS)
    assert {"mp-1", "a_b"} < set(names)
    assert all(re.fullmatch(r"\w[\w.-]{0,120}", name, re.ASCII) for name in names)

    before = contents(outcome.folder)
    refine(file, out=tmp_path / "run", seed=7, steps=2, device="cpu")
    assert contents(outcome.folder) == before
    for change, message in (({"seed": 8}, "seed is 7 there, 8 here"), ({"steps": 3}, "steps is 2")):
        with pytest.raises(UserError, match=message):
            refine(**({"file": file, "out": tmp_path / "run", "seed": 7, "steps": 2} | change))
    write(crystals[1:], file, overwrite=True)
    with pytest.raises(UserError, match="input is .* there, .* here"):
        refine(file, out=tmp_path / "run", seed=7, steps=2)
    assert contents(outcome.folder) == before


def test_the_noise_of_a_crystal_is_that_of_its_place_in_the_file(
    tmp_path: Path, crystals: list[Crystal], monkeypatch: pytest.MonkeyPatch
) -> None:
    places = []

    def record(_: object, structures: list[Structure], **options: Any) -> list[Refinement]:
        places.append((options["seed"], options["first_index"], len(structures)))
        return [Refinement(structure=structure) for structure in structures]

    monkeypatch.setattr(runs, "BATCH_SIZE", 4)
    monkeypatch.setattr(runs, "refine_structures", record)
    refine(write(crystals, tmp_path / "in.jsonl"), out=tmp_path / "run", seed=7, device="cpu")
    assert places == [(7, 0, 4), (7, 4, 4), (7, 8, 3)]


def test_trajectories_and_scores_come_with_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quick = partial(refining.batch_log_likelihood, steps=4)
    monkeypatch.setattr(refining, "batch_log_likelihood", quick)
    given = [crystal("one"), crystal("a b", 1)]
    heavy = Crystal(id="Og", structure=Structure(Lattice.cubic(4), ["Og"], [[0, 0, 0]]))
    file = write([*given, heavy], tmp_path / "in.json")
    asked = {"steps": 4, "method": "midpoint", "position_slope": 1.0, "cell_slope": 0.5}
    again = partial(refine, file, out=tmp_path / "run", device="cpu", **asked)
    outcome = again(trajectory=True, score=True)
    folder = outcome.folder

    table = pq.read_table(folder / "samples.parquet")
    assert table.column_names == [*COLUMNS, *SCORE_COLUMNS]
    refiner = Refiner.from_pretrained(BUNDLED_REFINER)
    start = [c.structure for c in read(file)][:2]
    expected = rfm.refine(refiner, start, score=True, trajectory=True, **asked)
    *rows, failed = table.to_pylist()
    for row, known, result in zip(rows, outcome.crystals, expected, strict=True):
        score = result.log_likelihood
        assert row["log_likelihood"] == score.total == known.properties["log_likelihood"]
        assert row["log_likelihood_error"] == score.standard_error
        assert row["log_likelihood_per_degree"] == score.total / 9
    assert [failed[name] for name in SCORE_COLUMNS] == [None] * 3

    for name, known, result in zip(("one", "a_b"), outcome.crystals, expected, strict=True):
        frames = ase.io.read(folder / "trajectories" / f"{name}.extxyz", index=":")
        assert [frame.info["t"] for frame in frames] == [0, 0.25, 0.5, 0.75, 1]
        assert np.allclose(frames[-1].cell, known.structure.lattice.matrix, atol=1e-4)
        first = result.trajectory.frac_coords[0] @ result.trajectory.lattice[0]
        assert np.allclose(frames[0].positions, first, atol=1e-4)
    assert len(list((folder / "trajectories").iterdir())) == 2

    before = contents(folder)
    shutil.rmtree(folder / "trajectories")
    again(trajectory=True, score=True)  # as after a kill before it was written
    after = contents(folder)
    assert {name: data for name, (data, _) in after.items()} == {
        name: data for name, (data, _) in before.items()
    }
    for change in ({"score": True}, {"trajectory": True, "score": True, "method": "heun"}):
        with pytest.raises(UserError, match="holds another run"):
            again(**change)
    assert contents(folder) == after


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"method": "leapfrog"}, "unknown integration method 'leapfrog'; choose one of euler, mid"),
        ({"cell_slope": -1.0}, "cell_slope is -1.0; it must be 0 or positive"),
        ({"position_slope": math.nan}, "position_slope is nan"),
    ],
)
def test_an_impossible_integration_leaves_no_folder(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    file = write([crystal("one")], tmp_path / "in.json")
    with pytest.raises(RefinerError, match=message):
        refine(file, out=tmp_path / "run", device="cpu", **change)
    assert not (tmp_path / "run").exists()


def test_a_folder_of_cifs_is_refined_and_bad_ones_may_be_left_out(tmp_path: Path) -> None:
    folder = write([crystal("one"), crystal("two", 1)], tmp_path / "cifs")
    (folder / "bad.cif").write_text("data_x")
    with pytest.raises(UserError, match="file bad.cif .id bad.: not a readable CIF"):
        refine(folder, out=tmp_path / "run", steps=1, device="cpu")
    assert not (tmp_path / "run").exists()
    outcome = refine(folder, out=tmp_path / "run", steps=1, skip_invalid=True, device="cpu")
    assert [c.id for c in outcome.crystals] == ["one", "two"]


def test_what_cannot_be_refined_is_counted_and_the_rest_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write([crystal("good"), crystal("lost", 1), crystal("huge", 2)], tmp_path / "in.json")
    results = [
        Refinement(structure=crystal("good").structure),
        Refinement(failure=Failure.NO_CELL),
        Refinement(failure=Failure.BAD_VOLUME),
    ]
    monkeypatch.setattr(runs, "refine_structures", lambda *_, **__: results)
    outcome = refine(file, out=tmp_path / "run", device="cpu")
    assert [c.id for c in outcome.crystals] == ["good"]
    assert outcome.failures == {"refiner: no_cell": 1, "refiner: bad_volume": 1}
    rows = pq.read_table(outcome.folder / "samples.parquet").to_pylist()
    assert [row["failure"] for row in rows] == [None, "refiner: no_cell", "refiner: bad_volume"]


def test_a_crystal_larger_than_the_refiner_knows_is_a_bad_row(tmp_path: Path) -> None:
    large = Crystal(id="large", structure=crystal("x").structure * (11, 1, 1))
    file = write([large, crystal("good")], tmp_path / "in.json")
    with pytest.raises(UserError, match="id large.: 22 atoms, over max_atoms=20; .*--skip-invalid"):
        refine(file, out=tmp_path / "run", device="cpu")
    outcome = refine(file, out=tmp_path / "run", steps=1, skip_invalid=True, device="cpu")
    assert [c.id for c in outcome.crystals] == ["good"] and not outcome.failures
    with pytest.raises(UserError, match=f"it is a run folder, give {tmp_path / 'run' / 'cif'}"):
        refine(tmp_path / "run", out=tmp_path / "again", device="cpu")


def test_an_element_beyond_the_network_fails_alone(tmp_path: Path) -> None:
    heavy = Crystal(id="Og", structure=Structure(Lattice.cubic(4), ["Og"], [[0, 0, 0]]))
    file = write([heavy, crystal("good")], tmp_path / "in.json")
    outcome = refine(file, out=tmp_path / "run", steps=1, device="cpu")
    assert [c.id for c in outcome.crystals] == ["good"]
    assert outcome.failures == {"refiner: bad_input": 1}


def test_an_element_that_the_refiner_does_not_know_is_refused_before_the_folder_is_claimed(
    tmp_path: Path,
) -> None:
    with pytest.raises(UserError, match="the refiner does not know Md"):
        sample(1, out=tmp_path / "run", formula="MdO", refine=True, device="cpu")
    assert not (tmp_path / "run").exists()
