"""`flowllm sample --refine` and `flowllm pair`, killed again and again, end like undisturbed runs.

The commands run in processes of their own and die of SIGKILL. Most of these processes are forked
from one that has imported everything already, which saves the seconds of a start; the last one is
`python -m flowllm`.
"""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from pymatgen.core import Lattice, Structure

from flowllm.cli import cli
from flowllm.crystals.io import Crystal, write

PREPARED = ["flowllm.generation.pipeline", "flowllm.runs.outputs", "flowllm.training.pairing.run"]
SHARDS = 12
processes = multiprocessing.get_context("forkserver")


def run_cli(arguments: list[str]) -> None:
    """What `python -m flowllm` runs."""
    with open(os.devnull, "w") as nothing:
        sys.stdout = sys.stderr = nothing
        cli(arguments, prog_name="flowllm")


def sample_command(folder: Path) -> list[str]:
    asked = ["sample", "-n", "24", "--batch-size", "2", "--refine", "--formula", "NaCl"]
    return [*asked, "--temperature", "0.9", "--seed", "5", "--device", "cpu"]


def pair_command(folder: Path) -> list[str]:
    crystals = []
    for number in range(12):
        lattice = Lattice.orthorhombic(3.5 + 0.1 * number, 4, 5)
        structure = Structure(lattice, ["Na", "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]])
        crystals.append(Crystal(id=f"target-{number}", structure=structure))
    file = write(crystals, folder / "targets.jsonl")
    asked = ["pair", str(file), "--batch-size", "2", "--samples-per-target", "2"]
    return [*asked, "--max-attempts", "4", "--seed", "5", "--device", "cpu"]


@pytest.fixture(scope="module", autouse=True)
def prepared() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        processes.set_forkserver_preload(PREPARED)
        yield


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def shards(out: Path) -> int:
    return len(list(out.glob("shards/*.jsonl")))


def end(arguments: list[str], out: Path) -> int:
    command = [sys.executable, "-m", "flowllm", *arguments, "--out", str(out)]
    return subprocess.run(command, capture_output=True, timeout=300).returncode


def kill_when(condition: Callable[[], bool], wait: float, arguments: list[str], out: Path) -> int:
    process = processes.Process(target=run_cli, args=([*arguments, "--out", str(out)],))
    process.start()
    deadline = time.monotonic() + 120
    while not condition() and process.is_alive():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.002)
    time.sleep(wait)
    process.kill()
    process.join()
    return process.exitcode


@pytest.mark.parametrize("make", [sample_command, pair_command])
def test_killed_at_random_moments_it_ends_with_the_same_bytes(
    make: Callable[[Path], list[str]], tmp_path: Path
) -> None:
    arguments = make(tmp_path)
    whole, out = tmp_path / "whole", tmp_path / "killed"
    undisturbed = processes.Process(target=run_cli, args=([*arguments, "--out", str(whole)],))
    undisturbed.start()
    undisturbed.join()
    assert undisturbed.exitcode in (0, 1)  # 1: not every crystal was made
    assert shards(whole) == SHARDS

    rng = random.Random(make.__name__)
    # Before the manifest is written, between it and the first shard, and among the shards.
    begun = (out / "manifest.json").exists
    for moment, spread in ((out.exists, 0.003), (begun, 0.05), *[(None, 0.08)] * 3):
        done = shards(out)
        condition = moment or (lambda n=done: shards(out) > n)
        assert kill_when(condition, rng.uniform(0, spread), arguments, out) == -signal.SIGKILL
        assert done <= shards(out) < SHARDS
        assert not (out / "samples.parquet").exists() and not (out / "pairs.parquet").exists()
    # While the shards become the files for people; it may have ended before the signal.
    kill_when(lambda: shards(out) == SHARDS, rng.uniform(0, 0.05), arguments, out)

    assert end(arguments, out) == undisturbed.exitcode
    assert contents(out) == contents(whole)
    assert {name.split("/")[0] for name in contents(whole)} > {"manifest.json", "shards"}
