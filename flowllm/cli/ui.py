"""The command that serves a page: ui."""

from __future__ import annotations

import sys
from typing import Any

import click

from flowllm.cli.options import DEVICE, PRIOR, REFINER, Command, common_option, given


@click.command("ui", cls=Command)
@PRIOR
@REFINER
@common_option(
    "--address",
    help="Address of the network interface; the page has no password.",
    default_text="127.0.0.1",
)
@common_option("--port", type=int, minimum=1, help="Port of the page.", default_text="8501")
@DEVICE
def ui_command(**arguments: Any) -> None:
    """Serve a page to generate crystals in a browser.

    The page is for this machine alone, at http://127.0.0.1:8501, until Ctrl-C. Needs Streamlit
    (extra [ui]).
    """
    from flowllm.ui.server import serve

    sys.exit(serve(**given(arguments)))
