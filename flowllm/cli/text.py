"""Commands that ask the prior about given crystals: score, ipt, infill."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from flowllm.cli.options import (
    DEVICE,
    FILE,
    LIMIT,
    PRIOR,
    SEED,
    SKIP,
    TABLE,
    Command,
    Option,
    given,
    run_option,
)

if TYPE_CHECKING:
    from flowllm.generation.scoring import ScoreSummary

_SHOWN = 50  # crystals
_LIKELIEST = 8  # elements of each

BATCH_SIZE = run_option(
    "--batch-size", type=click.IntRange(min=1), help="Crystals in a batch, as memory allows."
)


def names(context: click.Context, parameter: click.Parameter, value: str | None) -> tuple[str, ...]:
    """Return the words of a comma-separated list."""
    return tuple(word.strip() for word in value.split(",")) if value else ()


@click.command("score", cls=Command)
@FILE
@PRIOR
@run_option(
    "--conditions",
    callback=names,
    metavar="NAME,...",
    help="Conditions in the prompt, each with the crystal's own value, such as formula,num_atoms.",
)
@run_option("--constrain", is_flag=True, help="Normalise over the tokens of constrained decoding.")
@TABLE
@BATCH_SIZE
@LIMIT
@SKIP
@DEVICE
def score_command(file: Path, **arguments: Any) -> None:
    """Show the log-likelihood of the crystals of FILE under the prior, in nats per crystal."""
    from flowllm.generation.scoring import score

    found = score(file, **given(arguments))
    count = len(found.values)
    click.echo(
        f"log-likelihood {_with_error(found, 2)} nats per crystal "
        f"({_crystals(count)}, {sum(row['num_tokens'] for row in found.rows)} tokens)"
    )
    if count < len(found.rows):
        click.echo(f"left out: {len(found.rows) - count} crystals that the grammar cannot write")


@click.command("ipt", cls=Command)
@FILE
@PRIOR
@run_option(
    "--num-translations",
    type=click.IntRange(min=1),
    help="Random translations of each crystal.  [default: 20]",
)
@TABLE
@SEED
@BATCH_SIZE
@LIMIT
@SKIP
@DEVICE
def ipt_command(file: Path, **arguments: Any) -> None:
    """Show the increase in perplexity under translation (IPT) of the crystals of FILE."""
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


@click.command("infill", cls=Command)
@FILE
@click.option(
    "--mask", cls=Option, section="Request", required=True, help="Element to mask, such as Na."
)
@PRIOR
@run_option(
    "--temperature",
    type=float,
    help="Divides the log-probabilities; 0 keeps the likeliest element.  [default: 1.0]",
)
@run_option("--swap-table", is_flag=True, help="Only elements that the swap table allows.")
@TABLE
@BATCH_SIZE
@LIMIT
@SKIP
@DEVICE
def infill_command(file: Path, mask: str, **arguments: Any) -> None:
    """Show which elements could replace one element in the crystals of FILE."""
    from flowllm.generation.infilling import infill

    results = infill(file, mask, **given(arguments))
    for result in results[:_SHOWN]:
        formula = result.crystal.structure.composition.reduced_formula
        likeliest = list(result.probabilities.items())[:_LIKELIEST]
        shown = "  ".join(f"{symbol} {chance:.3f}" for symbol, chance in likeliest)
        click.echo(f"{result.crystal.id}  {formula}  {mask} -> {shown}")
    if len(results) > _SHOWN:
        click.echo(f"... and {len(results) - _SHOWN} more (--out writes all)")
