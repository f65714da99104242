"""Commands about files and the installation: data, show, doctor."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from flowllm.cli.options import FILE, LIMIT, PATH, SKIP, Command, common_option, counts


@click.command("data", cls=Command)
@FILE
@click.argument("out", type=PATH, help="File or folder to write.")
@common_option("--no-reduce", is_flag=True, help="Keep the cells of FILE.")
@common_option("--max-atoms", type=int, minimum=1, help="Refuse larger crystals.")
@LIMIT
@SKIP
@common_option("--overwrite", is_flag=True, help="Replace OUT if it exists.")
def data_command(
    file: Path,
    out: Path,
    no_reduce: bool,
    max_atoms: int | None,
    limit: int | None,
    skip_invalid: bool,
    overwrite: bool,
) -> None:
    """Convert the crystals of FILE to another format.

    The suffix of OUT tells the format. Without a suffix it is a folder of CIFs; POSCAR or x.vasp
    is a POSCAR, x.db a database of ASE, x.optimade.json a set of OPTIMADE structures,
    x.entries.json a list of pymatgen's ComputedStructureEntry, x.html a page to look at.
    """
    from flowllm.crystals.io import read, write

    crystals = read(
        file, reduce=not no_reduce, max_atoms=max_atoms, limit=limit, skip_invalid=skip_invalid
    )
    click.echo(write(crystals, out, overwrite=overwrite))
    click.echo(f"{len(crystals)} crystals written, left out: {counts(crystals.skipped)}")


@click.command("show", cls=Command)
@FILE
@common_option(
    "-o", "--out", type=PATH, help="Page to write (.html).", default_text="name of FILE + .html"
)
@common_option(
    "--limit",
    type=int,
    minimum=1,
    default=100,
    help="Show the first so many crystals.",
    default_text="100",
)
@SKIP
@common_option("--overwrite", is_flag=True, help="Replace the page if it exists.")
def show_command(
    file: Path, out: Path | None, limit: int, skip_invalid: bool, overwrite: bool
) -> None:
    """Write a page with the crystals of FILE, which the mouse turns.

    The page needs no network. Needs plotly and jinja2 (extra [show]).
    """
    from flowllm.crystals.views.show import show

    click.echo(show(file, out, limit=limit, skip_invalid=skip_invalid, overwrite=overwrite))


@click.command("doctor", cls=Command)
@common_option(
    "--plan", metavar="RECIPE", help="Estimate the memory of a training instead, such as llm/small."
)
@common_option(
    "--gpus",
    type=int,
    minimum=1,
    help="GPUs of all nodes together, for --plan.",
    default_text="1",
)
def doctor_command(plan: str | None, gpus: int | None) -> None:
    """Check the installation, or estimate the memory of a training."""
    if plan is not None:
        from flowllm.doctor import memory_plan

        click.echo("\n".join(memory_plan(plan, gpus or 1)))
        return
    if gpus is not None:
        raise click.UsageError("--gpus belongs to --plan RECIPE; give both")

    from flowllm.doctor import diagnose

    lines, healthy = diagnose()
    click.echo("\n".join(lines))
    sys.exit(0 if healthy else 1)
