"""Diagnosis of an installation: versions, GPUs, potentials, bundled models."""

from __future__ import annotations

import sys
from importlib.metadata import PackageNotFoundError, distribution

from flowllm.energy.calculators import available_potentials
from flowllm.hub.locate import bundled_pairs
from flowllm.system.versions import versions


def diagnose() -> tuple[list[str], bool]:
    """Return the findings, one line each, and whether the installation is sound."""
    import torch

    lines = [f"python {sys.version.split()[0]}"]
    lines += [f"{package} {found}" for package, found in versions().items()]
    count = torch.cuda.device_count()
    names = [torch.cuda.get_device_name(index) for index in range(count)]
    lines.append(f"GPUs {count}" + (f" ({', '.join(names)})" if names else ", runs on the CPU"))
    lines += [f"potential {name}: {found}" for name, found in available_potentials()]
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
    for pair, parent in bundled_pairs().items():
        for folder in (parent / "prior", parent / "refiner"):
            name = f"{folder.name} bundled:{pair}"
            if (folder / "config.json").is_file() and (folder / "model.safetensors").is_file():
                lines.append(f"ok: {name}")
            else:
                healthy = False
                lines.append(f"problem: the {name} is missing; reinstall the package")
    return lines, healthy
