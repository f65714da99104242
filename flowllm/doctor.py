"""Diagnosis of an installation (versions, GPUs, potentials, bundled models) and of a training's
memory."""

from __future__ import annotations

import sys
from dataclasses import fields
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from flowllm.energy.calculators import available_potentials
from flowllm.hub.locate import bundled_pairs
from flowllm.system.versions import versions
from flowllm.training.memory import GpuMemory, plan_training

_GPUS = (24, 40, 80, 140)  # GB of common GPUs


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


def memory_plan(recipe: str | Path, gpus: int) -> list[str]:
    """Return the estimated memory of a training as lines of a table.

    Args:
        recipe: name or path.
        gpus: GPUs of all nodes together.

    Raises:
        UserError: see `flowllm.training.memory.plan_training`.
    """
    plan = plan_training(recipe, gpus)
    columns = {"all weights on each GPU" if gpus > 1 else "one GPU": plan.copied}
    if plan.sharded is not None:
        columns["weights divided (FSDP 2)"] = plan.sharded
    rows = [("GB for each GPU", *columns)]
    rows += [
        (name, *(_gigabytes(getattr(memory, name)) for memory in columns.values()))
        for name in (*(field.name for field in fields(GpuMemory)), "training", "needed")
    ]
    rows += [
        (
            f"fits in {size} GB",
            *("yes" if m.needed <= size * 1e9 else "no" for m in columns.values()),
        )
        for size in _GPUS
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    longest = "" if plan.tokens is None else f"; the longest example has {plan.tokens} tokens"
    return [
        f"{recipe} on {gpus} GPU" + ("s" if gpus > 1 else ""),
        f"weights {plan.total:,}, trained {plan.trainable:,}",
        f"{plan.batch} crystals for each optimiser step{longest}",
        *(
            "  ".join(
                [row[0].ljust(widths[0])]
                + [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
            )
            for row in rows
        ),
        "An estimate: needed adds 10% and 1 GB, which are assumptions, for the allocator and CUDA.",
    ]


def _gigabytes(size: float) -> str:
    return f"{size / 1e9:.2f}"
