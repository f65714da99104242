"""Commands that train: train-llm, tune-llm, pair, train-rfm."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import click

from flowllm.cli.options import (
    DEVICE,
    EXECUTOR,
    OUT,
    OVERRIDES,
    PART,
    PATH,
    PRIOR,
    RESUME,
    SEED,
    SKIP,
    VALIDATION,
    WORKERS,
    Command,
    common_option,
    given,
    report_pairs,
)

_setting = functools.partial(common_option, section="Training")


@click.command("train-llm", cls=Command)
@_setting("--config", type=click.Path(), help="Recipe name or YAML file.", default_text="llm/small")
@_setting("--data", type=PATH, multiple=True, required=True, help="Crystals. Repeatable.")
@VALIDATION
@OUT
@SKIP
@SEED
@RESUME
@DEVICE
@_setting("--merge", is_flag=True, help="Also write OUT/merged: the base with the adapter in it.")
@OVERRIDES
def train_llm_command(out: Path, **arguments: Any) -> None:
    """Train or fine-tune the text prior on crystals."""
    from flowllm.training.prior import train_prior

    click.echo(train_prior(out=out, **given(arguments)))


@click.command("tune-llm", cls=Command)
@_setting("--config", type=click.Path(), help="Recipe name or YAML file.", default_text="llm/tune")
@_setting(
    "--samples",
    type=PATH,
    multiple=True,
    required=True,
    help="Run of flowllm sample with the prior. Repeatable.",
)
@_setting(
    "--evaluation",
    type=PATH,
    required=True,
    help="Folder of flowllm evaluate of these samples, with --train, --potential and --hull.",
)
@PRIOR
@OUT
@SEED
@RESUME
@DEVICE
@OVERRIDES
def tune_llm_command(out: Path, **arguments: Any) -> None:
    """Tune the text prior on its judged samples.

    Direct preference optimisation: samples that are stable, unique and novel are preferred over
    stable and known ones, and both over unstable and invalid ones.
    """
    from flowllm.training.tuning import tune_prior

    click.echo(tune_prior(out=out, **given(arguments)))


@click.command("pair", cls=Command, config="flowllm.training.pairing.config:PairingConfig")
@click.argument("data", type=PATH, help="Target crystals, of any kind that `flowllm data` reads.")
@common_option(
    "--samples",
    section="Data",
    type=PATH,
    help="Crystals of another origin, instead of the prior's samples.",
)
@common_option(
    "--templates",
    section="Data",
    type=click.Path(),
    help="Template library, or bundled: element swaps in known crystals, instead of samples.",
)
@PRIOR
@OUT
@WORKERS
@EXECUTOR
@PART
@DEVICE
def pair_command(data: Path, out: Path, **arguments: Any) -> None:
    """Pair the crystals of DATA with samples of the prior.

    The refiner is trained on these pairs. Templates or crystals of a file can take the place of the
    samples; `train-rfm` takes several files of pairs together.
    """
    from flowllm.training.pairing.run import pair

    report_pairs(pair(data, out=out, **given(arguments)))


@click.command("train-rfm", cls=Command)
@_setting("--config", type=click.Path(), help="Recipe name or YAML file.", default_text="rfm/small")
@_setting("--pairs", type=PATH, multiple=True, help="Pairs of `flowllm pair`. Repeatable.")
@_setting("--data", type=PATH, multiple=True, help="Crystals, if base.kind is uniform.")
@VALIDATION
@_setting("--init", type=PATH, help="Trained refiner to start from.")
@OUT
@SKIP
@SEED
@RESUME
@DEVICE
@OVERRIDES
def train_rfm_command(out: Path, **arguments: Any) -> None:
    """Train the refiner on pairs."""
    from flowllm.training.refiner import train_refiner

    click.echo(train_refiner(out=out, **given(arguments)))
