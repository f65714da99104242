"""Commands that make crystals: sample, refine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from flowllm.cli.options import (
    DEVICE,
    OUT,
    PRIOR,
    REFINER,
    SEED,
    SKIP,
    STEPS,
    WORKERS,
    Conditional,
    given,
    report,
    sampling,
)


@click.command("sample", cls=Conditional)
@click.option("-n", "n", type=click.IntRange(min=1), required=True, help="How many crystals.")
@click.option("--composition", help="Exactly these atoms, such as Na4Cl4.")
@click.option("--exclude-elements", help="No crystal has these elements, such as Pb,Cd.")
@PRIOR
@REFINER
@click.option("--refine", is_flag=True, help="Move the crystals with the refiner.")
@STEPS
@sampling(max_attempts=10, batch_size=128)
@OUT
@SEED
@WORKERS
@DEVICE
def sample_command(n: int, **arguments: Any) -> None:
    """Generate crystals into a run folder; started again, it goes on where it was stopped."""
    from flowllm.runs import sample

    report(sample(n, **given(arguments)), n)


@click.command("refine")
@click.argument("file", type=click.Path(path_type=Path))
@REFINER
@STEPS
@click.option("--method", show_default="the refiner's own", help="euler, midpoint or heun.")
@click.option(
    "--position-slope",
    type=float,
    show_default="the refiner's own",
    help="Anti-annealing s of the positions: velocities times 1 + s t.",
)
@click.option(
    "--cell-slope", type=float, show_default="the refiner's own", help="The same of the cell."
)
@click.option("--trajectory", is_flag=True, help="Write the way to trajectories/NAME.extxyz.")
@click.option("--score", is_flag=True, help="Add log-likelihoods under the flow; slow.")
@OUT
@SKIP
@SEED
@WORKERS
@DEVICE
def refine_command(**arguments: Any) -> None:
    """Refine the crystals of FILE (CIF file or folder, CSV, parquet, extxyz, JSON, POSCAR).

    For rough crystals such as a prior's samples: it spoils those that are relaxed already.
    """
    from flowllm.runs import refine

    outcome = refine(**given(arguments))
    report(outcome, len(outcome.crystals) + outcome.failures.total())
