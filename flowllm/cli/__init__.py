"""The command line: every command calls one public function of the same names and defaults.

Results go to stdout, the log to stderr. A mistake the user can mend is one line and exit code 2;
a run that could not make every crystal it was asked for ends with exit code 1.
"""

from __future__ import annotations

import logging
import sys

import click

from flowllm import __version__
from flowllm.cli.evaluate import evaluate_command
from flowllm.cli.files import data_command, doctor_command
from flowllm.cli.generate import refine_command, sample_command
from flowllm.cli.group import Group
from flowllm.cli.relax import export_vasp_command, relax_command
from flowllm.cli.text import infill_command, ipt_command, mutate_command, score_command
from flowllm.cli.train import pair_command, train_llm_command, train_rfm_command

# The commands import what they call when they are called: `flowllm --help` answers at once.


@click.group(
    cls=Group, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100}
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


for command in (
    train_llm_command,
    pair_command,
    train_rfm_command,
    sample_command,
    refine_command,
    infill_command,
    mutate_command,
    relax_command,
    export_vasp_command,
    evaluate_command,
    score_command,
    ipt_command,
    data_command,
    doctor_command,
):
    cli.add_command(command)


def main() -> None:
    """Entry point of the console script."""
    cli(prog_name="flowllm")
