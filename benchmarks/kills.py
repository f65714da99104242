"""Kills of workers and of whole runs: nothing is lost, changed or left behind.

    OMP_NUM_THREADS=1 python benchmarks/kills.py TRAIN --kills 100 --out kills

Small runs of sample, pair, mutate, predict, relax and evaluate are computed once by one process and
once by two. Files that differ between these two hold times or the command; the others are compared.
Then each run is started again, on the local pool, executorlib or Parsl, and SIGKILL hits one of its
worker processes, or the command itself, after a random time. A command that did not end with exit
code 0 is repeated until it does. A trial fails if a file that both references share is missing or
has other bytes, if a process is alive a minute after the end, or if the command does not end.

The same command goes on where it was cut: `trials.jsonl` in the folder has a line for each trial.
Folders of trials that succeed are removed. TRAIN is MP-20's training split. Relaxing
uses ASE's EMT, as its time does not matter here.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path

import click
import psutil

ENGINES = """
def parsl():
    from parsl import Config, HighThroughputExecutor
    from parsl.concurrent import ParslPoolExecutor
    from parsl.providers import LocalProvider

    workers = HighThroughputExecutor(
        max_workers_per_node=2, cores_per_worker=0.5, address="127.0.0.1", heartbeat_period=1,
        heartbeat_threshold=30,
        provider=LocalProvider(init_blocks=1, max_blocks=1),
    )
    return ParslPoolExecutor(Config(executors=[workers], initialize_logging=False))


def executorlib():
    from executorlib import SingleNodeExecutor

    return SingleNodeExecutor(
        max_workers=2, block_allocation=True, disable_dependencies=True, hostname_localhost=True,
        restart_limit=3,
    )


def emt():
    from ase.calculators.emt import EMT

    return EMT()
"""
EXECUTORS = ("local", "engines_of_kills:executorlib", "engines_of_kills:parsl")
KINDS = [(executor, victim) for victim in ("command", "worker") for executor in EXECUTORS]
ATTEMPTS = 4  # of the command, after a kill
MARK = "FLOWLLM_KILLS"  # in the environment of a run: its folder
GRACE = 60  # seconds until every process must have ended
PATIENCE = 4  # times the time of a run without a kill; then it hangs


@dataclass(frozen=True)
class Trial:
    """What became of a run that was killed."""

    number: int
    job: str
    executor: str
    victim: str
    killed: str  # last words of its command line; empty if the run had ended before
    runs: int
    problem: str

    def __str__(self) -> str:
        how = f"killed ({self.killed})" if self.killed else "ended before"
        ended = f"{self.runs} runs" if self.runs > 1 else "1 run"
        return f"{self.number}: {self.job}, {self.victim} of {self.executor}: {how}, {ended}" + (
            f": {self.problem}" if self.problem else ""
        )


def commands(train: Path, metals: Path) -> dict[str, list[str]]:
    """Return the arguments of each job, without the folder."""
    emt = ["--potential", "engines_of_kills:emt"]
    return {
        "sample": ["sample", "-n", "24", "--batch-size", "3"],
        "pair": ["pair", str(train), "--limit", "24", "--batch-size", "3", "--skip-invalid"],
        "mutate": ["mutate", str(metals), "-n", "80"],
        "predict": ["predict", "NaCl", "TiO2", "MgO", "CaF2", "--num-samples", "2"],
        "relax": ["relax", str(metals), *emt],
        "evaluate": ["evaluate", str(metals), *emt],
    }


def cache(out: Path) -> Path:
    """Return the folder of what `evaluate` caches, another one for each run."""
    return out.with_name(f"{out.name}-cache")


def environment(folder: Path, job: str, out: Path) -> dict[str, str]:
    """Return the environment of a command; Parsl looks for its programs in PATH."""
    path = os.pathsep.join([str(folder), str(Path(__file__).parents[1])])
    changed = {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", MARK: str(out)}
    changed["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    if job == "evaluate":
        changed["FLOWLLM_CACHE"] = str(cache(out))
    return {**os.environ, **changed}


def start(arguments: list[str], out: Path, folder: Path, *more: str) -> subprocess.Popen:
    """Start a command in a session of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "flowllm", *arguments, "--out", str(out), *more],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True, cwd=folder,
        env=environment(folder, arguments[0], out),
    )  # fmt: skip


def hashes(folder: Path) -> dict[str, str]:
    """Return the hash of each file of a folder."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def started_by(out: Path) -> set[psutil.Process]:
    """Return the living processes of the run in a folder, and their descendants.

    Most are found by their environment, as Parsl's workers are no descendants of the command.
    """
    found = set()
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if process.environ().get(MARK) == str(out):
                found |= {process, *process.children(recursive=True)}
    return found


def alive(processes: set[psutil.Process], out: Path) -> set[psutil.Process]:
    """Return the processes of a run that are still there a minute later.

    Args:
        processes: those that were seen; one may have overwritten its environment by a title.
        out: folder of the run.
    """
    end = time.monotonic() + GRACE
    while True:
        seen = {p for p in processes if p.is_running() and p.status() != psutil.STATUS_ZOMBIE}
        left = seen | started_by(out)
        if not left or time.monotonic() > end:
            return left
        time.sleep(0.5)


def name_of(process: psutil.Process) -> str:
    """Return the last words of a command line, which tell engines and workers apart."""
    try:
        return " ".join(process.cmdline()[-4:])[-120:] or "?"
    except psutil.Error:
        return "?"


def write_metals(file: Path) -> None:
    """Write 24 small alloys that EMT knows."""
    from ase.build import bulk
    from ase.io import write

    kinds = [("Cu", "Au"), ("Ag", "Pd"), ("Ni", "Pt"), ("Al", "Cu"), ("Pd", "Ni"), ("Au", "Pt")]
    crystals = []
    for number, (one, other) in enumerate(4 * kinds):
        atoms = bulk(one, cubic=True, a=3.7 + 0.02 * number)
        atoms.symbols[0] = other
        crystals.append(atoms)
    write(file, crystals)


def reference(name: str, arguments: list[str], out: Path) -> tuple[float, dict[str, str]]:
    """Return the seconds of a job with two workers and the hashes of files that are always equal.

    They are computed once and read from the folder later.
    """
    kept = out / f"{name}.json"
    if kept.exists():
        seconds, expected = json.loads(kept.read_text())
        return seconds, expected
    found, seconds = [], 0.0
    for workers in ("1", "2"):
        folder = out / f"{name}-{workers}"
        for place in (folder, cache(folder)):
            shutil.rmtree(place, ignore_errors=True)
        begin = time.monotonic()
        if code := start(arguments, folder, out, "--workers", workers).wait():
            raise click.ClickException(f"{name} ends with exit code {code} without a kill")
        seconds = time.monotonic() - begin
        found.append(hashes(folder))
    expected = {k: v for k, v in found[0].items() if found[1].get(k) == v}
    click.echo(
        f"{name}: {seconds:.0f} s with two workers, {len(expected)} of {len(found[0])} files "
        "compared"
    )
    kept.write_text(json.dumps([seconds, expected]))
    return seconds, expected


def tried(
    number: int, seed: int, share: float, jobs: dict[str, list[str]], names: list[str], out: Path
) -> Trial:
    """Kill a run once, within this share of its time, repeat it until it ends, and compare."""
    name = names[number % len(names)]
    # Another kind for each job of a round; after as many rounds as kinds, each job had each.
    executor, victim = KINDS[(number + number // len(names)) % len(KINDS)]
    seconds, expected = reference(name, jobs[name], out)
    folder = out / f"trial-{number}"
    for place in (folder, cache(folder)):
        shutil.rmtree(place, ignore_errors=True)
    arguments = (jobs[name], folder, out, "--workers", "2", "--executor", executor)
    rng = random.Random(f"{seed} {number}")
    started: list[subprocess.Popen] = []

    def run(until: float) -> bool:
        """Watch the present command until it ends or for so many seconds; return if it ended."""
        end = time.monotonic() + until
        while started[-1].poll() is None:
            if time.monotonic() > end:
                return False
            time.sleep(0.2)
        return True

    killed, seen, left = "", set[psutil.Process](), set[psutil.Process]()
    try:
        started.append(start(*arguments))
        command = psutil.Process(started[-1].pid)
        ended = run(share * rng.uniform(0.1, 1.0) * seconds)
        while not ended and not killed:
            seen = started_by(folder) - {command}
            targets = sorted(seen, key=lambda one: one.pid) if victim == "worker" else [command]
            if targets:
                target = rng.choice(targets)
                with contextlib.suppress(psutil.NoSuchProcess):
                    killed = name_of(target)
                    target.send_signal(signal.SIGKILL)
            else:  # no worker has started yet
                ended = run(0.5)
        ended = run(PATIENCE * seconds)
        left = alive(seen, folder) if ended else set()
        while ended and started[-1].returncode and len(started) <= ATTEMPTS:
            started.append(start(*arguments))
            ended = run(PATIENCE * seconds)
        found = hashes(folder)
        wrong = [k for k, v in expected.items() if found.get(k) != v]
        code = started[-1].returncode
        problem = (
            "does not end" if not ended
            else f"exit code {code}" if code
            else f"{wrong[0]} differs" if wrong
            else f"{len(left)} processes left ({name_of(next(iter(left)))})" if left
            else ""
        )  # fmt: skip
    finally:
        rest = left | started_by(folder)
        for process in started:
            process.kill()
            process.wait()
        for child in rest:
            with contextlib.suppress(psutil.Error):
                child.kill()
    if not problem:
        for place in (folder, cache(folder)):
            shutil.rmtree(place, ignore_errors=True)
    return Trial(number, name, executor.split(":")[-1], victim, killed, len(started), problem)


@click.command()
@click.argument("train", type=click.Path(path_type=Path, exists=True))
@click.option("--kills", default=100, show_default=True)
@click.option("--seed", default=0, show_default=True)
@click.option("--job", "only", multiple=True, help="Only these jobs.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder.")
def main(train: Path, kills: int, seed: int, only: tuple[str, ...], out: Path) -> None:
    """Kill, repeat and compare."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # ends the present trial's processes
    out = out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    (out / "engines_of_kills.py").write_text(ENGINES)
    metals = out / "metals.extxyz"
    if not metals.exists():
        write_metals(metals)
    jobs = commands(train.resolve(), metals)
    log = out / "trials.jsonl"
    lines = log.read_text().splitlines() if log.exists() else []
    trials = {trial.number: trial for trial in (Trial(**json.loads(line)) for line in lines)}
    for number in range(kills):
        if number not in trials:
            share = 1.0
            while True:
                trials[number] = tried(number, seed, share, jobs, list(only or jobs), out)
                if trials[number].killed or trials[number].problem:
                    break
                share /= 2  # it ended before; the machine is less busy than at the reference
            with log.open("a") as file:
                file.write(json.dumps(asdict(trials[number])) + "\n")
            click.echo(str(trials[number]))
    done = [trials[number] for number in range(kills)]
    counts = Counter(f"{trial.victim} of {trial.executor}" for trial in done if trial.killed)
    failures = [trial for trial in done if trial.problem]
    click.echo(f"{counts.total()} kills: {dict(counts)}; {len(failures)} failures")
    for failure in failures:
        click.echo(str(failure))
    sys.exit(bool(failures))


if __name__ == "__main__":
    main()
