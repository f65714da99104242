"""Commands about energies: relax, export-vasp."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from flowllm.cli.options import (
    CIF,
    DEVICE,
    EXECUTOR,
    FILE,
    LIMIT,
    OUT,
    PART,
    SKIP,
    WORKERS,
    Command,
    common_option,
    given,
    report,
)


@click.command("relax", cls=Command, config="flowllm.energy.relaxation:RelaxationConfig")
@FILE
@common_option(
    "--potential",
    section="Options",
    help="chgnet, chgnet:r2scan, sevennet, matgl:NAME-OR-FOLDER or MODULE:FACTORY (any ASE "
    "calculator).",
    default_text="chgnet",
)
@OUT
@CIF
@LIMIT
@SKIP
@WORKERS
@EXECUTOR
@PART
@DEVICE
def relax_command(file: Path, out: Path, **arguments: Any) -> None:
    """Relax cell and positions of the crystals of FILE.

    A crystal that hangs or crashes is lost alone. The same command goes on with a killed run.
    """
    from flowllm.energy.relaxation import relax

    outcome = relax(file, out=out, **given(arguments))
    report(outcome, len(outcome.crystals) + outcome.failures.total())


@click.command("export-vasp", cls=Command)
@FILE
@OUT
@common_option(
    "--where",
    multiple=True,
    metavar="RULE",
    help="Only crystals with this property, such as 'e_above_hull<0.1'. All rules must be met.",
)
@LIMIT
@SKIP
def export_vasp_command(file: Path, out: Path, **arguments: Any) -> None:
    """Write VASP inputs (MPRelaxSet), a folder for each crystal."""
    from flowllm.energy.vasp import export_vasp

    written = export_vasp(file, out=out, **given(arguments))
    click.echo(f"inputs of {len(written)} crystals in {out}")
