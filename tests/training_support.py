"""Random crystals, pairs and small trainings that the tests of training share."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from pymatgen.core import Lattice, Structure

from flowllm.training.prior import train_prior
from flowllm.training.refiner import train_refiner
from rfm import PairedCrystal

Train = Callable[..., Path]

TRAINING = (
    *("training.epochs=16", "training.batch_size=4", "training.warmup_steps=2"),
    *("training.save_steps=3", "training.eval_steps=10", "training.logging_steps=5"),
)  # 48 steps on 14 crystals
NETWORK = ("network.width=8", "network.layers=1", "network.num_frequencies=2")
ARCHITECTURE = tuple(
    f"model.architecture.{setting}"
    for setting in (
        *("hidden_size=16", "intermediate_size=16"),
        *("num_hidden_layers=1", "num_attention_heads=2", "max_position_embeddings=256"),
    )
)

# Imports once, and forks without threads.
processes = multiprocessing.get_context("forkserver")
processes.set_forkserver_preload(
    [
        f"flowllm.training.{module}"
        for module in ("engine", "validation", "pairing.prior_pairs")  # torch, rfm, llm_prior
    ]
)


def random_structure(seed: int) -> Structure:
    """Return a crystal of 1 to 5 atoms."""
    rng = np.random.default_rng(seed)
    lattice = Lattice.from_parameters(*rng.uniform(4, 6, 3), *rng.uniform(80, 100, 3))
    species = rng.choice(["Na", "Mg", "O", "Cl"], rng.integers(1, 6))
    return Structure(lattice, list(species), rng.random((len(species), 3)))


def random_pair(seed: int) -> PairedCrystal:
    """Return `random_structure(seed)` as the target of a disturbed copy."""
    rng = np.random.default_rng(seed)
    target = random_structure(seed)
    return PairedCrystal(
        id=f"pair-{seed}",
        atomic_numbers=np.array(target.atomic_numbers),
        base_frac_coords=target.frac_coords + 0.05 * rng.standard_normal((len(target), 3)),
        base_lattice=target.lattice.matrix * rng.uniform(0.9, 1.1),
        target_frac_coords=target.frac_coords,
        target_lattice=target.lattice.matrix,
    )


def small_training(name: str, files: Path) -> Train:
    """Return a training with all its arguments but `out` and `resume`.

    Args:
        name: `llm`, `rfm-uniform` or `rfm-pairs`.
        files: the folder of the fixture `files`.
    """
    crystals = {"data": [files / "train.jsonl"], "validation": files / "validation.jsonl"}
    pairs = {"pairs": files / "train.parquet", "validation": files / "validation.parquet"}
    ema = "training.ema_decay=0.9"
    options: dict[str, Any] = {"seed": 3, "device": "cpu"}
    if name == "llm":
        return partial(train_prior, overrides=[*TRAINING, *ARCHITECTURE], **crystals, **options)
    if name == "rfm-uniform":
        overrides = [*TRAINING, *NETWORK, ema]
        return partial(train_refiner, "rfm/uniform", overrides=overrides, **crystals, **options)
    base = ("base.kind=llm", "base.position_sigma=0.05", "base.cell_sigma=0.1")
    overrides = [*TRAINING, *NETWORK, *base, ema]
    return partial(train_refiner, "rfm/uniform", overrides=overrides, **pairs, **options)


def weights(out: Path) -> bytes:
    """Return the bytes of the weights of a finished run."""
    return (out / "model" / "model.safetensors").read_bytes()


def contents(folder: Path) -> dict[str, tuple[bytes, int]]:
    """Return content and time of modification of all files in a folder."""
    return {
        str(path.relative_to(folder)): (path.read_bytes(), path.stat().st_mtime_ns)
        for path in folder.rglob("*")
        if path.is_file()
    }
