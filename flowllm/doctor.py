"""`flowllm doctor`: is this installation what it should be?"""

from __future__ import annotations

import sys
from importlib.metadata import PackageNotFoundError, distribution

import torch

from flowllm.hub.locate import BUNDLED_PRIOR, BUNDLED_REFINER
from flowllm.system.versions import versions


def diagnose() -> tuple[list[str], bool]:
    """What is installed, one line a finding, and whether all is well."""
    lines = [f"python {sys.version.split()[0]}"]
    lines += [f"{package} {found}" for package, found in versions().items()]
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu only"
    lines.append(f"device {device}")
    healthy = True
    try:
        other = distribution("flowllm")
    except PackageNotFoundError:
        lines.append("ok: no other package claims the name flowllm")
    else:
        healthy = False
        lines.append(
            f"problem: the unrelated package flowllm {other.version} overwrites this module and "
            "command; run `pip uninstall flowllm`, then reinstall flowllm-crystal"
        )
    for folder in (BUNDLED_PRIOR, BUNDLED_REFINER):
        if (folder / "config.json").is_file() and (folder / "model.safetensors").is_file():
            lines.append(f"ok: bundled {folder.name}")
        else:
            healthy = False
            lines.append(f"problem: the bundled {folder.name} is missing; reinstall the package")
    return lines, healthy
