"""The command line: every command calls one public function of the same names and defaults.

Results go to stdout, the log to stderr. A mistake the user can mend is one line and exit code 2;
a run that could not make every crystal it was asked for ends with exit code 1.
"""

from __future__ import annotations

import errno
import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from flowllm import __version__

# The commands import what they call when they are called: `flowllm --help` answers at once.

OUT = click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder to write.")
SEED = click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
DEVICE = click.option("--device", default="auto", show_default=True, help="cpu, cuda or auto.")
WORKERS = click.option("--workers", type=click.IntRange(min=1), default=1, show_default=True)
SKIP = click.option("--skip-invalid", is_flag=True, help="Leave out bad rows and count them.")
PRIOR = click.option("--prior", show_default="bundled", help="Folder or hub id of a prior.")
REFINER = click.option("--refiner", show_default="bundled", help="Folder or hub id of a refiner.")
STEPS = click.option(
    "--steps",
    type=click.IntRange(min=1),
    show_default="the refiner's own",
    help="Integration steps.",
)
RESUME = click.option("--resume", is_flag=True, help="Go on from the newest complete checkpoint.")
VALIDATION = click.option(
    "--validation", type=click.Path(path_type=Path), help="As the training data, for its loss."
)
OVERRIDES = click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")


def _sampling(*, max_attempts: int, batch_size: int) -> Callable[..., Any]:
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


class _Mistake(click.ClickException):
    """An error that the user can mend."""

    exit_code = 2

    def show(self, file: Any = None) -> None:
        click.echo(f"error: {' '.join(self.message.split())}", file=file, err=True)


class _Group(click.Group):
    """Turns the three packages' own errors into one line."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except ValueError as error:
            if any((k.__module__, k.__name__) in _OWN_ERRORS for k in type(error).__mro__):
                raise _Mistake(str(error)) from error
            raise
        except OSError as error:
            if error.errno in _PLACE_ERRORS:
                raise _Mistake(f"{error.filename}: {error.strerror}; mend that first") from error
            raise


# By name, so that no package is imported that the command does not use.
_OWN_ERRORS = {
    ("flowllm.errors", "UserError"),
    ("llm_prior.errors", "PriorError"),
    ("rfm.errors", "RefinerError"),
}
# A folder that cannot be written or read, a full disk.
_PLACE_ERRORS = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.ENOTDIR, errno.EDQUOT}


class _Conditional(click.Command):
    """A command with one option for each condition in the prior's table."""

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        from llm_prior.prompts import ATTRIBUTES

        conditions = [
            click.Option(["--" + a.name.replace("_", "-"), a.name], help=a.help) for a in ATTRIBUTES
        ]
        first, *others = super().get_params(ctx)
        return [first, *conditions, *others]


@click.group(
    cls=_Group, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100}
)
@click.version_option(__version__)
@click.option("-v", "--verbose", is_flag=True, help="Log more.")
def cli(verbose: bool) -> None:
    """Generate inorganic crystals: a language model proposes, flow matching refines."""
    logging.basicConfig(
        level=logging.INFO if verbose else logging.WARNING,
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
        datefmt="%H:%M:%S",
        stream=sys.stderr,
    )
    logging.getLogger("flowllm").setLevel(logging.INFO)
    # On a CPU it remarks at every import that an optional kernel of its is not there.
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)


@cli.command("train-llm")
@click.option("--config", default="llm/small", show_default=True, help="Recipe name or YAML file.")
@click.option("--data", multiple=True, required=True, help="Crystals; may be repeated.")
@VALIDATION
@OUT
@SKIP
@SEED
@RESUME
@DEVICE
@OVERRIDES
def train_llm_command(**arguments: Any) -> None:
    """Train or fine-tune the text prior on crystals."""
    from flowllm.train_llm import train_llm

    click.echo(train_llm(**_given(arguments)))


@cli.command("pair")
@click.argument("data", type=click.Path(path_type=Path))
@OUT
@PRIOR
@click.option("--samples-per-target", type=click.IntRange(min=1), default=1, show_default=True)
@_sampling(max_attempts=3, batch_size=128)
@click.option("--limit", type=click.IntRange(min=1), help="Only the first so many crystals.")
@SKIP
@SEED
@WORKERS
@DEVICE
def pair_command(**arguments: Any) -> None:
    """Pair the prior's samples with the crystals of DATA."""
    from flowllm.pairing import pair

    outcome = pair(**_given(arguments))
    click.echo(outcome.file)
    click.echo(
        f"{outcome.kept} of {outcome.requested} samples kept ({outcome.first_try} at the first "
        f"attempt); refused: {_counts(outcome.rejects)}"
    )


@cli.command("train-rfm")
@click.option("--config", default="rfm/small", show_default=True, help="Recipe name or YAML file.")
@click.option("--pairs", type=click.Path(path_type=Path), help="Made by `flowllm pair`.")
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
    from flowllm.train_rfm import train_rfm

    click.echo(train_rfm(**_given(arguments)))


@cli.command("sample", cls=_Conditional)
@click.option("-n", "n", type=click.IntRange(min=1), required=True, help="How many crystals.")
@click.option("--composition", help="Exactly these atoms, such as Na4Cl4.")
@PRIOR
@REFINER
@click.option("--refine", is_flag=True, help="Move the crystals with the refiner.")
@STEPS
@_sampling(max_attempts=10, batch_size=64)
@OUT
@SEED
@WORKERS
@DEVICE
def sample_command(n: int, **arguments: Any) -> None:
    """Generate crystals into a run folder; started again, it goes on where it was stopped."""
    from flowllm.runs import sample

    _report(sample(n, **_given(arguments)), n)


@cli.command("refine")
@click.argument("file", type=click.Path(path_type=Path))
@REFINER
@STEPS
@OUT
@SKIP
@SEED
@WORKERS
@DEVICE
def refine_command(**arguments: Any) -> None:
    """Refine the crystals of FILE (CIF file or folder, CSV, parquet, extxyz, JSON)."""
    from flowllm.runs import refine

    outcome = refine(**_given(arguments))
    _report(outcome, len(outcome.crystals) + outcome.failures.total())


@cli.command("data")
@click.argument("file", type=click.Path(path_type=Path))
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--no-reduce", is_flag=True, help="Keep the cells as they are in FILE.")
@click.option("--max-atoms", type=click.IntRange(min=1), help="Refuse larger crystals.")
@click.option("--limit", type=click.IntRange(min=1), help="Only the first so many rows.")
@SKIP
@click.option("--overwrite", is_flag=True, help="Replace OUT if it exists.")
def data_command(
    file: Path,
    out: Path,
    no_reduce: bool,
    max_atoms: int | None,
    limit: int | None,
    skip_invalid: bool,
    overwrite: bool,
) -> None:
    """Convert crystals: read FILE, write OUT; the suffix says the format (none: a CIF folder)."""
    from flowllm.data import read, write

    crystals = read(
        file, reduce=not no_reduce, max_atoms=max_atoms, limit=limit, skip_invalid=skip_invalid
    )
    click.echo(write(crystals, out, overwrite=overwrite))
    click.echo(f"{len(crystals)} crystals written, left out: {_counts(crystals.skipped)}")


@cli.command("doctor")
def doctor_command() -> None:
    """Check the installation."""
    from flowllm.doctor import diagnose

    lines, healthy = diagnose()
    click.echo("\n".join(lines))
    sys.exit(0 if healthy else 1)


def _report(outcome: Any, asked: int) -> None:
    from flowllm.table import crystal_table

    click.echo(crystal_table(outcome.crystals))
    made = len(outcome.crystals)
    click.echo(f"{made} of {asked} crystals in {outcome.folder}")
    if made < asked:
        click.echo(f"failed: {_counts(outcome.failures)}", err=True)
        sys.exit(1)


def _given(arguments: dict[str, Any]) -> dict[str, Any]:
    """What the user gave; the rest takes the function's own defaults."""
    return {name: value for name, value in arguments.items() if value is not None}


def _counts(counts: Any) -> str:
    return ", ".join(f"{name} {count}" for name, count in counts.items()) or "none"


def main() -> None:
    """Entry point of the console script."""
    cli(prog_name="flowllm")
