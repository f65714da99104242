"""The command that measures generated crystals: evaluate."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from flowllm.cli.options import EXECUTOR, OUT, PATH, WORKERS, Command, given


@click.command("evaluate", cls=Command, config="flowllm.evaluation.config:EvaluationConfig")
@click.argument(
    "samples",
    type=PATH,
    nargs=-1,
    required=True,
    help="Run folders, folders or .zip files of CIFs, CSV, parquet, extxyz or JSON.",
)
@OUT
@WORKERS
@EXECUTOR
def evaluate_command(samples: tuple[Path, ...], out: Path, **arguments: Any) -> None:
    """Measure sets of generated crystals, side by side."""
    from flowllm.evaluation.evaluate import evaluate

    result = evaluate(samples, out=out, **given(arguments))

    from flowllm.evaluation.results import REPORT, metrics_table  # slow, after the checks

    click.echo(metrics_table(result.sets))
    click.echo(result.folder)
    click.echo(result.folder / REPORT)
