"""The command that measures generated crystals: evaluate."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from flowllm.cli.options import OUT, PATH, WORKERS, Command, given


@click.command("evaluate", cls=Command, config="flowllm.evaluation.config:EvaluationConfig")
@click.argument("samples", type=PATH, nargs=-1, required=True)
@OUT
@WORKERS
def evaluate_command(samples: tuple[Path, ...], out: Path, **arguments: Any) -> None:
    """Measure generated crystals; several SAMPLES are compared side by side.

    SAMPLES are run folders of flowllm, folders or .zip files of CIFs, CSV, parquet, extxyz or JSON.
    """
    from flowllm.evaluation.evaluate import evaluate
    from flowllm.evaluation.results import REPORT, metrics_table

    result = evaluate(samples, out=out, **given(arguments))
    click.echo(metrics_table(result.sets))
    click.echo(result.folder)
    click.echo(result.folder / REPORT)
