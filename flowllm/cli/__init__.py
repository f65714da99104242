"""The command line: each command calls one public function with the same names and defaults.

Results go to stdout, the log goes to stderr. Bad input gives one line and exit code 2; a run that
could not make every requested crystal ends with exit code 1, an interrupted one with 130.
"""

from __future__ import annotations

import logging
import os
import sys

import click

from flowllm import __version__
from flowllm.cli.evaluate import evaluate_command
from flowllm.cli.files import data_command, doctor_command, show_command
from flowllm.cli.generate import mutate_command, refine_command, sample_command
from flowllm.cli.group import Group
from flowllm.cli.merge import merge_command
from flowllm.cli.predict import predict_command
from flowllm.cli.relax import export_vasp_command, relax_command
from flowllm.cli.templates import templates_group
from flowllm.cli.text import infill_command, ipt_command, score_command
from flowllm.cli.train import (
    pair_command,
    train_llm_command,
    train_rfm_command,
    tune_llm_command,
)
from flowllm.cli.ui import ui_command
from flowllm.errors import UserError

# Each command imports what it calls when it is called: `flowllm --help` imports nothing heavy.


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
    # Warnings of libraries, which `main` turns into log lines: no user can act on them.
    logging.getLogger("py.warnings").setLevel(logging.WARNING if verbose else logging.ERROR)
    if sys.flags.optimize > 1:
        raise UserError(
            "Python runs without docstrings (-OO or PYTHONOPTIMIZE=2), which transformers cannot "
            "do without; leave that out, or use -O"
        )
    # Logs at every import on a CPU that an optional kernel is missing.
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)


cli.add_commands(
    "Generate", predict_command, sample_command, refine_command, mutate_command, ui_command
)
cli.add_commands("Analyse", evaluate_command, score_command, ipt_command, infill_command)
cli.add_commands("Relax", relax_command, export_vasp_command)
cli.add_commands("Train", train_llm_command, tune_llm_command, pair_command, train_rfm_command)
cli.add_commands(
    "Files and installation",
    data_command,
    show_command,
    merge_command,
    templates_group,
    doctor_command,
)


def main() -> None:
    """Run the command line; entry point of the console script."""
    logging.captureWarnings(True)
    os.environ.setdefault("PYTHONWARNINGS", "ignore")  # for the processes that workers are
    cli(prog_name="flowllm")
