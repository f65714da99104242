"""The device to compute on: one rule for all commands."""

from __future__ import annotations

import re

from flowllm.errors import UserError

_NAME = re.compile(r"auto|(cpu|cuda)(:\d+)?")


def check_device(device: str) -> str:
    """Check the name of a device, without importing torch.

    Args:
        device: `cpu`, `cuda`, `cuda:NUMBER` or `auto`, in any case.

    Returns:
        The name in lower case.

    Raises:
        UserError: if the name is unknown.
    """
    name = device.lower()
    if _NAME.fullmatch(name) is None:
        raise UserError(f"unknown device {device!r}; use cpu, cuda, cuda:NUMBER or auto")
    return name


def pick_device(device: str) -> str:
    """Return the device to compute on.

    Args:
        device: `cpu`, `cuda`, `cuda:NUMBER`, or `auto` for `cuda` if there is a GPU, else `cpu`.

    Returns:
        A name for `torch.device`.

    Raises:
        UserError: if the name is unknown, or there is no such GPU.
    """
    device = check_device(device)
    if device.startswith("cpu"):
        return device
    import torch  # slow, and not needed for the CPU

    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    number = int(device.partition(":")[2] or 0)
    if number >= torch.cuda.device_count():
        raise UserError(f"device {device} is not there; use --device cpu")
    return device
