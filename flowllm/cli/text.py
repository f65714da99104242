"""Commands that ask the prior about given crystals: score, ipt, infill, mutate."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from flowllm.cli.options import DEVICE, OUT, PRIOR, SEED, SKIP, WORKERS, given, report

if TYPE_CHECKING:
    from flowllm.generation.scoring import Measured

FILE = click.argument("file", type=click.Path(path_type=Path))
TABLE = click.option("--out", type=click.Path(path_type=Path), help="CSV to write.")
LIMIT = click.option("--limit", type=click.IntRange(min=1), help="Only the first so many crystals.")
TEMPERATURE = click.option(
    "--temperature",
    default=1.0,
    show_default=True,
    help="Divides the log-probabilities; 0: the likeliest.",
)
_SHOWN = 50  # crystals
_LIKELIEST = 8  # elements of each


def batch_size(default: int) -> Any:
    return click.option(
        "--batch-size",
        type=click.IntRange(min=1),
        default=default,
        show_default=True,
        help="As memory allows.",
    )


def names(context: click.Context, parameter: click.Parameter, value: str | None) -> tuple[str, ...]:
    return tuple(word.strip() for word in value.split(",")) if value else ()


@click.command("score")
@FILE
@PRIOR
@click.option(
    "--conditions",
    callback=names,
    metavar="NAME,...",
    help="Conditions in the prompt, each with the crystal's own value, such as formula,num_atoms.",
)
@click.option(
    "--constrain", is_flag=True, help="Among the tokens that constrained decoding allows."
)
@TABLE
@batch_size(32)
@LIMIT
@SKIP
@DEVICE
def score_command(**arguments: Any) -> None:
    """Log-likelihood of the crystals of FILE, in nats for each."""
    from flowllm.generation.scoring import score

    found = score(**given(arguments))
    count = len(found.values)
    click.echo(
        f"log-likelihood {_with_error(found, 2)} nats per crystal "
        f"({_crystals(count)}, {sum(row['num_tokens'] for row in found.rows)} tokens)"
    )
    if count < len(found.rows):
        click.echo(f"{len(found.rows) - count} crystals that the grammar cannot write are left out")


@click.command("ipt")
@FILE
@PRIOR
@click.option("--num-translations", type=click.IntRange(min=1), default=20, show_default=True)
@TABLE
@SEED
@batch_size(32)
@LIMIT
@SKIP
@DEVICE
def ipt_command(**arguments: Any) -> None:
    """Increase in perplexity under random translations of the crystals of FILE, normalised."""
    from flowllm.generation.scoring import ipt

    found = ipt(**given(arguments))
    click.echo(f"IPT {_with_error(found, 4)} of the mean perplexity ({_crystals(len(found.rows))})")


def _with_error(found: Measured, decimals: int) -> str:
    """A mean and its standard error, which one crystal has not."""
    if len(found.values) < 2:
        return f"{found.mean:.{decimals}f}"
    return f"{found.mean:.{decimals}f} +- {found.standard_error:.{decimals}f}"


def _crystals(count: int) -> str:
    return "1 crystal" if count == 1 else f"{count} crystals"


@click.command("infill")
@FILE
@click.option("--mask", required=True, help="Element to mask, such as Na.")
@PRIOR
@TEMPERATURE
@click.option("--swap-table", is_flag=True, help="Only elements that the swap table allows.")
@TABLE
@batch_size(16)
@LIMIT
@SKIP
@DEVICE
def infill_command(**arguments: Any) -> None:
    """Which elements the prior would put in the place of one, for each crystal of FILE."""
    from flowllm.generation.infilling import infill

    results = infill(**given(arguments))
    for result in results[:_SHOWN]:
        formula = result.crystal.structure.composition.reduced_formula
        likeliest = list(result.probabilities.items())[:_LIKELIEST]
        shown = "  ".join(f"{symbol} {chance:.3f}" for symbol, chance in likeliest)
        click.echo(f"{result.crystal.id}  {formula}  {arguments['mask']} -> {shown}")
    if len(results) > _SHOWN:
        click.echo(f"... and {len(results) - _SHOWN} more (--out writes all)")


@click.command("mutate")
@FILE
@click.option("-n", "n", type=click.IntRange(min=1), required=True, help="How many crystals.")
@click.option(
    "--method",
    type=click.Choice(["llm", "uniform"]),
    default="llm",
    show_default=True,
    help="Draw the new element from the prior, or evenly from the swap table.",
)
@PRIOR
@TEMPERATURE
@click.option(
    "--swap-table/--no-swap-table",
    default=True,
    show_default=True,
    help="Only swaps that the swap table allows.",
)
@click.option("--potential", help="Relax with it: matgl:FOLDER, chgnet or MODULE:FACTORY.")
@OUT
@SEED
@SKIP
@WORKERS
@DEVICE
def mutate_command(n: int, **arguments: Any) -> None:
    """Propose crystals by swapping an element of those of FILE; a run folder like sample's."""
    from flowllm.generation.mutation import mutate

    report(mutate(n=n, **given(arguments)), n)
