"""Run folders of sampling: complete, exact, repeatable, never overwritten."""

from __future__ import annotations

import json
import math
import shutil
from collections import Counter, deque
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from pymatgen.core import Structure
from safetensors.torch import load_file

from flowllm import FlowLLM, PriorError, RefinerError, UserError, run_sampling
from flowllm.crystals.cif import cif_text
from flowllm.crystals.io import read
from flowllm.crystals.symmetry import symmetry_of
from flowllm.generation import pipeline
from flowllm.generation.sample import SCORE_COLUMNS
from flowllm.hub.locate import BUNDLED_PRIOR, BUNDLED_REFINER
from flowllm.runs.outputs import CORE_COLUMNS, Outcome
from flowllm.runs.records import read_records
from flowllm.runs.sharded import LAYOUT, RunFolder
from flowllm.system.files import sha256_file, sha256_folder
from flowllm.system.versions import versions
from flowllm.templates.library import BUNDLED
from flowllm.templates.ranking import RANKING_FILE
from flowllm.training.pairing.run import pair
from llm_prior import proposals
from llm_prior.proposals import Question
from rfm import Failure, Refinement, matrix_precision
from run_jobs import contents
from support import MP20_SAMPLE, same_bits, snapshot

REQUEST: dict[str, Any] = {"formula": "NaCl", "seed": 3, "steps": 3, "batch_size": 2}
COLUMNS = [*CORE_COLUMNS, "prompt", "text", "attempts"]
Run = tuple[Outcome, Callable[..., Outcome]]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A finished run, and the call that makes it again."""
    out = tmp_path_factory.mktemp("sample") / "run"
    again = partial(run_sampling, 5, out=out, device="cpu", **REQUEST)
    return again(), again


def no_crystals(_: object, queue: deque[Question], **__: Any) -> Iterator[tuple[int, str, bool]]:
    """In place of the prior."""
    while queue:
        yield queue.popleft().place, "none", True


# Files


def test_the_manifest_has_the_request_and_the_models(run: Run) -> None:
    outcome, _ = run
    manifest = json.loads((outcome.folder / "manifest.json").read_text())
    assert manifest["run"] == {
        "command": "sample",
        "prior": {"name": "prior", "sha256": sha256_folder(BUNDLED_PRIOR)},
        "refiner": {"name": "refiner", "sha256": sha256_folder(BUNDLED_REFINER)},
        "device": "cpu",
        "precision": matrix_precision(torch.device("cpu")),
        "conditions": {"formula": "NaCl"},
        "refine": True,
        "seed": 3,
        "temperature": 0.7,
        "top_p": 0.9,
        "max_attempts": 10,
        "constrain": True,
        "guidance": 1.0,
        "engine": "plain",
        "exclude_elements": [],
        "novel_to": [],
        "like": None,
        "best_of": 1,
        "rank": "prior",
        "steps": 3,
        **dict.fromkeys(("potential", "method", "position_slope", "cell_slope")),
        "trajectory": False,
        "score": False,
        "total": 5,
        "batch_size": 2,
        "layout": LAYOUT,
        "niggli_tolerance": 1e-5,
        "cif": "symmetrized",
        "symmetry": "keep",
        "volume": "templates",
        "templates": sha256_file(BUNDLED),
        "ranking": sha256_file(RANKING_FILE),
    }
    folders = {"prior": BUNDLED_PRIOR, "refiner": BUNDLED_REFINER}
    parameters = {  # tied weights are in the file once
        name: sum(w.numel() for w in load_file(folder / "model.safetensors").values())
        for name, folder in folders.items()
    }
    assert manifest["info"] == {**versions(), "parameters": parameters}


def test_a_run_is_not_resumed_in_another_precision(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    outcome, again = run
    before = snapshot(outcome.folder)
    there = matrix_precision(torch.device("cpu"))
    monkeypatch.setattr("rfm.refining.matrix_precision", lambda _: "float8")
    message = f"run is refined in {there}, and this machine refines in float8; compute it on mach"
    with pytest.raises(UserError, match=message):
        again()
    assert snapshot(outcome.folder) == before


def test_crystals_that_refining_destroys_are_counted_as_drawn_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = pipeline.refine_structures
    calls: list[int] = []

    def refine(*given: Any, **options: Any) -> list[Refinement]:
        calls.append(1)
        found = whole(*given, **options)
        lost = len(calls) == 1
        return [Refinement(failure=Failure.CLOSE_ATOMS), *found[1:]] if lost else found

    monkeypatch.setattr(pipeline, "refine_structures", refine)
    outcome = run_sampling(2, out=tmp_path / "run", device="cpu", **REQUEST)
    assert len(outcome.crystals) == 2 and not outcome.failures
    assert outcome.rejects == {"refiner: close_atoms": 1}
    rows = pq.read_table(outcome.folder / "samples.parquet").to_pylist()
    assert [row["attempts"] for row in rows] == [2, 1]
    assert [json.loads(row["rejects"]) for row in rows] == [{"refiner: close_atoms": 1}, {}]


def test_a_request_for_n_gives_n_ids(run: Run) -> None:
    outcome, _ = run
    records = list(read_records(RunFolder.open(outcome.folder)))
    assert [r.id for r in records] == [f"sample-{i:05d}" for i in range(5)]
    made = [r for r in records if r.structure is not None]
    assert len(made) >= 2
    assert [c.id for c in outcome.crystals] == [r.id for r in made]
    assert outcome.failures == Counter(r.failure for r in records if r.failure)
    assert len(made) + outcome.failures.total() == 5
    for known, kept in zip(outcome.crystals, made, strict=True):
        assert same_bits(known.structure, kept.structure)


def test_every_file_holds_the_crystals(run: Run) -> None:
    outcome, _ = run
    for name in ("samples.extxyz", "cif"):
        found = read(outcome.folder / name, reduce=False)
        assert [c.id for c in found] == [c.id for c in outcome.crystals]
        for there, known in zip(found, outcome.crystals, strict=True):
            written, made = there.structure, known.structure  # a CIF may hold several cells
            cells = len(written) / len(made)
            assert written.composition == made.composition * cells
            assert written.volume == pytest.approx(made.volume * cells, rel=1e-6)
    assert sorted(p.name for p in (outcome.folder / "cif").iterdir()) == [
        f"{c.id}.cif" for c in outcome.crystals
    ]
    # The table can be read as crystals too, with the failed ones as its bad rows, and so can the
    # folder itself.
    for path in (outcome.folder / "samples.parquet", outcome.folder):
        assert [c.id for c in read(path, skip_invalid=True)] == [c.id for c in outcome.crystals]


def test_the_table_has_the_content_of_the_shards(run: Run) -> None:
    outcome, _ = run
    table = pq.read_table(outcome.folder / "samples.parquet")
    assert table.column_names == COLUMNS
    assert table.schema.field("attempts").type == pa.int64()
    records = list(read_records(RunFolder.open(outcome.folder)))
    for row, record in zip(table.to_pylist(), records, strict=True):
        assert (row["id"], row["failure"]) == (record.id, record.failure)
        for name in ("prompt", "text", "attempts"):
            assert row[name] == record.properties[name]
        assert json.loads(row["rejects"]) == record.rejects
        for name in ("structure", "initial_structure"):
            structure = getattr(record, name)
            if structure is None:
                assert row[name] is None
            else:
                assert same_bits(Structure.from_str(row[name], fmt="json"), structure)
        if record.structure is not None:
            assert (row["formula"], row["num_atoms"]) == ("NaCl", len(record.structure))
            assert row["cif"] == cif_text(record.structure)
            symmetry = symmetry_of(record.structure)
            assert symmetry is not None
            assert (row["spacegroup"], row["wyckoff"]) == (symmetry.spacegroup, symmetry.wyckoff)


@pytest.mark.parametrize(
    ("options", "more"),
    [
        ({"best_of": 2, "refine": False}, ["rank_score"]),
        ({"best_of": 2, "rank": "flow"}, ["rank_score", *SCORE_COLUMNS]),
        ({"score": True}, list(SCORE_COLUMNS)),
    ],
)
def test_scores_are_columns_where_they_are_computed(
    tmp_path: Path, options: dict[str, Any], more: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(proposals, "generate_texts", no_crystals)
    options = {"max_attempts": 1, "device": "cpu"} | options
    outcome = run_sampling(1, out=tmp_path / "run", **options)
    assert pq.read_table(outcome.folder / "samples.parquet").column_names == [*COLUMNS, *more]


def test_a_run_without_refining_names_no_refiner(tmp_path: Path) -> None:
    outcome = run_sampling(1, out=tmp_path / "run", formula="NaCl", refine=False, device="cpu")
    folder = RunFolder.open(outcome.folder)
    assert (folder.run["refiner"], folder.run["refine"]) == (None, False)
    (record,) = read_records(folder)
    assert same_bits(record.structure, record.initial_structure)


def test_a_run_without_a_crystal_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proposals, "generate_texts", no_crystals)
    again = partial(run_sampling, 3, out=tmp_path / "run", max_attempts=2, device="cpu")
    outcome = again()
    assert (outcome.crystals, outcome.failures) == ([], {"prior: unknown_group": 3})
    assert outcome.rejects == {"unknown_group": 6}
    assert sorted(p.name for p in outcome.folder.iterdir()) == [
        ".lock",
        "manifest.json",
        "samples.parquet",
        "shards",
    ]
    table = pq.read_table(outcome.folder / "samples.parquet")
    assert table.column_names == COLUMNS
    assert table["failure"].to_pylist() == ["prior: unknown_group"] * 3
    assert table["rejects"].to_pylist() == ['{"unknown_group": 2}'] * 3
    assert again() == outcome


def test_an_empty_run_is_a_run(tmp_path: Path) -> None:
    outcome = run_sampling(0, out=tmp_path / "run", device="cpu")
    assert (outcome.crystals, outcome.failures, outcome.rejects) == ([], Counter(), Counter())
    table = pq.read_table(outcome.folder / "samples.parquet")
    assert (table.num_rows, table.column_names) == (0, COLUMNS)


# The same run again


def test_a_finished_run_gives_its_result_again_and_changes_no_byte(run: Run) -> None:
    outcome, again = run
    before = snapshot(outcome.folder)
    repeated = again(formula="Cl3Na3", workers=2)  # the same request; any number of workers
    assert snapshot(outcome.folder) == before
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
    before = snapshot(outcome.folder)
    with pytest.raises(UserError, match=f"holds another run .*{message}"):
        again(**change)
    assert snapshot(outcome.folder) == before


def test_another_model_is_another_run(run: Run, tmp_path: Path) -> None:
    outcome, again = run
    refiner = Path(shutil.copytree(BUNDLED_REFINER, tmp_path / "refiner"))
    before = snapshot(outcome.folder)
    again(refiner=refiner)  # the same content elsewhere is the same model
    with open(refiner / "config.json", "a") as file:
        file.write("\n")
    with pytest.raises(UserError, match=r'refiner is "refiner" \w{8} there, "refiner" \w{8} h'):
        again(refiner=refiner)
    assert snapshot(outcome.folder) == before


def test_the_model_in_memory_gives_the_same_result(run: Run) -> None:
    outcome, _ = run
    samples = FlowLLM.from_pretrained(device="cpu").sample(5, **REQUEST)
    records = list(RunFolder.open(outcome.folder).records())
    made = [s.to_record().described().to_json() for s in samples]
    assert json.loads(json.dumps(made)) == records


def test_workers_and_restarts_do_not_change_a_byte(run: Run, tmp_path: Path) -> None:
    outcome, again = run
    out = tmp_path / "run"
    again(out=out)  # by this process
    shutil.rmtree(out / "cif")
    for name in ("shards/00000.jsonl", "shards/00002.jsonl", "samples.parquet", "samples.extxyz"):
        (out / name).unlink()
    again(out=out, workers=2)  # by two others
    assert contents(out) == contents(outcome.folder)


# Refusals


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ({"n": -1}, "n is -1; give a whole number at least 0"),
        ({"batch_size": 0}, "batch_size is 0; give a whole number at least 1"),
        ({"workers": 0}, "workers is 0; give a whole number at least 1"),
        ({"seed": -1}, "seed is -1; give a whole number at least 0"),
        ({"temperature": math.nan}, "temperature is nan; give a number at least 0"),
        ({"top_p": math.inf}, "top_p is inf; give a number above 0 and at most 1"),
        (
            {"refiner": "x", "refine": False},
            "a refiner is given, but not used; refine, or leave the refiner out",
        ),
        ({"steps": 3, "refine": False}, "steps is an option of refining; leave it out, or refine"),
        ({"steps": 0}, "steps is 0; give a whole number at least 1"),
        ({"formula": "Na11Cl10"}, "formula Na11Cl10 has 21 atoms"),
        ({"formula": "MdO"}, "the refiner does not know Md"),
        ({"device": "tpu"}, "unknown device 'tpu'"),
        ({"prior": "./nowhere"}, "there is no model folder ./nowhere"),
    ],
)
def test_an_impossible_request_leaves_no_folder(
    tmp_path: Path, request_: dict[str, Any], message: str
) -> None:
    with pytest.raises((UserError, PriorError, RefinerError), match=message):
        run_sampling(**({"n": 1, "out": tmp_path / "run", "device": "cpu"} | request_))
    assert not (tmp_path / "run").exists()


def test_a_run_that_failed_before_its_first_shard_can_be_corrected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError("the device is full")

    sample = partial(run_sampling, 3, out=tmp_path / "run", device="cpu", refine=False)
    with monkeypatch.context() as patch:
        patch.setattr(FlowLLM, "sample_batch", full)
        with pytest.raises(torch.OutOfMemoryError):
            sample(batch_size=3)
    assert len(sample(batch_size=1).crystals) <= 3
    # From the first shard on the folder is the run's.
    shutil.rmtree(tmp_path / "run" / "cif", ignore_errors=True)
    (tmp_path / "run" / "shards" / "00002.jsonl").unlink()
    monkeypatch.setattr(FlowLLM, "sample_batch", full)
    with pytest.raises(torch.OutOfMemoryError):
        sample(batch_size=1)
    with pytest.raises(UserError, match="holds another run"):
        sample(batch_size=3)


def test_a_prior_that_cannot_be_guided_is_refused_before_anything_is_written(
    tmp_path: Path,
) -> None:
    prior = tmp_path / "prior"
    shutil.copytree(BUNDLED_PRIOR, prior)
    file = prior / "prior.json"
    settings = json.loads(file.read_bytes())
    settings["info"]["recipe"]["tasks"] |= {
        "unconditional": 0, "formula": 0.5, "composition": 0.5, "one_property": 0
    }  # fmt: skip
    file.chmod(0o644)
    file.write_text(json.dumps(settings))
    out = tmp_path / "run"
    with pytest.raises(PriorError, match="never trained with prompts without conditions, which gu"):
        run_sampling(1, out=out, prior=prior, formula="NaCl", guidance=2, refine=False)
    with pytest.raises(PriorError, match="never trained with prompts without conditions, which gu"):
        pair(MP20_SAMPLE, prior=prior, out=out, guidance=2)
    assert not out.exists()
