"""Errors of a potential on known crystals, and the change of these crystals in relaxation.

    python benchmarks/potentials.py ../shared/data/mp20/val.parquet \\
        --hull ../shared/data/mp20/hull_entries.parquet \\
        --references ../shared/data/mp_reference/mp_elemental_ref_energies_per_atom.json \\
        -n 200 --out runs/chgnet-val

The crystals need formation_energy_per_atom and e_above_hull. The errors of these two are mean
absolute errors over the relaxed crystals. An existing run folder of relaxations is resumed.
"""

from __future__ import annotations

import json
import logging
import random
import sys
import time
from pathlib import Path

import click
import numpy as np

from flowllm.crystals.io import read
from flowllm.energy.calculators import POTENTIAL
from flowllm.energy.formation import read_references
from flowllm.energy.hull import hull_distances, read_hull
from flowllm.energy.relaxation import read_relaxed, relax_crystals
from flowllm.metrics.relaxation import relaxation_change, relaxation_metrics


@click.command()
@click.argument("data", type=click.Path(path_type=Path))
@click.option("--hull", "hull_file", type=click.Path(path_type=Path), required=True)
@click.option("--references", "references_file", type=click.Path(path_type=Path), required=True)
@click.option("--potential", default=POTENTIAL, show_default=True)
@click.option("-n", default=200, show_default=True, help="Crystals, drawn at random.")
@click.option("--seed", default=0, show_default=True)
@click.option("--workers", default=1, show_default=True)
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Run folder.")
def main(
    data: Path,
    hull_file: Path,
    references_file: Path,
    potential: str,
    n: int,
    seed: int,
    workers: int,
    out: Path,
) -> None:
    """Print the figures for DATA."""
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr)
    logging.getLogger("flowllm").setLevel(logging.INFO)
    crystals = random.Random(seed).sample(read(data, skip_invalid=True), n)
    start = time.perf_counter()
    outcome = relax_crystals(crystals, potential=potential, out=out, workers=workers)
    minutes = (time.perf_counter() - start) / 60
    run = read_relaxed(outcome.folder)
    distances = hull_distances(
        run.structures,
        run.energies_per_atom,
        read_hull(hull_file),
        scheme=run.scheme,
        potential=run.potential,
        references=read_references(references_file),
    )
    known = [c.properties for c in crystals]
    errors = {
        name: np.array(
            [
                getattr(found, name) - float(values[name])
                for found, values in zip(distances, known, strict=True)
                if getattr(found, name) is not None
            ]
        )
        for name in ("formation_energy_per_atom", "e_above_hull")
    }
    figures = relaxation_metrics(
        [
            relaxation_change(
                run.initial[i],
                run.structures[i],
                initial_energy_per_atom=run.initial_energies_per_atom[i],
                energy_per_atom=run.energies_per_atom[i],
                steps=run.steps[i],
            )
            for i in range(n)
        ]
    )
    result = {
        "crystals": n,
        "failed": dict(outcome.failures),
        **{
            f"{name}, MAE meV/atom": round(1000 * float(np.abs(error).mean()), 1)
            for name, error in errors.items()
        },
        **{name: vars(estimate) for name, estimate in figures.items()},
        "crystals/minute (0 if resumed)": round(n / minutes, 1) if minutes > 0.5 else 0,
        "workers": workers,
    }
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
