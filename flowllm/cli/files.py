"""Commands about files and the installation: data, doctor."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from flowllm.cli.options import SKIP, counts


@click.command("data")
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
    from flowllm.crystals.io import read, write

    crystals = read(
        file, reduce=not no_reduce, max_atoms=max_atoms, limit=limit, skip_invalid=skip_invalid
    )
    click.echo(write(crystals, out, overwrite=overwrite))
    click.echo(f"{len(crystals)} crystals written, left out: {counts(crystals.skipped)}")


@click.command("doctor")
def doctor_command() -> None:
    """Check the installation."""
    from flowllm.doctor import diagnose

    lines, healthy = diagnose()
    click.echo("\n".join(lines))
    sys.exit(0 if healthy else 1)
