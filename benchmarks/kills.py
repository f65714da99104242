"""Kills of workers and of whole runs: nothing is lost, changed or left behind.

    OMP_NUM_THREADS=1 python benchmarks/kills.py TRAIN --kills 100 --out kills

Small runs of sample, pair, mutate, predict, relax and evaluate are computed once by one process and
once by two. Files that differ between these two hold times or the command; the others are compared.
Then each run is started again, on the local pool, executorlib or Parsl, and SIGKILL hits one of its
worker processes, or the command itself, after a random time. A command that did not end with exit
code 0 is repeated until it does. A trial fails if a file that both references share is missing or
has other bytes, or if a process is alive half a minute after the end.

TRAIN is MP-20's training split. Relaxing uses ASE's EMT, as its time does not matter here.
"""

from __future__ import annotations

import hashlib
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
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
        provider=LocalProvider(init_blocks=1, max_blocks=1),
    )
    return ParslPoolExecutor(Config(executors=[workers], usage_tracking=0))


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
ATTEMPTS = 4  # of the command, after a kill
GRACE = 30  # seconds until every process must have ended


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


def environment(folder: Path) -> dict[str, str]:
    """Return the environment of the commands."""
    path = os.pathsep.join([str(folder), str(Path(__file__).parents[1])])
    return {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}


def start(arguments: list[str], out: Path, folder: Path, *more: str) -> subprocess.Popen:
    """Start a command in a session of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "flowllm", *arguments, "--out", str(out), *more],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True, cwd=folder,
        env=environment(folder),
    )  # fmt: skip


def hashes(folder: Path) -> dict[str, str]:
    """Return the hash of each file of a folder."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def descendants(process: psutil.Process) -> list[psutil.Process]:
    """Return the living children of a process, and theirs."""
    try:
        return process.children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def alive(processes: set[psutil.Process]) -> list[psutil.Process]:
    """Return the processes that are still there half a minute later."""
    end = time.monotonic() + GRACE
    while True:
        left = [p for p in processes if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]
        if not left or time.monotonic() > end:
            return left
        time.sleep(0.5)


@click.command()
@click.argument("train", type=click.Path(path_type=Path, exists=True))
@click.option("--kills", default=100, show_default=True)
@click.option("--seed", default=0, show_default=True)
@click.option("--job", "only", multiple=True, help="Only these jobs.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="New folder.")
def main(train: Path, kills: int, seed: int, only: tuple[str, ...], out: Path) -> None:
    """Kill, repeat and compare."""
    from ase.build import bulk
    from ase.io import write

    out = out.resolve()
    out.mkdir(parents=True)
    (out / "engines_of_kills.py").write_text(ENGINES)
    metals = out / "metals.extxyz"
    kinds = [("Cu", "Au"), ("Ag", "Pd"), ("Ni", "Pt"), ("Al", "Cu"), ("Pd", "Ni"), ("Au", "Pt")]
    crystals = []
    for number, (one, other) in enumerate(4 * kinds):
        atoms = bulk(one, cubic=True, a=3.7 + 0.02 * number)
        atoms.symbols[0] = other
        crystals.append(atoms)
    write(metals, crystals)
    jobs = commands(train.resolve(), metals)
    jobs = {name: jobs[name] for name in only or jobs}

    expected: dict[str, dict[str, str]] = {}
    took: dict[str, float] = {}
    for name, arguments in jobs.items():
        found = []
        for workers in ("1", "2"):
            folder = out / f"{name}-{workers}"
            begin = time.monotonic()
            code = start(arguments, folder, out, "--workers", workers).wait()
            took[name] = time.monotonic() - begin
            if code:
                raise click.ClickException(f"{name} ends with exit code {code} without a kill")
            found.append(hashes(folder))
        expected[name] = {k: v for k, v in found[0].items() if found[1].get(k) == v}
        click.echo(
            f"{name}: {took[name]:.0f} s with two workers, {len(expected[name])} of "
            f"{len(found[0])} files compared"
        )

    rng, counts, failures = random.Random(seed), Counter[str](), []
    for trial in range(kills):
        name = list(jobs)[trial % len(jobs)]
        executor = EXECUTORS[trial // len(jobs) % len(EXECUTORS)]
        victim = ("worker", "command")[trial // (len(jobs) * len(EXECUTORS)) % 2]
        folder = out / f"trial-{trial}"
        more = ("--workers", "2", "--executor", executor)
        process = start(jobs[name], folder, out, *more)
        command = psutil.Process(process.pid)
        seen: set[psutil.Process] = set()
        until = time.monotonic() + rng.uniform(0.1, 1.0) * took[name]
        while process.poll() is None and time.monotonic() < until:
            seen.update(descendants(command))
            time.sleep(0.1)
        children = descendants(command)
        seen.update(children)
        killed = process.poll() is None and (victim == "command" or bool(children))
        if killed:
            target = command if victim == "command" else rng.choice(children)
            try:
                target.send_signal(signal.SIGKILL)
            except psutil.NoSuchProcess:
                killed = False
        if victim == "command" and killed:
            process.wait()
            left = alive(seen)
        else:
            while process.poll() is None:
                seen.update(descendants(command))
                time.sleep(0.2)
            left = alive(seen)
        code, runs = process.returncode, 1
        while code and runs <= ATTEMPTS:
            code = start(jobs[name], folder, out, *more).wait()
            runs += 1
        found = hashes(folder)
        wrong = [k for k, v in expected[name].items() if found.get(k) != v]
        counts[f"{victim} of {executor.split(':')[-1]}"] += killed
        problem = (
            f"exit code {code}" if code
            else f"{wrong[0]} differs" if wrong
            else f"{len(left)} processes left ({' '.join(left[0].cmdline()[-4:])})" if left
            else ""
        )  # fmt: skip
        if problem:
            failures.append(f"trial {trial}: {name}, {victim} of {executor}: {problem}")
        for one in left:
            one.kill()
        click.echo(
            f"{trial + 1}/{kills} {name}, {victim} of {executor}, "
            f"{'killed' if killed else 'ended before'}, {runs} runs {problem}"
        )
    click.echo(f"{sum(counts.values())} kills: {dict(counts)}; {len(failures)} failures")
    for failure in failures:
        click.echo(failure)
    sys.exit(bool(failures))


if __name__ == "__main__":
    main()
