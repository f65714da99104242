"""Random crystals, pairs and small trainings that the tests of training share."""

from __future__ import annotations

import json
import multiprocessing
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from pymatgen.core import Lattice, Structure

from flowllm.crystals.run_folders import input_hash
from flowllm.training.prior import train_prior
from flowllm.training.refiner import train_refiner
from flowllm.training.tuning import tune_prior
from llm_prior import Architecture, BaseModel, Prior, TextFormat, encode, generation_prompt
from rfm import PairedCrystal

Train = Callable[..., Path]

TRAINING = (
    *("training.epochs=16", "training.batch_size=4", "training.warmup_steps=2"),
    *("training.save_steps=3", "training.eval_steps=10", "training.logging_steps=5"),
)  # 48 steps on 14 crystals
ALL_PAIRS = (  # 14 pairs
    *("preference.held_out=0", "preference.length_tolerance=0.95", "training.eval_crystals=8"),
)
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


def sample_row(seed: int, **values: Any) -> dict[str, Any]:
    """Return a sample and what an evaluation says of it: by default new and stable."""
    return {
        "id": f"sample-{seed:05d}",
        "prompt": generation_prompt({}),
        "text": encode(random_structure(seed), TextFormat()),
        "failure": None,
        "structural_validity": True,
        "novel": True,
        "gene_novel": True,
        "gene": f"gene-{seed}",
        "duplicate_of": None,
        "relaxation_failure": None,
        "e_above_hull": 0.01 * seed,
        **values,
    }


KNOWN = {"novel": False, "gene_novel": False}
UNSTABLE = {"e_above_hull": 0.5}


def write_run(run: Path, rows: Sequence[Mapping[str, Any]], **manifest: Any) -> Path:
    """Write the parts of a run of `flowllm sample` that a tuning reads."""
    run.mkdir()
    prior = {"name": "prior", "sha256": "0" * 64}
    content = {"command": "sample", "prior": prior, "conditions": {}, **manifest}
    (run / "manifest.json").write_text(json.dumps({"run": content, "info": {}}))
    columns = ["id", "prompt", "text", "failure"]
    pd.DataFrame(rows)[columns].to_parquet(run / "samples.parquet")
    return run


def write_evaluation(
    folder: Path, sets: Mapping[Path, Sequence[Mapping[str, Any]]], **identity: Any
) -> Path:
    """Write the parts of an evaluation of runs that a tuning reads."""
    folder.mkdir()
    run = {
        "samples": [{"name": path.name, "sha256": input_hash(path)} for path in sets],
        "train": [{"name": "train.csv", "sha256": ""}],
        "potential": {"name": "chgnet"},
        "hull": {"name": "hull.parquet"},
        **identity,
    }
    (folder / "evaluation.json").write_text(json.dumps({"run": run, "info": {}}))
    (folder / "metrics.json").write_text(json.dumps({"sets": [{"name": p.name} for p in sets]}))
    rows = [{"set": path.name, **row} for path, found in sets.items() for row in found]
    pd.DataFrame(rows).drop(columns=["prompt", "text"]).to_parquet(folder / "structures.parquet")
    return folder


def write_judged(folder: Path) -> None:
    """Write a small random prior, a run of 14 samples as if it were its, and their evaluation:
    5 new, 4 known and 5 unstable ones."""
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    architecture = Architecture(**sizes, num_attention_heads=2)
    Prior.build(BaseModel(architecture=architecture), TextFormat()).save_pretrained(
        folder / "prior"
    )
    kinds: list[dict[str, Any]] = [{}] * 5 + [KNOWN] * 4 + [UNSTABLE] * 5
    rows = [sample_row(seed, **values) for seed, values in enumerate(kinds)]
    run = write_run(folder / "samples", rows)
    write_evaluation(folder / "judged", {run: rows})


def small_training(name: str, files: Path) -> Train:
    """Return a training with all its arguments but `out` and `resume`.

    Args:
        name: `llm`, `tune`, `rfm-uniform` or `rfm-pairs`.
        files: the folder of the fixture `files`.
    """
    crystals = {"data": [files / "train.jsonl"], "validation": files / "validation.jsonl"}
    pairs = {"pairs": files / "train.parquet", "validation": files / "validation.parquet"}
    ema = "training.ema_decay=0.9"
    options: dict[str, Any] = {"seed": 3, "device": "cpu"}
    if name == "llm":
        return partial(train_prior, overrides=[*TRAINING, *ARCHITECTURE], **crystals, **options)
    if name == "tune":
        overrides = [*TRAINING, *ALL_PAIRS, ema, "training.learning_rate=1e-3"]
        judged = {"samples": files / "samples", "evaluation": files / "judged"}
        return partial(tune_prior, prior=files / "prior", overrides=overrides, **judged, **options)
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
