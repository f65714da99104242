"""Where to compute: one rule for training, sampling and pairing."""

from __future__ import annotations

from flowllm.errors import UserError


def pick_device(device: str) -> str:
    """`auto` is `cuda` where there is a GPU, else `cpu`.

    Raises:
        UserError: another name, or a GPU that is not there.
    """
    import torch

    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        wanted = torch.device(device)
    except RuntimeError:
        wanted = None
    if wanted is None or wanted.type not in ("cpu", "cuda"):
        raise UserError(f"unknown device {device!r}; use cpu, cuda, cuda:NUMBER or auto")
    if wanted.type == "cuda" and (wanted.index or 0) >= torch.cuda.device_count():
        raise UserError(f"device {device} is not there; use --device cpu")
    return device
