"""Workers that die of SIGKILL, on this machine's pool and on other executors."""

from __future__ import annotations

import importlib.util
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from types import ModuleType

import psutil
import pytest
from ase.build import bulk

from flowllm import run_sampling
from flowllm.crystals.crystal import to_structure
from flowllm.crystals.io import Crystal
from flowllm.energy.relaxation import relax_crystals
from flowllm.errors import UserError
from flowllm.system.executors import for_each
from flowllm.system.pools import open_executor
from run_jobs import contents, run, wait_until
from support import ROOT

# A run on an executor in a process of its own, as engines leave threads and warnings behind.
ON_AN_EXECUTOR = """
import sys
from functools import partial
import slow_job_of_test as job
from run_jobs import run
if __name__ == "__main__":
    _, out, work, argument, executor = sys.argv
    run(job, out, work=partial(getattr(job, work), argument), workers=2, executor=executor)
"""
# It kills the worker, which is the parent of the process that relaxes.
DEADLY = """
import os, pathlib, signal
from ase.calculators.emt import EMT

class Deadly(EMT):
    def calculate(self, atoms=None, properties=None, system_changes=()):
        marker = pathlib.Path(os.environ["MARKER"])
        if "Pt" in atoms.get_chemical_symbols() and not marker.exists():
            marker.touch()
            os.kill(os.getppid(), signal.SIGKILL)
        super().calculate(atoms, properties, system_changes)
"""


def spawned() -> list[int]:
    """Return the processes that this one has spawned for work."""
    found = []
    for folder in Path("/proc").iterdir():
        try:
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            if parent == os.getpid() and b"spawn_main" in (folder / "cmdline").read_bytes():
                found.append(int(folder.name))
        except (OSError, ValueError):  # no process, or ended meanwhile
            continue
    return found


@contextmanager
def killer(condition: Callable[[], bool]) -> Iterator[list[int]]:
    """Kill the workers of this process once a condition holds."""
    killed: list[int] = []
    ended = threading.Event()

    def watch() -> None:
        while not ended.is_set():
            if condition():
                for pid in spawned():
                    os.kill(pid, signal.SIGKILL)
                    killed.append(pid)
                return
            time.sleep(0.002)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield killed
    finally:
        ended.set()
        thread.join()


def test_a_killed_worker_is_replaced_and_the_others_go_on(
    job: ModuleType, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    whole = run(job, tmp_path / "whole")
    work = partial(job.die_once, str(tmp_path / "marker"))
    killed = run(job, tmp_path / "killed", work=work, workers=2)
    assert contents(killed.path) == contents(whole.path)
    lost = [r.message for r in caplog.records if "lost" in r.message]
    assert lost == ["batch 2 (records 6 to 8) has lost its worker process"]


def test_a_batch_that_kills_every_worker_is_named(
    job: ModuleType, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(UserError) as caught:
        run(job, tmp_path, work=partial(job.die, signal.SIGKILL), workers=2)
    message = "batch 2 (records 6 to 8): a worker process ended without a result 3 times (killed, "
    assert str(caught.value).startswith(message)
    assert caplog.text.count("batch 2 (records 6 to 8) has lost its worker process") == 3
    assert run(job, tmp_path).complete


def test_each_worker_of_cuda_has_a_gpu_of_its_own(
    job: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    folder = run(job, tmp_path / "run", work=job.gpu, workers=2, device="cuda")
    gpus: dict[int, set[str]] = {}
    for record in folder.records():
        gpus.setdefault(record["pid"], set()).add(record["gpu"])
    assert sorted(map(sorted, gpus.values())) == [["3"], ["5"]]
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "3,5"


def on_an_executor(
    script: Path, folder: Path, package: str, work: str, argument: Path
) -> subprocess.Popen[str]:
    """Start a run of the work in `folder / "run"` on an executor of a package."""
    module = {"dask": "distributed", "slurm": "executorlib"}.get(package, package)
    if importlib.util.find_spec(module) is None:
        pytest.skip(f"{package} is not installed")
    commands = (Path(sys.executable).parent, ROOT / "tests" / "slurm")  # Parsl's; srun
    page = (ROOT / "docs" / "clusters.md").read_text()
    for name, code in zip(
        ("parsl", "dask"), re.findall("```py\n(.*?)```", page, re.S), strict=True
    ):
        (folder / f"{name}_cluster.py").write_text(code)
    executor = {"slurm": "slurm", "executorlib": "engines:executorlib"}.get(
        package, f"{package}_cluster:{package}"
    )
    (folder / "main.py").write_text(ON_AN_EXECUTOR)
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(map(str, (script.parent, folder, ROOT, ROOT / "tests"))),
        "PATH": os.pathsep.join((*map(str, commands), os.environ["PATH"])),
        "SLURM_JOB_ID": "1",
        "SRUN_LOG": str(folder / "srun.log"),
    }
    command = [sys.executable, folder / "main.py", folder / "run", work, argument, executor]
    return subprocess.Popen(
        command, env=environment, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True,
    )  # fmt: skip


@pytest.mark.parametrize("package", ["executorlib", "slurm", "parsl", "dask"])
def test_other_executors_compute_the_same_after_a_kill(
    job: ModuleType, script: Path, tmp_path: Path, package: str
) -> None:
    whole = run(job, tmp_path / "whole")
    marker = tmp_path / "marker"
    process = on_an_executor(script, tmp_path, package, "die_once", marker)
    shown, _ = process.communicate(timeout=300)
    assert process.returncode == 0, shown[-3000:]
    assert marker.exists()
    assert contents(tmp_path / "run") == contents(whole.path)


@pytest.mark.parametrize("package", ["executorlib", "parsl"])
def test_a_killed_command_leaves_no_process_of_its_executor(
    script: Path, tmp_path: Path, package: str
) -> None:
    at_work = tmp_path / "at_work"
    at_work.mkdir()
    process = on_an_executor(script, tmp_path, package, "note_process", at_work)
    started: list[psutil.Process] = []
    try:
        wait_until(lambda: any(at_work.iterdir()), 120)
        workers = [psutil.Process(int(file.name)) for file in at_work.iterdir()]
        started = psutil.Process(process.pid).children(recursive=True)
        for worker in workers:  # Parsl's are no descendants of the command
            started += [worker, *filter(lives, worker.parents()[:2])]
        started = [child for child in set(started) if child.pid not in (1, os.getpid())]
        assert len(started) > 1
        process.kill()
        wait_until(lambda: not any(map(lives, started)))
    finally:
        for child in (process, *started):
            with suppress(psutil.NoSuchProcess):
                child.kill()
        process.communicate()


def lives(process: psutil.Process) -> bool:
    """Return whether a process has not ended; a zombie has."""
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_threads_of_this_process_are_an_executor(job: ModuleType, tmp_path: Path) -> None:
    whole = run(job, tmp_path / "whole")
    threads = run(job, tmp_path / "run", workers=2, executor="engines:threads")
    assert contents(threads.path) == contents(whole.path)


def test_the_job_is_not_sent_with_every_item() -> None:
    sent: list[bytes | None] = []

    class Spy:
        def __enter__(self) -> Spy:
            return self

        def __exit__(self, *_: object) -> None: ...

        def submit(self, fn, key, job, item, attempt):  # noqa: ANN001, ANN202
            sent.append(job)
            return self.pool.submit(fn, key, job, item, attempt)

    spy = Spy()
    with open_executor("engines:threads", 1, "cpu") as spy.pool, pytest.MonkeyPatch.context() as p:
        p.setattr("flowllm.system.executors.open_executor", lambda *_: spy)
        results: dict[int, int] = {}
        for_each(range(5), _add, results.__setitem__, setup=_ten, executor="engines:threads")
    assert results == {i: 10 + i for i in range(5)}
    assert [job is None for job in sent] == [True, False, True, True, True, True]


def _ten() -> int:
    return 10


def _add(context: int, item: int) -> int:
    return context + item


@pytest.mark.parametrize(
    ("executor", "message"),
    [
        ("engines:number", "executor engines:number returns no concurrent.futures.Executor, but a"),
        ("engines:broken", "engines:broken cannot be made: RuntimeError: no such cluster; correct"),
        (
            "engines:nothing",
            "executor engines:nothing: module 'engines' has no attribute 'nothing'",
        ),
        ("no_such_package:it", "No module named 'no_such_package'; correct the name, or add"),
        ("mpi", "unknown executor 'mpi'; write local, slurm or MODULE:FACTORY"),
    ],
)
def test_what_is_no_executor_is_refused_and_leaves_nothing(
    job: ModuleType, tmp_path: Path, executor: str, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        run(job, tmp_path / "run", executor=executor)
    assert set(contents(tmp_path)) <= {"run/.lock"}


def test_sampling_with_killed_workers_ends_with_the_same_bytes(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    request = {"formula": "NaCl", "seed": 3, "steps": 3, "batch_size": 2, "device": "cpu"}
    whole = run_sampling(16, out=tmp_path / "whole", progress=False, **request)
    out = tmp_path / "killed"
    with killer(lambda: any(out.glob("shards/*.jsonl"))) as killed:
        run_sampling(16, out=out, workers=2, progress=False, **request)
    assert len(killed) == 2
    assert "has lost its worker process" in caplog.text
    assert contents(out) == contents(whole.folder)


def test_relaxing_with_a_killed_worker_ends_with_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "deadly_potential.py").write_text(DEADLY)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("MARKER", str(tmp_path / "marker"))
    crystals = [
        Crystal(id=f"{symbol}-{a}", structure=to_structure(bulk(symbol, "fcc", a=a)))
        for symbol in ("Cu", "Pt")
        for a in (3.7, 3.8, 3.9)
    ]
    arguments = {"potential": "deadly_potential:Deadly", "progress": False}
    relax_crystals(crystals, out=tmp_path / "killed", workers=2, **arguments)
    assert (tmp_path / "marker").exists()
    assert "has lost its worker process" in caplog.text
    whole = relax_crystals(crystals, out=tmp_path / "whole", **arguments)
    assert len(whole.crystals) == 6
    assert contents(tmp_path / "killed") == contents(whole.folder)
