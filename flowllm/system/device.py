"""The device to compute on: one rule for all commands."""

from __future__ import annotations

import re

from flowllm.errors import UserError

_NAME = re.compile(r"auto|(cpu|cuda)(:\d+)?")


def check_device(device: str) -> str:
    """Check the name of a device, without importing torch.

    Args:
        device: `cpu`, `cuda`, `cuda:NUMBER` or `auto`.

    Returns:
        The name.

    Raises:
        UserError: if the name is unknown.
    """
    if _NAME.fullmatch(device) is None:
        raise UserError(f"unknown device {device!r}; use cpu, cuda, cuda:NUMBER or auto")
    return device


def pick_device(device: str) -> str:
    """Return the device to compute on.

    Args:
        device: `cpu`, `cuda`, `cuda:NUMBER`, or `auto` for `cuda` if there is a GPU, else `cpu`.

    Returns:
        A name for `torch.device`.

    Raises:
        UserError: if the name is unknown, or there is no such GPU.
    """
    if check_device(device).startswith("cpu"):
        return device
    import torch  # slow, and not needed for the CPU

    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    number = int(device.partition(":")[2] or 0)
    if number >= torch.cuda.device_count():
        raise UserError(f"device {device} is not there; use --device cpu")
    return device


def num_gpus(device: str) -> int | None:
    """Return the number of GPUs that a device stands for.

    Args:
        device: as `pick_device` returns it; `cuda` stands for all GPUs of this process.

    Returns:
        The number; None for the CPU.
    """
    if not device.startswith("cuda"):
        return None
    if ":" in device:
        return 1
    import torch

    return torch.cuda.device_count()
