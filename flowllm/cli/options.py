"""What several commands share: options, and how outcomes are shown."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

OUT = click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder to write.")
SEED = click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
DEVICE = click.option("--device", default="auto", show_default=True, help="cpu, cuda or auto.")
WORKERS = click.option("--workers", type=click.IntRange(min=1), default=1, show_default=True)
SKIP = click.option("--skip-invalid", is_flag=True, help="Leave out bad rows and count them.")
PRIOR = click.option("--prior", show_default="bundled", help="Folder or hub id of a prior.")
REFINER = click.option("--refiner", show_default="bundled", help="Folder or hub id of a refiner.")
RESUME = click.option("--resume", is_flag=True, help="Go on from the newest complete checkpoint.")
VALIDATION = click.option(
    "--validation", type=click.Path(path_type=Path), help="As the training data, for its loss."
)
OVERRIDES = click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")


def integration(command: Callable[..., Any]) -> Callable[..., Any]:
    own = "the refiner's own"
    options = (
        click.option(
            "--steps", type=click.IntRange(min=1), show_default=own, help="Integration steps."
        ),
        click.option("--method", show_default=own, help="euler, midpoint or heun."),
        click.option(
            "--position-slope",
            type=float,
            show_default=own,
            help="Anti-annealing s of the positions: velocities times 1 + s t.",
        ),
        click.option("--cell-slope", type=float, show_default=own, help="The same of the cell."),
        click.option(
            "--trajectory", is_flag=True, help="Write the way to trajectories/NAME.extxyz."
        ),
        click.option("--score", is_flag=True, help="Add log-likelihoods under the flow; slow."),
    )
    for option in reversed(options):
        command = option(command)
    return command


def sampling(*, max_attempts: int, batch_size: int) -> Callable[..., Any]:
    options = (
        click.option(
            "--temperature", default=0.7, show_default=True, help="Divides the logits; 0: greedy."
        ),
        click.option("--top-p", default=0.9, show_default=True, help="Nucleus that is drawn from."),
        click.option(
            "--max-attempts",
            type=click.IntRange(min=1),
            default=max_attempts,
            show_default=True,
            help="Answers drawn per crystal before it counts as failed.",
        ),
        click.option(
            "--constrain/--no-constrain",
            default=True,
            show_default=True,
            help="Only texts that decode and have the atoms asked for can be written.",
        ),
        click.option(
            "--batch-size",
            type=click.IntRange(min=1),
            default=batch_size,
            show_default=True,
            help="Crystals at a time, as memory allows; it enters into the draws.",
        ),
    )

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


class Conditional(click.Command):
    """A command with one option for each condition in the prior's table."""

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        from llm_prior.prompts import ATTRIBUTES

        conditions = [
            click.Option(["--" + a.name.replace("_", "-"), a.name], help=a.help) for a in ATTRIBUTES
        ]
        first, *others = super().get_params(ctx)
        return [first, *conditions, *others]


def report(outcome: Any, asked: int) -> None:
    from flowllm.cli.table import crystal_table

    click.echo(crystal_table(outcome.crystals))
    made = len(outcome.crystals)
    click.echo(f"{made} of {asked} crystals in {outcome.folder}")
    if outcome.rejects:
        click.echo(f"answers drawn again or given up: {counts(outcome.rejects)}", err=True)
    if made < asked:
        click.echo(f"failed: {counts(outcome.failures)}", err=True)
        sys.exit(1)


def given(arguments: dict[str, Any]) -> dict[str, Any]:
    """What the user gave; the rest takes the function's own defaults."""
    return {name: value for name, value in arguments.items() if value is not None}


def counts(counts: Any) -> str:
    return ", ".join(f"{name} {count}" for name, count in counts.items()) or "none"
