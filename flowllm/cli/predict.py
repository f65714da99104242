"""The command that predicts structures: predict."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from flowllm.cli.options import (
    CIF,
    DEVICE,
    EXECUTOR,
    OUT,
    PART,
    PRIOR,
    REFINER,
    WORKERS,
    Command,
    common_option,
    counts,
    given,
)

if TYPE_CHECKING:
    from flowllm.prediction.outputs import PredictionRun
    from flowllm.prediction.prediction import FormulaOutcome

_SHOWN = 20  # formulas


@click.command("predict", cls=Command, config="flowllm.prediction.config:PredictionConfig")
@click.argument(
    "formulas",
    nargs=-1,
    required=True,
    metavar="FORMULA...",
    help="Formulas such as NaCl, or files of them: text with one on each line, CSV or parquet with "
    "a column formula.",
)
@common_option(
    "-n",
    "n",
    section="Request",
    type=int,
    minimum=1,
    help="Structures for each formula, the best first.",
    default_text="5",
)
@PRIOR
@REFINER
@OUT
@CIF
@WORKERS
@EXECUTOR
@PART
@DEVICE
def predict_command(formulas: tuple[str, ...], out: Path, **arguments: Any) -> None:
    """Predict the structures of formulas.

    Candidates come from known crystals with other elements (templates) and from the prior. With
    --potential they are relaxed and ranked by energy. The same command goes on with a killed run.
    """
    from flowllm.prediction.run import predict

    show(predict(formulas, out=out, **given(arguments)))


def show(run: PredictionRun) -> None:
    """Show the ranked structures of a run, and exit with code 1 if a formula has none."""
    for outcome in run.outcomes[:_SHOWN]:
        click.echo(_table(outcome))
        click.echo()
    if (more := len(run.outcomes) - _SHOWN) > 0:
        click.echo(f"... and {more} more formulas in {run.folder / 'predictions.parquet'}")
    if not run.has_potential:
        click.echo("ranked by the sources alone; --potential chgnet relaxes and ranks by energy")
    made = [outcome for outcome in run.outcomes if outcome.predictions]
    total = sum(len(outcome.predictions) for outcome in made)
    click.echo(f"{total} structures of {len(made)} formulas in {run.folder}")
    failures: Counter[str] = sum((outcome.failures for outcome in run.outcomes), Counter())
    if failures:
        click.echo(f"failed candidates: {counts(failures)}", err=True)
    if len(made) < len(run.outcomes):
        for outcome in run.outcomes:
            if outcome.problem is not None:
                click.echo(f"failed: {outcome.problem}", err=True)
        sys.exit(1)


def _table(outcome: FormulaOutcome) -> str:
    """Return the table of a formula."""
    if not outcome.predictions:
        return f"{outcome.formula}: no structure"
    from flowllm.prediction.summary import NAMES, heads, table_rows

    rows = table_rows(outcome.predictions)
    names = heads(rows)
    cells = [
        [NAMES[name] for name in names],
        *([row.get(name, "-") for name in names] for row in rows),
    ]
    title = f"{outcome.formula}: best of {outcome.num_candidates} candidates"
    if outcome.num_candidates == 1:
        title = f"{outcome.formula}: one candidate"
    if outcome.warning is not None:
        title += f" ({outcome.warning})"
    return "\n".join([title, *_aligned(cells)])


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
