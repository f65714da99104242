"""Jobs are killed here with real signals, in real processes."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import tempfile
import time
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flowllm.errors import UserError
from flowllm.runs.sharded import Batch, RunFolder, batch_seed, run_job, sample_seed
from run_jobs import contents, run, start, wait_until

# Killed and resumed


@pytest.mark.parametrize("workers", [1, 2])
def test_a_run_killed_again_and_again_ends_like_an_undisturbed_one(
    script: Path, job: ModuleType, tmp_path: Path, workers: int
) -> None:
    undisturbed = run(job, tmp_path / "undisturbed")
    rng = random.Random(workers)
    out = tmp_path / "killed"
    for shards_before in (0, 3, 8, 13):
        # It stalls before the end, so that no slow machine lets it end before the signal.
        process = start(script, out, workers, shards_before + 4)
        if shards_before:
            wait_until(lambda n=shards_before: len(list(out.glob("shards/*.jsonl"))) >= n)
        time.sleep(rng.uniform(0, 0.06) if shards_before else rng.uniform(0.05, 0.3))
        process.kill()
        assert process.wait() == -signal.SIGKILL
        assert len(list(out.glob("shards/*.jsonl"))) <= shards_before + 4
    assert start(script, out, workers, 20).wait() == 0
    assert contents(out) == contents(undisturbed.path)


@pytest.mark.parametrize("workers", [1, 2])
def test_ctrl_c_leaves_the_finished_shards(
    script: Path, job: ModuleType, tmp_path: Path, workers: int
) -> None:
    undisturbed = run(job, tmp_path / "undisturbed")
    out = tmp_path / "interrupted"
    process = start(script, out, workers, 20, stderr=subprocess.DEVNULL, start_new_session=True)
    wait_until(lambda: len(list(out.glob("shards/*.jsonl"))) >= 3)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    assert process.wait() == -signal.SIGINT
    assert 3 <= len(list(out.glob("shards/*.jsonl"))) < 20
    assert start(script, out, workers, 20).wait() == 0
    assert not list(out.rglob("*.flowllm-tmp"))  # an interrupted write may leave one
    assert contents(out) == contents(undisturbed.path)


def test_an_interrupt_of_the_parent_alone_keeps_the_batches_at_work(
    script: Path, job: ModuleType, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    process = start(script, out, 2, 20, stderr=subprocess.DEVNULL)
    wait_until(lambda: len(list(out.glob("shards/*.jsonl"))) >= 3)
    process.send_signal(signal.SIGINT)
    assert process.wait() == -signal.SIGINT
    assert len(list(out.glob("shards/*.jsonl"))) >= 4
    assert run(job, out).complete


def test_no_worker_outlives_a_killed_run(script: Path, tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    pids.mkdir()
    process = start(script, tmp_path / "run", 2, 20, pids)
    wait_until(lambda: len(list(pids.iterdir())) == 2)
    process.kill()
    process.wait()

    def gone(pid: str) -> bool:
        try:
            state = Path("/proc", pid, "stat").read_text().rpartition(")")[2].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            return True
        return state == "Z"

    wait_until(lambda: all(gone(path.name) for path in pids.iterdir()))


def test_what_a_kill_left_half_written_is_removed(job: ModuleType, tmp_path: Path) -> None:
    folder = run(job, tmp_path / "run")
    expected = contents(folder.path)
    folder.shard(4).unlink()
    for parent in (folder.path, folder.path / "shards"):
        half = parent / ".00004.jsonl.12345678.flowllm-tmp"
        half.mkdir()
        (half / "00004.jsonl").write_bytes(b'{"id": 12, "x"')
    run(job, folder.path)
    assert contents(folder.path) == expected
    assert not list(folder.path.rglob("*.flowllm-tmp"))


def test_a_kill_before_the_manifest_is_no_foreign_folder(job: ModuleType, tmp_path: Path) -> None:
    (tmp_path / ".lock").touch()
    (tmp_path / ".manifest.json.12345678.flowllm-tmp").mkdir()
    assert run(job, tmp_path).complete


def test_a_finished_run_is_left_alone(job: ModuleType, tmp_path: Path) -> None:
    folder = run(job, tmp_path / "run", info={"torch": "2.13"})
    before = {path: path.stat().st_mtime_ns for path in folder.path.rglob("*.json*")}
    fail = partial(job.fail_in_setup, AssertionError("models loaded for nothing"))
    again = run(job, folder.path, setup=fail, info={"torch": "2.14"}, workers=2)
    assert again == folder
    assert again.info == {"torch": "2.13"}
    assert {path: path.stat().st_mtime_ns for path in folder.path.rglob("*.json*")} == before


# Same result however it is cut


@settings(max_examples=25, deadline=None)
@given(total=st.integers(0, 40), batch_size=st.integers(1, 50), lost=st.sets(st.integers(0, 40)))
def test_records_come_in_the_order_of_their_ids(
    total: int, batch_size: int, lost: set[int]
) -> None:
    def work(context: None, batch: Batch, progress: object) -> list[dict]:
        return [{"id": i, "batch": batch.index} for i in range(batch.start, batch.stop)]

    out = Path(tempfile.mkdtemp())
    arguments = {"manifest": {}, "total": total, "batch_size": batch_size, "work": work}
    folder = run_job(out, **arguments)
    for index in lost:
        folder.shard(index).unlink(missing_ok=True)
    assert folder.complete == (not lost & {b.index for b in folder.batches})
    run_job(out, **arguments)
    assert list(RunFolder.open(out).records()) == [
        {"id": i, "batch": i // batch_size} for i in range(total)
    ]
    shutil.rmtree(out)


def test_workers_compute_what_one_process_computes(job: ModuleType, tmp_path: Path) -> None:
    assert contents(run(job, tmp_path / "1").path) == contents(
        run(job, tmp_path / "3", workers=3).path
    )


def test_workers_are_single_threaded_and_start_without_torch(
    job: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    folder = run(job, tmp_path / "run", total=2, batch_size=1, work=job.note_threads, workers=2)
    assert list(folder.records()) == [{"omp": "1", "torch": False}] * 2
    assert os.environ["OMP_NUM_THREADS"] == "5"


def test_batch_seeds_are_those_of_numpy_and_all_different() -> None:
    expected = np.random.SeedSequence(3, spawn_key=(5,)).generate_state(1, np.uint64)[0] // 2
    assert batch_seed(3, 5) == expected
    seeds = {batch_seed(s, i) for s in (0, 1, 2**32, 2**64 + 1, 2**200) for i in range(200)}
    assert len(seeds) == 1000
    assert min(seeds) >= 0 and max(seeds) < 2**63
    with pytest.raises(UserError, match="seed -1 is negative"):
        batch_seed(-1, 0)


def test_the_seeds_of_records_are_all_different_from_each_other_and_from_those_of_batches() -> None:
    seeds = {draw(s, i) for draw in (batch_seed, sample_seed) for s in (0, 1) for i in range(200)}
    assert len(seeds) == 800
    assert min(seeds) >= 0 and max(seeds) < 2**63
    with pytest.raises(UserError, match="seed -1 is negative"):
        sample_seed(-1, 0)


@pytest.mark.parametrize("argument", ["total", "batch_size", "workers"])
def test_impossible_sizes_are_refused(job: ModuleType, tmp_path: Path, argument: str) -> None:
    with pytest.raises(UserError, match=f"{argument} is -1; give [01] or more"):
        run(job, tmp_path / "run", **{argument: -1})
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda data: data[:-1], "2 whole lines and a broken one, not 3"),
        (lambda data: data[: data.index(b"\n") + 1], "1 whole lines, not 3"),
        (lambda data: data + b"{}\n", "4 whole lines, not 3"),
        (lambda data: b"", "0 whole lines, not 3"),
        (lambda data: b"\0" * 4 + data[4:], "line 1 is no JSON object"),
        (lambda data: b"\xff\xfe" + data[2:], "line 1 is no JSON object"),
        (lambda data: b"1\n2\n3\n", "line 1 is no JSON object"),
    ],
)
def test_a_damaged_shard_is_named(job: ModuleType, tmp_path: Path, damage, message: str) -> None:
    folder = run(job, tmp_path / "run")
    expected = contents(folder.path)
    shard = folder.shard(5)
    shard.write_bytes(damage(shard.read_bytes()))
    with pytest.raises(UserError, match=f"{shard} is damaged: {message}.*; delete it"):
        run(job, folder.path)
    with pytest.raises(UserError, match=f"{shard} is damaged"):
        list(folder.records())
    shard.unlink()
    run(job, folder.path)
    assert contents(folder.path) == expected


@pytest.mark.parametrize("kind", ["folder", "link"])
def test_a_shard_that_is_no_file_is_named(job: ModuleType, tmp_path: Path, kind: str) -> None:
    folder = run(job, tmp_path / "run")
    shard = folder.shard(5)
    shard.unlink()
    if kind == "folder":
        shard.mkdir()
    else:
        shard.symlink_to(tmp_path)
    with pytest.raises(UserError, match=f"{shard} is damaged: it is no file; delete it"):
        run(job, folder.path)
    with pytest.raises(UserError, match=f"{shard} is damaged"):
        list(folder.records())


@pytest.mark.parametrize("kind", ["file", "link"])
def test_shards_that_are_no_folder_are_named(job: ModuleType, tmp_path: Path, kind: str) -> None:
    folder = run(job, tmp_path / "run")
    shards = folder.path / "shards"
    shutil.rmtree(shards)
    if kind == "file":
        shards.touch()
    else:
        shards.symlink_to(tmp_path / "nowhere")
    with pytest.raises(UserError, match=f"{shards} is no folder; remove it"):
        run(job, folder.path)


def test_a_record_that_cannot_be_parsed_names_shard_and_line(
    job: ModuleType, tmp_path: Path
) -> None:
    folder = run(job, tmp_path / "run")

    def parse(record: dict[str, Any]) -> float:
        return record["x"] / (record["id"] != 17)  # the third of shard 5

    def absent(record: dict[str, Any]) -> float:
        return record["energy"]

    with pytest.raises(ZeroDivisionError):  # a fault of the code is no damage
        list(folder.parsed(parse))
    with pytest.raises(UserError, match=f"{folder.shard(0)} is damaged: line 1: has no 'energy'"):
        list(folder.parsed(absent))


# Work that fails


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("kind", ["UserError", "Odd"])
def test_an_exception_keeps_its_type_and_finished_shards_stay(
    job: ModuleType, tmp_path: Path, workers: int, kind: str
) -> None:
    error = UserError("row 5: no such element Xx") if kind == "UserError" else job.Odd("odd")
    with pytest.raises(type(error), match=str(error)):
        run(job, tmp_path, work=partial(job.fail_at_two, error), workers=workers)
    done = {path.name for path in tmp_path.glob("shards/*.jsonl")}
    # With two workers batch 3 is under way when batch 2 fails; it is finished, batch 4 never begun.
    assert done - {"00003.jsonl"} == {"00000.jsonl", "00001.jsonl"}
    assert run(job, tmp_path).complete


def test_an_exception_of_the_setup_in_a_worker_keeps_its_type(
    job: ModuleType, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="no model folder"):
        setup = partial(job.fail_in_setup, UserError("no model folder"))
        run(job, tmp_path, setup=setup, workers=2)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV])
def test_a_killed_worker_is_an_error_and_not_a_hang(
    job: ModuleType, tmp_path: Path, number: int
) -> None:
    with pytest.raises(UserError, match="a worker process ended without a result"):
        run(job, tmp_path, work=partial(job.die, number), workers=2)
    assert run(job, tmp_path).complete


def test_a_batch_that_is_too_short_is_an_error(job: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="batch 2: 2 records returned, not 3"):
        run(job, tmp_path, work=job.too_few)
    assert not (tmp_path / "shards" / "00002.jsonl").exists()


def test_infinity_is_no_json(job: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="batch 0: a record is not plain JSON"):
        run(job, tmp_path, work=job.infinite)
