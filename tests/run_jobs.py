"""A job that the tests of run folders start in this process and in others, and its helpers."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from flowllm.runs.sharded import RunFolder, run_job
from support import ROOT

# A module of its own, as spawned processes import what they run by name.
JOB = """
import logging, os, pathlib, signal, sys, time
import numpy as np
from flowllm.runs.sharded import batch_seed, run_job

def setup():
    return "context"

def work(context, batch, progress, pause=0.0, stall_at=20):
    assert context == "context"
    draws = np.random.default_rng(batch_seed(7, batch.index)).random(batch.count)
    time.sleep(60 if batch.index >= stall_at else pause)
    return [{"id": batch.start + i, "x": float(x)} for i, x in enumerate(draws)]

def note_process(folder, context, batch, progress):
    (pathlib.Path(folder) / str(os.getpid())).touch()
    return work(context, batch, progress, pause=60)

def note_threads(context, batch, progress):
    return [{"omp": os.environ["OMP_NUM_THREADS"], "torch": "torch" in sys.modules}] * batch.count

def too_few(context, batch, progress):
    return work(context, batch, progress)[: batch.count - (batch.index == 2)]

class Odd(RuntimeError):
    pass

def fail_at_two(error, context, batch, progress):
    if batch.index == 2:
        raise error
    return work(context, batch, progress, pause=0.1 * batch.index)

def fail_in_setup(error):
    raise error

def die(signal_number, context, batch, progress):
    if batch.index == 2:
        os.kill(os.getpid(), signal_number)
    return work(context, batch, progress)

def die_once(marker, context, batch, progress):
    if batch.index == 2 and not pathlib.Path(marker).exists():
        pathlib.Path(marker).touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return work(context, batch, progress)

def gpu(context, batch, progress):
    time.sleep(0.2)
    return [{"pid": os.getpid(), "gpu": os.environ.get("CUDA_VISIBLE_DEVICES")}] * batch.count

def stepwise(context, batch, progress):
    for i in range(batch.start, batch.stop):
        time.sleep(0.15)  # longer than the pause between two states of the bar
        logging.getLogger("flowllm").warning("record %d is done", i)
        progress(1)
    return [{"id": i} for i in range(batch.start, batch.stop)]

def infinite(context, batch, progress):
    return [{"energy": float("inf")}] * batch.count

if __name__ == "__main__":
    from functools import partial
    out, workers, stall_at, *pids = sys.argv[1:]
    slow = partial(note_process, *pids) if pids else partial(
        work, pause=0.02, stall_at=int(stall_at))
    run_job(out, manifest={"seed": 7}, total=58, batch_size=3, work=slow, setup=setup,
            workers=int(workers), description="test")
"""
TOTAL, SIZE = 58, 3  # as in the script: 19 whole batches and one of a single record


def start(script: Path, *arguments: object, **options: Any) -> subprocess.Popen[bytes]:
    """Start the script in a process of its own."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(script), *map(str, arguments)]
    return subprocess.Popen(command, env=environment, **options)


def contents(folder: Path) -> dict[str, bytes]:
    """Return the content of every file in a folder by its relative path."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def wait_until(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    """Wait for a condition; fail after some time."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.003)


def run(job: ModuleType, out: Path, **changes: Any) -> RunFolder:
    """Run the job in this process."""
    arguments: dict[str, Any] = {
        "manifest": {"seed": 7},
        "total": TOTAL,
        "batch_size": SIZE,
        "work": job.work,
        "setup": job.setup,
    }
    return run_job(out, **(arguments | changes))
