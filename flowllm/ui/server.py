"""The server of the page."""

from __future__ import annotations

import ipaddress
import json
import logging
import os
import socket
import subprocess
import sys
from pathlib import Path

from flowllm.errors import UserError
from flowllm.hub.locate import resolve_pair
from flowllm.system.device import check_device
from flowllm.system.extras import require

logger = logging.getLogger(__name__)

SETTINGS = "FLOWLLM_UI"  # environment variable: arguments of `FlowLLM.from_pretrained` as JSON
_LAST_PORT = 65535
_PAGE = Path(__file__).with_name("page.py")


def serve(
    *,
    prior: str | None = None,
    refiner: str | None = None,
    device: str = "auto",
    address: str = "127.0.0.1",
    port: int = 8501,
) -> int:
    """Serve the page until it is interrupted.

    Args:
        prior: folder or hub id of a prior or a pair; None takes the bundled prior.
        refiner: folder or hub id; None takes that of the pair, else the bundled one.
        device: `cpu`, `cuda`, `cuda:NUMBER` or `auto`.
        address: of the network interface; the page has no password, so that another address than
            that of this machine alone (127.0.0.1) lets everyone there use it.
        port: number of the port.

    Returns:
        The exit code of the server.

    Raises:
        UserError: if a package or model is missing, or the address or port cannot be used.
    """
    for module in ("streamlit", "plotly", "jinja2"):
        require(module, "ui")
    check_device(device)
    resolve_pair(prior, refiner)  # downloads them, if they are on a hub
    _check_port(address, port)
    if not ipaddress.ip_address(address).is_loopback:
        logger.warning("everyone who reaches %s:%d can use this page", address, port)
    settings = {"prior": prior, "refiner": refiner, "device": device}
    options = {
        "server.address": address,
        "server.port": port,
        "server.headless": "true",  # opens no browser and asks nothing
        "server.fileWatcherType": "none",
        "browser.gatherUsageStats": "false",
        "client.toolbarMode": "minimal",
    }
    server = subprocess.Popen(
        [sys.executable, "-m", "streamlit", "run", str(_PAGE)]
        + [f"--{name}={value}" for name, value in options.items()],
        env={**os.environ, SETTINGS: json.dumps(settings)},
    )
    try:
        return server.wait()
    finally:
        server.terminate()
        server.wait()


def _check_port(address: str, port: int) -> None:
    try:
        family = socket.AF_INET6 if ipaddress.ip_address(address).version == 6 else socket.AF_INET
    except ValueError as error:
        raise UserError(f"{address!r} is no address; give one such as 127.0.0.1") from error
    if not 1 <= port <= _LAST_PORT:
        raise UserError(f"there is no port {port}; give one from 1 to {_LAST_PORT} (--port)")
    with socket.socket(family) as place:
        place.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            place.bind((address, port))
        except OSError as error:
            raise UserError(
                f"{address}:{port} cannot be used ({error.strerror}); give another port (--port)"
            ) from error
