"""Match rate of the pairs that `flowllm pair` made, before and after refining.

    flowllm pair val.parquet --limit 1200 --skip-invalid --volume prior --out pairs
    python benchmarks/pair_match.py pairs/pairs.parquet -n 400 --refiner bundled:sites \\
        --symmetry keep --symmetry free
    python benchmarks/pair_match.py pairs/pairs.parquet -n 300 --refiner bundled:wyckoff \\
        --integration euler:50 --integration euler:10 --integration midpoint:5

Some pairs are drawn at random. A base matches its target by pymatgen's StructureMatcher (stol 0.5,
angle_tol 10, ltol 0.3); a base that could not be refined counts as not matched. The matcher scales
volumes, so the error of the volume stands beside it, over all pairs. With --template-volume every
base is also scaled to the volume of templates (`flowllm.templates.volumes`) of other formulas.
"""

from __future__ import annotations

import itertools
import random
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from pymatgen.core import Structure

from flowllm.hub.locate import BUNDLED_REFINER, resolve
from flowllm.metrics.csp import rms_distance
from flowllm.metrics.intervals import wilson
from flowllm.templates.volumes import with_template_volume
from flowllm.training.pairing.table import read_pairs
from rfm import Refiner, refine


def show(name: str, made: Sequence[Structure | None], targets: Sequence[Structure]) -> None:
    """Print the figures of crystals, None where there is none, against their targets."""
    pairs = [(a, b) for a, b in zip(made, targets, strict=True) if a is not None]
    found = [rms_distance(a, b) for a, b in pairs]
    met = [distance for distance in found if distance is not None]
    off = np.abs([a.volume / b.volume - 1 for a, b in pairs])
    low, high = wilson(len(met), len(targets))
    click.echo(
        f"{name}: match {100 * len(met) / len(targets):.1f}% [{100 * low:.1f}, {100 * high:.1f}], "
        f"RMSD {np.mean(met):.3f}, volume off by {100 * np.median(off):.1f}% (median), by more "
        f"than 20% in {100 * np.mean(off > 0.2):.1f}%"
    )


def parse_integration(text: str) -> dict[str, Any]:
    """Return settings of an integration from METHOD:STEPS[:SLOPE]; none from an empty text."""
    names = ("method", "steps", "position_slope")
    kinds = (str, int, float)
    values = text.split(":") if text else []
    return {name: kind(value) for name, kind, value in zip(names, kinds, values, strict=False)}


@click.command()
@click.argument("file", type=click.Path(exists=True, path_type=Path))
@click.option("-n", default=400, show_default=True, help="Pairs, drawn at random.")
@click.option("--refiner", "refiners", multiple=True, help="Folder, run or bundled:PAIR.")
@click.option(
    "--symmetry", "symmetries", multiple=True, type=click.Choice(["keep", "free"]), default=["keep"]
)
@click.option(
    "--integration",
    "integrations",
    multiple=True,
    metavar="METHOD:STEPS[:SLOPE]",
    help="With the slope of the positions; default: the refiner's.",
)
@click.option("--template-volume", is_flag=True, help="Also with the volume of templates.")
@click.option("--seed", default=0, show_default=True)
def main(
    file: Path,
    n: int,
    refiners: tuple[str, ...],
    symmetries: tuple[str, ...],
    integrations: tuple[str, ...],
    template_volume: bool,
    seed: int,
) -> None:
    """Print the figures of the pairs in FILE."""
    torch.set_num_threads(1)
    pairs = read_pairs(file)
    random.Random(seed).shuffle(pairs)
    bases = [pair.base for pair in pairs[:n]]
    targets = [pair.target for pair in pairs[:n]]
    starts = {"": bases}
    if template_volume:
        starts[", volume of templates"] = [
            with_template_volume(base, exclude_formula=True) for base in bases
        ]
    for volume, start in starts.items():
        show(f"raw{volume}", start, targets)
    for name in refiners:
        refiner = Refiner.from_pretrained(resolve(name, BUNDLED_REFINER))
        for symmetry, text in itertools.product(symmetries, integrations or ("",)):
            integration = refiner.config.integration.but(**parse_integration(text))
            for volume, start in starts.items():
                begin = time.process_time()
                refined = refine(
                    refiner, start, seed=seed, symmetry=symmetry, integration=integration
                )
                seconds = time.process_time() - begin
                made = [result.structure for result in refined]
                show(f"{name}, {symmetry}{volume} {text}", made, targets)
                click.echo(f"  {1000 * seconds / len(start):.1f} ms of processor time a crystal")


if __name__ == "__main__":
    main()
