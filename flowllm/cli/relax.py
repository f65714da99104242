"""Commands about energies: relax, export-vasp."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from flowllm.cli.options import OUT, SKIP, WORKERS, given, report


@click.command("relax")
@click.argument("file", type=click.Path(path_type=Path))
@click.option(
    "--potential",
    default="chgnet",
    show_default=True,
    help="chgnet, matgl:NAME-OR-FOLDER or MODULE:FACTORY (any ASE calculator).",
)
@OUT
@click.option(
    "--force-limit",
    default=0.05,
    show_default=True,
    help="Largest force on an atom at the end, eV/Angstrom.",
)
@click.option(
    "--stress-limit",
    default=0.5,
    show_default=True,
    help="Largest component of the stress at the end, GPa.",
)
@click.option(
    "--step-limit",
    type=click.IntRange(min=1),
    default=500,
    show_default=True,
    help="Most steps for a crystal.",
)
@click.option("--time-limit", default=600.0, show_default=True, help="Most seconds for a crystal.")
@click.option("--trajectories", is_flag=True, help="Keep every step, in trajectories/ID.extxyz.")
@click.option("--limit", type=click.IntRange(min=1), help="Only the first so many rows.")
@SKIP
@WORKERS
def relax_command(**arguments: Any) -> None:
    """Relax cell and positions of the crystals of FILE, each in isolation; a run folder."""
    from flowllm.energy.relaxation import relax_file

    outcome = relax_file(**given(arguments))
    report(outcome, len(outcome.crystals) + outcome.failures.total())


@click.command("export-vasp")
@click.argument("file", type=click.Path(path_type=Path))
@OUT
@click.option(
    "--where",
    multiple=True,
    metavar="RULE",
    help="Only crystals with such a property, such as 'e_above_hull<0.1'; all rules must be met.",
)
@click.option("--limit", type=click.IntRange(min=1), help="Only the first so many rows.")
@SKIP
def export_vasp_command(out: Path, **arguments: Any) -> None:
    """Write VASP inputs (MPRelaxSet) for the crystals of FILE, a folder for each."""
    from flowllm.energy.vasp import export_vasp

    written = export_vasp(out=out, **given(arguments))
    click.echo(f"inputs of {len(written)} crystals in {out}")
