"""Jobs are killed here with real signals, in real processes."""

from __future__ import annotations

import importlib
import json
import os
import pty
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import termios
import time
from functools import partial
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flowllm.errors import UserError
from flowllm.runs import sharded as jobs
from flowllm.runs.sharded import RunFolder, batch_seed, run_job
from support import ROOT

# A module of its own, as spawned processes import what they run by name.
JOB = """
import os, pathlib, signal, sys, time
import numpy as np
from flowllm.runs.sharded import batch_seed, run_job

def setup():
    return "context"

def work(context, index, start, count, pause=0.0, stall_at=20):
    assert context == "context"
    draws = np.random.default_rng(batch_seed(7, index)).random(count)
    time.sleep(60 if index >= stall_at else pause)
    return [{"id": start + i, "x": float(x)} for i, x in enumerate(draws)]

def note_process(folder, context, index, start, count):
    (pathlib.Path(folder) / str(os.getpid())).touch()
    return work(context, index, start, count, pause=60)

def note_threads(context, index, start, count):
    return [{"omp": os.environ["OMP_NUM_THREADS"], "torch": "torch" in sys.modules}] * count

def too_few(context, index, start, count):
    return work(context, index, start, count)[: count - (index == 2)]

class Odd(RuntimeError):
    pass

def fail_at_two(error, context, index, start, count):
    if index == 2:
        raise error
    return work(context, index, start, count, pause=0.1 * index)

def fail_in_setup(error):
    raise error

def die(signal_number, context, index, start, count):
    if index == 2:
        os.kill(os.getpid(), signal_number)
    return work(context, index, start, count)

def infinite(context, index, start, count):
    return [{"energy": float("inf")}] * count

if __name__ == "__main__":
    from functools import partial
    out, workers, stall_at, *pids = sys.argv[1:]
    slow = partial(note_process, *pids) if pids else partial(
        work, pause=0.02, stall_at=int(stall_at))
    run_job(out, manifest={"seed": 7}, total=58, batch_size=3, work=slow, setup=setup,
            workers=int(workers), description="test")
"""
TOTAL, SIZE = 58, 3  # as in the script: 19 whole batches and one of a single record


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("job") / "slow_job_of_test.py"
    path.write_text(JOB)
    return path


@pytest.fixture
def job(script: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(script.parent))
    return importlib.import_module(script.stem)


def start(script: Path, *arguments: object, stderr: int | None = None) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(script), *map(str, arguments)]
    return subprocess.Popen(command, env=environment, stderr=stderr)


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def wait_until(condition, seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.003)


def run(job: ModuleType, out: Path, **changes) -> RunFolder:
    arguments = {
        "manifest": {"seed": 7},
        "total": TOTAL,
        "batch_size": SIZE,
        "work": job.work,
        "setup": job.setup,
    }
    return run_job(out, **(arguments | changes))


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
    def work(context: None, index: int, start: int, count: int) -> list[dict]:
        return [{"id": start + i, "batch": index} for i in range(count)]

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


# Folders that are refused


def test_two_processes_cannot_share_a_folder(script: Path, job: ModuleType, tmp_path: Path) -> None:
    out = tmp_path / "run"
    process = start(script, out, 1, 3)
    try:
        wait_until(lambda: len(list(out.glob("shards/*.jsonl"))) > 0)
        with pytest.raises(UserError, match="run is in use by another process"):
            run(job, out)
    finally:
        process.kill()
        process.wait()
    assert run(job, out).complete  # the lock went with the process


def test_another_run_is_refused_key_by_key(job: ModuleType, tmp_path: Path) -> None:
    models = {"prior": {"path": "a", "sha256": "00"}, "refiner": None}
    out = run(job, tmp_path / "run", manifest={"seed": 7, "models": models, "top_p": 0.9}).path
    before = contents(out)
    asked = {"seed": 8, "models": {"prior": {"path": "a", "sha256": "11"}, "refiner": None}}
    with pytest.raises(UserError) as caught:
        run(job, out, manifest=asked | {"formula": "NaCl"}, total=60)
    assert str(caught.value) == (
        f"{out} holds another run ("
        'formula is not given there, "NaCl" here; '
        'models.prior is "00" there, "11" here; '
        "seed is 7 there, 8 here; "
        "top_p is 0.9 there, not given here; "
        "total is 58 there, 60 here); "
        "choose another folder, or repeat the arguments of that run to resume it"
    )
    assert contents(out) == before


def test_a_tuple_in_the_manifest_is_the_list_that_json_makes_of_it(
    job: ModuleType, tmp_path: Path
) -> None:
    run(job, tmp_path / "run", manifest={"elements": ("Na", "Cl")})
    assert run(job, tmp_path / "run", manifest={"elements": ["Na", "Cl"]}).complete


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("thesis.tex", "text", r"is not empty \(it holds thesis.tex\)"),
        ("manifest.json", '{"name": "a web app"}', "manifest.json is damaged or of another"),
        ("manifest.json", '{"run": {"total": 5', "manifest.json is damaged or of another"),
        ("manifest.json", "[]", "manifest.json is damaged or of another"),
    ],
)
def test_a_foreign_folder_is_refused_and_untouched(
    job: ModuleType, tmp_path: Path, name: str, content: str, message: str
) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=message):
        run(job, tmp_path)
    assert contents(tmp_path) == {name: content.encode()}


def test_a_file_and_a_folder_without_a_run_are_refused(job: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="file is a file; choose a new folder"):
        run(job, tmp_path / "file")
    with pytest.raises(UserError, match="is not a run folder"):
        RunFolder.open(tmp_path)


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


# Outputs


def test_an_output_is_published_once(job: ModuleType, tmp_path: Path) -> None:
    folder = run(job, tmp_path)

    def write(path: Path) -> None:
        path.mkdir()
        for record in folder.records():
            (path / f"{record['id']}.json").write_text(json.dumps(record))

    published = folder.publish("cif", write)
    assert published == tmp_path / "cif"
    assert len(list(published.iterdir())) == TOTAL
    folder.publish("cif", partial(job.fail_in_setup, AssertionError("written again")))


def test_a_failed_output_leaves_nothing_and_is_made_again(job: ModuleType, tmp_path: Path) -> None:
    folder = run(job, tmp_path)
    before = contents(tmp_path)

    def fail(path: Path) -> None:
        path.write_text("half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        folder.publish("samples.extxyz", fail)
    assert contents(tmp_path) == before
    folder.publish("samples.extxyz", lambda path: path.write_text("whole"))
    assert (tmp_path / "samples.extxyz").read_text() == "whole"


def test_an_unfinished_run_has_no_records_and_no_outputs(job: ModuleType, tmp_path: Path) -> None:
    folder = run(job, tmp_path)
    folder.shard(3).unlink()
    with pytest.raises(UserError, match=r"not finished \(19 of 20 shards\)"):
        next(folder.records())
    with pytest.raises(UserError, match="not finished"):
        folder.publish("samples.extxyz", lambda path: path.write_text("some"))


# Progress


def test_the_bar_counts_resumed_records_and_shows_a_rate(
    script: Path, job: ModuleType, tmp_path: Path
) -> None:
    folder = run(job, tmp_path / "run")
    for index in range(10, 20):
        folder.shard(index).unlink()
    here, there = pty.openpty()
    termios.tcsetwinsize(there, (25, 100))
    process = start(script, folder.path, 1, 20, stderr=there)
    process.wait()
    os.close(there)
    shown = b""
    try:
        while chunk := os.read(here, 4096):
            shown += chunk
    except OSError:  # how Linux says that the other end of a terminal is closed
        pass
    os.close(here)
    first, *_, last = shown.decode().strip().split("\r")
    assert "test" in first and "30/58" in first
    assert "58/58" in last and "records/s" in last


def test_without_a_terminal_the_log_tells_the_rate_now_and_then(
    job: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    arguments = {"manifest": {}, "total": 30, "batch_size": 10, "setup": job.setup}
    caplog.set_level("INFO")
    run_job(tmp_path / "quick", work=job.work, **arguments)
    assert not caplog.messages  # not every time
    monkeypatch.setattr(jobs, "_LOG_EVERY", 0.0)
    run_job(tmp_path / "slow", work=job.work, **arguments)
    rate = r"\d+\.\d/s, \d+ s left"
    for message, done in zip(caplog.messages, (10, 20, 30), strict=True):
        assert re.fullmatch(rf"{done} of 30 records, {rate}", message)
    caplog.clear()
    run_job(tmp_path / "quiet", work=job.work, progress=False, **arguments)
    assert not caplog.messages


def test_no_bar_without_a_terminal(script: Path, tmp_path: Path) -> None:
    process = start(script, tmp_path / "run", 1, 20, stderr=subprocess.PIPE)
    assert process.communicate()[1] == b""
    assert process.returncode == 0
