"""Memory, processor time, workers and file-system operations of `flowllm sample` as the run grows.

    OMP_NUM_THREADS=1 python benchmarks/scaling.py memory 1000 4000 20000 --option --no-refine
    OMP_NUM_THREADS=1 python benchmarks/scaling.py workers 256 1536       # two idle cores
    OMP_NUM_THREADS=1 python benchmarks/scaling.py files 128 --parts 2    # needs strace
    OMP_NUM_THREADS=1 python benchmarks/scaling.py shards 50              # needs strace

`memory` runs the whole command for each size, each in a process of its own, and prints the peak of
its resident memory; the slope is that of the straight line between neighbouring sizes. `workers`
runs two sizes with one worker and with two. What a further crystal takes is free of imports and
loading; its processor time tells what the second worker costs where cores are not idle. `files`
runs the parts of a run one after the other, then `flowllm merge` on the same shards, and counts the
system calls on paths in it. `--option` adds an option of `flowllm sample`. `shards` counts them for
each further shard of a part, whose records are empty.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import click

# System calls that a file server has to answer. Reading and writing of open files are not counted.
CALLS = (
    *("open", "openat", "creat", "stat", "lstat", "newfstatat", "statx", "access", "faccessat2"),
    *("mkdir", "mkdirat", "rename", "renameat", "renameat2", "unlink", "unlinkat", "rmdir"),
    *("link", "linkat", "chmod", "fchmodat", "readlink", "getdents64", "fsync", "fdatasync"),
    *("flock", "fcntl"),
)


@contextmanager
def new_folder(keep: Path | None) -> Iterator[Path]:
    """Give a folder for runs, which is removed at the end unless the user names one."""
    if keep is not None:
        keep.mkdir(parents=True, exist_ok=True)
        yield keep
        return
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


def measured(command: Sequence[str]) -> tuple[float, float]:
    """Run a command; return its peak resident memory in MB and its processor time in seconds."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    assert process.stderr is not None
    shown = process.stderr.read().decode(errors="replace")
    _, status, usage = os.wait4(process.pid, 0)
    if os.waitstatus_to_exitcode(status) not in (0, 1):  # 1: some crystals were not made
        sys.exit(shown)
    return usage.ru_maxrss * 1024 / 1e6, usage.ru_utime + usage.ru_stime


def flowllm(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "flowllm", *map(str, arguments)]


@click.group()
def main() -> None:
    """Measure how a run scales."""


@main.command()
@click.argument("sizes", nargs=-1, type=int, required=True)
@click.option("--folder", type=click.Path(path_type=Path), help="Keep the runs there.")
@click.option("--option", "options", multiple=True, help="Option of flowllm sample; repeatable.")
def memory(sizes: Sequence[int], folder: Path | None, options: Sequence[str]) -> None:
    """Print peak memory and processor time of runs of SIZES crystals."""
    before: tuple[int, float, float] | None = None
    with new_folder(folder) as runs:
        for size in sorted(sizes):
            out = runs / f"sample-{size}"
            command = flowllm("sample", "-n", size, "--seed", 1, "--device", "cpu", "-o", out)
            peak, seconds = measured([*command, *options])
            line = f"n = {size}: peak {peak:.0f} MB, {seconds:.1f} s of processor time"
            if before is not None:
                added = size - before[0]
                line += (
                    f"; {1000 * (peak - before[1]) / added:.1f} kB and "
                    f"{1000 * (seconds - before[2]) / added:.1f} ms for each further crystal"
                )
            click.echo(line)
            before = (size, peak, seconds)


@main.command()
@click.argument("few", type=int)
@click.argument("many", type=int)
@click.option("--option", "options", multiple=True, help="Option of flowllm sample; repeatable.")
def workers(few: int, many: int, options: Sequence[str]) -> None:
    """Print the time of runs of FEW and of MANY crystals with one worker and with two."""
    further: list[tuple[float, float]] = []
    whole: list[tuple[float, float]] = []
    for number in (1, 2):
        found = []
        for size in (few, many):
            with new_folder(None) as runs:
                command = flowllm("sample", "-n", size, "--seed", 1, "--device", "cpu")
                command += ["-o", str(runs / "sample"), "--workers", str(number)]
                command += ["--batch-size", "64", *options]
                begin = time.perf_counter()
                seconds = measured(command)[1]
                found.append((time.perf_counter() - begin, seconds))
        each = [1000 * (b - a) / (many - few) for a, b in zip(*found, strict=True)]
        further.append((each[0], each[1]))
        whole.append(found[1])
        click.echo(
            f"{number} worker{'s'[: number - 1]}: {many} crystals in {found[1][0]:.1f} s, "
            f"{found[1][1]:.1f} s of processor time; each further crystal {each[0]:.1f} ms, "
            f"{each[1]:.1f} ms of processor time"
        )
    for what, (one, two) in (("each further crystal", further), ("the whole run", whole)):
        click.echo(
            f"{what}: two workers are {one[0] / two[0]:.2f} times as fast and take "
            f"{two[1] / one[1]:.2f} times the processor time"
        )


@main.command()
@click.argument("size", type=int)
@click.option("--parts", type=int, default=4, show_default=True)
@click.option("--folder", type=click.Path(path_type=Path), help="Keep the run there.")
@click.option("--option", "options", multiple=True, help="Option of flowllm sample; repeatable.")
def files(size: int, parts: int, folder: Path | None, options: Sequence[str]) -> None:
    """Print the system calls on the run folder by each part of a run of SIZE crystals."""
    if shutil.which("strace") is None:
        sys.exit("strace is not installed")
    with new_folder(folder) as runs:
        out = (runs / "parts").resolve()
        jobs = {
            f"part {number}/{parts}": [
                *flowllm("sample", "-n", size, "--seed", 1, "--device", "cpu", "-o", out),
                *("--part", f"{number}/{parts}", *options),
            ]
            for number in range(1, parts + 1)
        }
        (out.parent / "trace").mkdir(exist_ok=True)
        for name, command in jobs.items():
            report(name, traced(command, out))
        for output in ("samples.parquet", "samples.extxyz"):
            (out / output).unlink(missing_ok=True)
        shutil.rmtree(out / "cif", ignore_errors=True)
        report("merge", traced(flowllm("merge", out), out))


@main.command()
@click.argument("number", type=int)
def shards(number: int) -> None:
    """Print the system calls for each shard, from parts of NUMBER and of twice as many shards."""
    if shutil.which("strace") is None:
        sys.exit("strace is not installed")
    found = []
    for count in (number, 2 * number):
        with new_folder(None) as runs:
            out = (runs / "parts").resolve()
            (runs / "trace").mkdir()
            found.append(traced([sys.executable, __file__, "empty", str(out), str(count)], out))
    few, many = found
    each = {call: (many[call] - few[call]) / number for call in many if many[call] > few[call]}
    listed = ", ".join(f"{call} {calls:.2f}" for call, calls in sorted(each.items()))
    click.echo(f"each shard: {sum(each.values()):.1f} calls ({listed})")


@main.command(hidden=True)
@click.argument("out", type=click.Path(path_type=Path))
@click.argument("count", type=int)
def empty(out: Path, count: int) -> None:
    """Compute part 1/2 of a run of twice COUNT shards with a record each."""
    from flowllm.runs.parts import Unfinished
    from flowllm.runs.sharded import run_job

    with suppress(Unfinished):
        run_job(
            out,
            manifest={},
            total=2 * count,
            batch_size=1,
            work=no_work,
            part="1/2",
            progress=False,
        )


def no_work(context: object, batch: object, progress: object) -> list[dict[str, object]]:
    return [{}]


def traced(command: Sequence[str], out: Path) -> Counter[str]:
    """Run a command under strace; count its calls on `out` and on what is in it."""
    trace = out.parent / "trace" / "calls"
    calls = ",".join(f"?{call}" for call in CALLS)
    peak, seconds = measured(
        [
            "strace",
            "-f",
            "--seccomp-bpf",
            "-y",
            "-s",
            "4096",
            "-e",
            f"trace={calls}",
            "-o",
            str(trace),
            *command,
        ]
    )
    place = re.escape(str(out))
    pattern = re.compile(rf'^(?:\d+ +)?(\w+)\(.*["<]{place}[/">]')
    counts: Counter[str] = Counter()
    with trace.open(errors="replace") as lines:
        for line in lines:
            if (found := pattern.match(line)) and "resumed" not in line:
                counts[found[1]] += 1
    trace.unlink()
    return counts


def report(name: str, counts: Counter[str]) -> None:
    each = ", ".join(f"{call} {number}" for call, number in counts.most_common())
    click.echo(f"{name}: {counts.total()} calls ({each})")


if __name__ == "__main__":
    main()
