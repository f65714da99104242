"""Commands about template libraries: templates build."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from flowllm.cli.group import Group
from flowllm.cli.options import FILE, LIMIT, PATH, SKIP, Command, common_option, given


@click.command("build", cls=Command)
@FILE
@common_option("-o", "--out", type=PATH, required=True, help="Parquet file to write.")
@LIMIT
@SKIP
def build_command(file: Path, out: Path, **options: Any) -> None:
    """Make a template library of the crystals of FILE.

    Energies above the hull (column e_above_hull) are kept where FILE has them.
    """
    from flowllm.templates.library import build_library

    library = build_library(file, out, **given(options))
    click.echo(f"{len(library)} templates in {out}")


templates_group = Group("templates", help="Make libraries of known crystals as templates.")
templates_group.add_commands("Commands", build_command)
