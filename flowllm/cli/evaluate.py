"""The command that measures generated crystals: evaluate."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from flowllm.cli.options import OUT, SEED, WORKERS, given

PATH = click.Path(path_type=Path)


@click.command("evaluate")
@click.argument("samples", type=PATH, nargs=-1, required=True)
@click.option("--train", type=PATH, multiple=True, help="For novelty; may be repeated.")
@click.option("--reference", type=PATH, help="For coverage and distances: usually a test set.")
@click.option("--targets", type=PATH, help="Crystals that were to be predicted.")
@click.option(
    "--potential",
    help="Relaxes every crystal: chgnet, matgl:NAME-OR-FOLDER or MODULE:FACTORY.",
)
@click.option(
    "--hull",
    type=PATH,
    help="Known compounds, for stability and S.U.N.: a file, or 'materials-project'.",
)
@click.option(
    "--references",
    type=PATH,
    help="Energies of the elements: a JSON file, or a run of flowllm relax.",
)
@click.option(
    "--min-elements",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Crystals of fewer elements do not count as stable (FlowLLM: 2).",
)
@click.option(
    "--ignore-own-images",
    is_flag=True,
    help="Structural validity as published code has it: an atom may lie on its own image.",
)
@click.option(
    "--valid-coverage", is_flag=True, help="Coverage over valid crystals alone, on both sides."
)
@click.option(
    "--composition-scale",
    type=PATH,
    show_default="those of the reference set",
    help="JSON with means and stds of the 132 composition features.",
)
@click.option(
    "--oxidation-states",
    default="smact14",
    show_default=True,
    help="SMACT's table: smact14 (what published figures mean), icsd16, icsd24 or pymatgen_sp.",
)
@click.option(
    "--feature-novelty",
    is_flag=True,
    help="Novelty by distance of features as well: minutes for a large --train.",
)
@click.option(
    "--submission",
    type=click.Choice(["lemat"]),
    help="Also write what this public leaderboard takes (LeMat-GenBench: 2,500 crystals).",
)
@OUT
@SEED
@WORKERS
def evaluate_command(**arguments: Any) -> None:
    """Measure generated crystals; several SAMPLES are put side by side.

    SAMPLES are run folders of flowllm, folders or .zip files of CIFs, CSV, parquet, extxyz or JSON.
    """
    from flowllm.evaluation.evaluate import evaluate
    from flowllm.evaluation.results import REPORT, metrics_table

    result = evaluate(**given(arguments))
    click.echo(metrics_table(result.sets))
    click.echo(result.folder)
    click.echo(result.folder / REPORT)
