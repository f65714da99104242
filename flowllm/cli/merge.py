"""The command that ends a run of several parts: merge."""

from __future__ import annotations

from pathlib import Path

import click

from flowllm.cli.options import PATH, Command, report, report_pairs


@click.command("merge", cls=Command)
@click.argument("folder", type=PATH, help="Run folder whose parts have all ended.")
def merge_command(folder: Path) -> None:
    """Write the results of a run that was computed with --part."""
    from flowllm.merging import merge

    outcome = merge(folder)

    from flowllm.runs.outputs import Outcome

    if isinstance(outcome, Outcome):
        report(outcome, len(outcome.crystals) + outcome.failures.total())
    else:
        report_pairs(outcome)
