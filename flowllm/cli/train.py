"""Commands that train: train-llm, pair, train-rfm."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from flowllm.cli.options import (
    DEVICE,
    OUT,
    OVERRIDES,
    PRIOR,
    RESUME,
    SEED,
    SKIP,
    VALIDATION,
    WORKERS,
    counts,
    given,
    sampling,
)


@click.command("train-llm")
@click.option("--config", default="llm/small", show_default=True, help="Recipe name or YAML file.")
@click.option("--data", multiple=True, required=True, help="Crystals; may be repeated.")
@VALIDATION
@OUT
@SKIP
@SEED
@RESUME
@DEVICE
@click.option("--merge", is_flag=True, help="Also write OUT/merged: the adapter in its base.")
@OVERRIDES
def train_llm_command(**arguments: Any) -> None:
    """Train or fine-tune the text prior on crystals."""
    from flowllm.training.prior import train_llm

    click.echo(train_llm(**given(arguments)))


@click.command("pair")
@click.argument("data", type=click.Path(path_type=Path))
@OUT
@click.option(
    "--samples",
    type=click.Path(path_type=Path),
    help="Crystals from anywhere instead of the prior's samples.",
)
@PRIOR
@click.option("--samples-per-target", type=click.IntRange(min=1), default=1, show_default=True)
@sampling(max_attempts=3, batch_size=128)
@click.option("--limit", type=click.IntRange(min=1), help="Only the first so many crystals.")
@SKIP
@SEED
@WORKERS
@DEVICE
def pair_command(**arguments: Any) -> None:
    """Pair the prior's samples, or those of a file, with the crystals of DATA."""
    from flowllm.training.pairing.prior_pairs import pair

    outcome = pair(**given(arguments))
    click.echo(outcome.file)
    click.echo(
        f"{outcome.kept} of {outcome.requested} samples kept ({outcome.first_try} at the first "
        f"attempt); refused: {counts(outcome.rejects)}"
    )


@click.command("train-rfm")
@click.option("--config", default="rfm/small", show_default=True, help="Recipe name or YAML file.")
@click.option("--pairs", multiple=True, help="Made by `flowllm pair`; may be repeated.")
@click.option("--data", multiple=True, help="Crystals, for base.kind uniform; may be repeated.")
@VALIDATION
@click.option("--init", type=click.Path(path_type=Path), help="Trained refiner to start from.")
@OUT
@SKIP
@SEED
@RESUME
@DEVICE
@OVERRIDES
def train_rfm_command(**arguments: Any) -> None:
    """Train the refiner on pairs."""
    from flowllm.training.refiner import train_rfm

    click.echo(train_rfm(**given(arguments)))
