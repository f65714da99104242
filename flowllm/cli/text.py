"""Commands that ask the prior about given crystals: score, ipt, infill."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from flowllm.cli.options import (
    CIF,
    DEVICE,
    FILE,
    LIMIT,
    PATH,
    PRIOR,
    SKIP,
    TABLE,
    Command,
    common_option,
    given,
)

if TYPE_CHECKING:
    from flowllm.generation.scoring import ScoreSummary

_SHOWN = 50  # crystals
_LIKELIEST = 8  # elements of each


@click.command("score", cls=Command, config="flowllm.generation.scoring:ScoringConfig")
@FILE
@PRIOR
@TABLE
@LIMIT
@SKIP
@DEVICE
def score_command(file: Path, **arguments: Any) -> None:
    """Show the log-likelihood of crystals under the prior.

    It is the mean over the crystals of FILE, in nats per crystal.
    """
    from flowllm.generation.scoring import score

    found = score(file, **given(arguments))
    count = len(found.values)
    click.echo(
        f"log-likelihood {_with_error(found, 2)} nats per crystal "
        f"({_crystals(count)}, {sum(row['num_tokens'] for row in found.rows)} tokens)"
    )
    if count < len(found.rows):
        click.echo(f"left out: {len(found.rows) - count} crystals that the grammar cannot write")


@click.command("ipt", cls=Command, config="flowllm.generation.scoring:TranslationConfig")
@FILE
@PRIOR
@TABLE
@LIMIT
@SKIP
@DEVICE
def ipt_command(file: Path, **arguments: Any) -> None:
    """Show the increase in perplexity under translation (IPT).

    It is the mean over the crystals of FILE, divided by the mean perplexity.
    """
    from flowllm.generation.scoring import ipt

    found = ipt(file, **given(arguments))
    click.echo(f"IPT {_with_error(found, 4)} of the mean perplexity ({_crystals(len(found.rows))})")


def _with_error(found: ScoreSummary, decimals: int) -> str:
    """Return a mean with its standard error; a single crystal has none."""
    if len(found.values) < 2:
        return f"{found.mean:.{decimals}f}"
    return f"{found.mean:.{decimals}f} +- {found.standard_error:.{decimals}f}"


def _crystals(count: int) -> str:
    return "1 crystal" if count == 1 else f"{count} crystals"


@click.command("infill", cls=Command, config="flowllm.generation.infilling:InfillingConfig")
@FILE
@common_option("--mask", section="Request", required=True, help="Element to mask, such as Na.")
@PRIOR
@TABLE
@common_option(
    "--structures", type=PATH, help="Run folder to write, with the likeliest swap of each crystal."
)
@CIF
@LIMIT
@SKIP
@DEVICE
def infill_command(file: Path, mask: str, **arguments: Any) -> None:
    """Show which elements could take the place of an element.

    Crystals of FILE without the element are left out.
    """
    from flowllm.generation.infilling import infill

    results = infill(file, mask, **given(arguments))
    for result in results[:_SHOWN]:
        formula = result.crystal.structure.composition.reduced_formula
        likeliest = list(result.probabilities.items())[:_LIKELIEST]
        shown = "  ".join(f"{symbol} {chance:.3f}" for symbol, chance in likeliest)
        click.echo(f"{result.crystal.id}  {formula}  {mask} -> {shown}")
    if len(results) > _SHOWN:
        click.echo(f"... and {len(results) - _SHOWN} more (--out writes all)")
