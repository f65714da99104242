"""Processor time of `flowllm sample --refine` in two or more source trees, side by side.

    git clone . ../release && git -C ../release checkout 25c8396
    OMP_NUM_THREADS=1 python benchmarks/end_to_end.py ../release . -n 1000 --rounds 2

Every round runs the command once in each tree, one after the other, so that all see the same load
of the machine. Each run is a process of its own; its processor time is what the system charged it
and its children. The parts are timed inside it: everything before the first crystal, the prior,
everything from volume to refined structure, the files at the end, and what is left. The models are
those that each tree bundles, unless --prior and --refiner name others. All trees use the
interpreter that runs this file. Figures of a tree are medians over the rounds.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import click

PARTS = ("loading", "prior", "refiner", "writing")
# Runs the command in a tree, with timers around the functions of the parts.
CHILD = """
import functools, json, sys, time
seconds = dict.fromkeys(("loading", "prior", "refiner", "writing"), 0.0)
def timed(module, name, part):
    function = getattr(module, name)
    @functools.wraps(function)
    def run(*args, **options):
        start = time.process_time()
        try:
            return function(*args, **options)
        finally:
            seconds[part] += time.process_time() - start
    setattr(module, name, run)
from flowllm.cli import cli
from flowllm.generation import sampling_run
job, load = sampling_run.run_job, sampling_run.load_models
def loading(*args, **options):
    models = load(*args, **options)
    from flowllm.generation import pipeline
    timed(pipeline, "propose", "prior")
    timed(pipeline.FlowLLM, "_refine_samples", "refiner")
    return models
def begin(*args, **options):
    seconds["loading"] = time.process_time()
    return job(*args, **options)
sampling_run.load_models, sampling_run.run_job = loading, begin
names = "publish_samples", "_publish"
publish = next(name for name in names if hasattr(sampling_run, name))
timed(sampling_run, publish, "writing")
try:
    cli(sys.argv[2:], standalone_mode=False)
except SystemExit:  # some crystals failed
    pass
open(sys.argv[1], "w").write(json.dumps(seconds))
"""


def run(tree: Path, arguments: list[str]) -> dict[str, float]:
    """Return the seconds of processor time of one run by part, and of the whole process.

    Args:
        tree: source tree.
        arguments: of the command `sample`.

    Raises:
        click.ClickException: if the command fails.
    """
    with tempfile.TemporaryDirectory() as folder:
        times = Path(folder) / "seconds.json"
        process = subprocess.Popen(
            [
                sys.executable,
                "-c",
                CHILD,
                str(times),
                "sample",
                "--out",
                f"{folder}/run",
                *arguments,
            ],
            cwd=tree,
            env={**os.environ, "PYTHONPATH": str(tree.resolve()), "OMP_NUM_THREADS": "1"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert process.stderr is not None
        log = process.stderr.read()
        _, _, usage = os.wait4(process.pid, 0)
        if not times.exists() or not Path(folder, "run", "samples.parquet").exists():
            raise click.ClickException(f"{tree}: {log[-2000:]}")
        seconds = json.loads(times.read_text())
        seconds["whole"] = usage.ru_utime + usage.ru_stime
    return seconds


def show(name: str, rounds: list[dict[str, float]], n: int) -> dict[str, float]:
    """Print the figures of a tree and return the medians by part."""
    median = {part: statistics.median(r[part] for r in rounds) for part in rounds[0]}
    work = median["whole"] - median["loading"]
    parts = ", ".join(f"{part} {median[part]:.2f} s" for part in PARTS)
    whole = ", ".join(f"{r['whole']:.2f}" for r in rounds)
    rates = ", ".join(f"{part} {n / median[part]:.0f}/s" for part in ("prior", "refiner"))
    click.echo(f"{name}: whole {median['whole']:.2f} s ({parts}); without loading {n / work:.1f}/s")
    click.echo(f"  {rates}; whole runs: {whole}")
    return median


@click.command()
@click.argument("trees", nargs=-1, required=True, type=click.Path(exists=True, path_type=Path))
@click.option("-n", default=1000, show_default=True, help="Crystals.")
@click.option("--rounds", default=1, show_default=True, help="Runs of each tree.")
@click.option("--seed", default=0, show_default=True)
@click.option("--prior", help="For every tree; default: the bundled one.")
@click.option("--refiner", help="For every tree; default: the bundled one.")
def main(
    trees: tuple[Path, ...],
    n: int,
    rounds: int,
    seed: int,
    prior: str | None,
    refiner: str | None,
) -> None:
    """Compare source TREES; ratios are those of the first tree to each other one."""
    arguments = ["-n", str(n), "--refine", "--seed", str(seed)]
    arguments += [] if prior is None else ["--prior", prior]
    arguments += [] if refiner is None else ["--refiner", refiner]
    seconds: dict[Path, list[dict[str, float]]] = {tree: [] for tree in trees}
    for _ in range(rounds):
        for tree in trees:
            seconds[tree].append(run(tree, arguments))
    medians = [show(str(tree), of_tree, n) for tree, of_tree in seconds.items()]
    first = medians[0]
    for tree, median in zip(trees[1:], medians[1:], strict=True):
        work = (first["whole"] - first["loading"]) / (median["whole"] - median["loading"])
        click.echo(
            f"{tree} against {trees[0]}: whole {first['whole'] / median['whole']:.2f} times, "
            f"without loading {work:.2f} times"
        )


if __name__ == "__main__":
    main()
