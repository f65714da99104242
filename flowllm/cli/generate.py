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
    WORKERS,
    Conditional,
    given,
    integration,
    report,
    sampling,
)


@click.command("sample", cls=Conditional)
@click.option("-n", "n", type=click.IntRange(min=1), required=True, help="How many crystals.")
@click.option("--composition", help="Exactly these atoms, such as Na4Cl4.")
@click.option("--exclude-elements", help="No crystal has these elements, such as Pb,Cd.")
@click.option(
    "--novel-to",
    type=click.Path(path_type=Path),
    multiple=True,
    help="Crystals whose formulas are drawn again, such as a training set; may be repeated.",
)
@click.option(
    "--best-of",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Candidates of one composition for each crystal, of which the best stays.",
)
@click.option(
    "--rank",
    type=click.Choice(["prior", "energy", "flow"]),
    default="prior",
    show_default=True,
    help="What --best-of goes by: likelihood under the prior, energy, or (slow, with --refine) "
    "likelihood under the flow.",
)
@click.option(
    "--potential",
    help="Of --rank energy: chgnet (default; extra [eval]), matgl:FOLDER or MODULE:FACTORY.",
)
@PRIOR
@REFINER
@click.option("--refine", is_flag=True, help="Move the crystals with the refiner.")
@integration
@sampling(max_attempts=10, batch_size=128)
@OUT
@SEED
@WORKERS
@DEVICE
def sample_command(n: int, **arguments: Any) -> None:
    """Generate crystals into a run folder; started again, it goes on where it was stopped."""
    from flowllm.generation.sampling_run import sample

    report(sample(n, **given(arguments)), n)


@click.command("refine")
@click.argument("file", type=click.Path(path_type=Path))
@REFINER
@integration
@OUT
@SKIP
@SEED
@WORKERS
@DEVICE
def refine_command(**arguments: Any) -> None:
    """Refine the crystals of FILE (CIF file or folder, CSV, parquet, extxyz, JSON, POSCAR).

    For rough crystals such as a prior's samples: it spoils those that are relaxed already.
    """
    from flowllm.generation.sampling_run import refine

    outcome = refine(**given(arguments))
    report(outcome, len(outcome.crystals) + outcome.failures.total())
