"""Space groups of refined crystals, with symmetry kept and free, and the cost of keeping it.

    OMP_NUM_THREADS=1 python benchmarks/kept_symmetry.py ../shared/data/mp20/val.parquet -n 1000

Crystals of DATA are refined from where they are. The group of a refined crystal is determined by
spglib at --symprec and compared with the group of its start at 0.1 Angstrom, where the refiner
looks for it. A crystal that is not refined has no group and is not counted. The two runs take
turns batch by batch, so that both see the same load of the machine; times are processor time.
"""

from __future__ import annotations

import json
import random
import time
from collections import Counter
from pathlib import Path

import click
import torch

from flowllm.crystals.io import read
from flowllm.hub.locate import BUNDLED_REFINER, resolve
from flowllm.metrics.intervals import wilson
from flowllm.metrics.symmetry import spacegroup_number
from rfm import Refiner, find_symmetry, refine
from rfm.config import INTEGRATION_METHODS, SYMMETRIES
from rfm.symmetry import SYMPREC

BATCH = 100


@click.command()
@click.argument("data", type=click.Path(path_type=Path))
@click.option("-n", default=1000, show_default=True, help="Crystals, drawn at random.")
@click.option("--refiner", "folder", help="Folder; default: the bundled one.")
@click.option("--steps", type=int, help="Steps of the integration; default: the refiner's.")
@click.option("--method", type=click.Choice(INTEGRATION_METHODS), help="Default: the refiner's.")
@click.option("--symprec", default=1e-4, show_default=True, help="Tolerance at the end, Angstrom.")
@click.option("--seed", default=0, show_default=True)
def main(
    data: Path,
    n: int,
    folder: str | None,
    steps: int | None,
    method: str | None,
    symprec: float,
    seed: int,
) -> None:
    """Print the figures for DATA."""
    torch.set_num_threads(1)
    refiner = Refiner.from_pretrained(resolve(folder, BUNDLED_REFINER))
    integration = refiner.config.integration.but(steps=steps, method=method)
    crystals = read(data, max_atoms=refiner.config.max_atoms, skip_invalid=True)
    chosen = [c.structure for c in random.Random(seed).sample(crystals, n)]
    groups = [spacegroup_number(structure, symprec=SYMPREC) for structure in chosen]

    seconds: Counter[str] = Counter()
    results: dict[str, list] = {name: [] for name in SYMMETRIES}
    for at in range(0, n, BATCH):
        part = range(at, min(at + BATCH, n))
        start = time.process_time()
        for k in part:
            find_symmetry(chosen[k])
        seconds["finding symmetry"] += time.process_time() - start
        for name in SYMMETRIES:
            start = time.process_time()
            results[name] += refine(
                refiner,
                [chosen[k] for k in part],
                seed=seed,
                indices=part,
                integration=integration,
                symmetry=name,
            )
            seconds[name] += time.process_time() - start

    figures: dict = {"crystals": n, "of P1": groups.count(1), "symprec": symprec}
    for name, refined in results.items():
        ends = [
            None if r.structure is None else spacegroup_number(r.structure, symprec=symprec)
            for r in refined
        ]
        made = [(group, end) for group, end in zip(groups, ends, strict=True) if end is not None]
        same = sum(group == end for group, end in made)
        low, high = wilson(same, len(made))
        others = Counter((group, end) for group, end in made if group != end)
        figures[name] = {
            "refined": sum(r.structure is not None for r in refined),
            "same group": f"{same} of {len(made)} [{100 * low:.2f}, {100 * high:.2f}]%",
            "most frequent changes": [f"{a} to {b}: {k}" for (a, b), k in others.most_common(10)],
            "triclinic at 0.1 Angstrom": sum(
                (spacegroup_number(r.structure, symprec=SYMPREC) or 1) <= 2
                for r in refined
                if r.structure is not None
            ),
        }
    figures["triclinic at the start"] = sum((group or 1) <= 2 for group in groups)
    figures["ms of processor time per crystal"] = {
        name: round(1000 * value / n, 1) for name, value in seconds.items()
    }
    click.echo(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
