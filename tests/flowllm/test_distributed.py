"""Two processes on the CPU (gloo), as torchrun or `accelerate launch` start them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from pymatgen.core import Lattice, Structure
from safetensors.torch import load_file

from flowllm.data import Crystal, write
from flowllm.train_llm import train_llm

SETTINGS = (
    *("training.epochs=3", "training.warmup_steps=2", "training.save_steps=2"),
    *("training.bf16=false", "training.logging_steps=1", "training.learning_rate=1e-2"),
    *("model.architecture.hidden_size=16", "model.architecture.intermediate_size=16"),
    *("model.architecture.num_hidden_layers=1", "model.architecture.num_attention_heads=2"),
)  # AdamW divides a gradient by its size, so equal sums of floats in another order drift slowly


@pytest.fixture
def data(tmp_path: Path) -> Path:
    crystals = []
    for seed in range(16):
        rng = np.random.default_rng(seed)
        lattice = Lattice.from_parameters(*rng.uniform(4, 6, 3), *rng.uniform(80, 100, 3))
        species = list(rng.choice(["Na", "Mg", "O", "Cl"], rng.integers(1, 6)))
        structure = Structure(lattice, species, rng.random((len(species), 3)))
        crystals.append(Crystal(id=f"c{seed}", structure=structure, properties={}))
    write(crystals, tmp_path / "train.jsonl")
    return tmp_path / "train.jsonl"


def launch(
    data: Path, out: Path, *settings: str, resume: bool = False, **env: str
) -> subprocess.CompletedProcess[str]:
    """`flowllm train-llm` in two processes."""
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"),
        *("-m", "flowllm", "train-llm", "--data", str(data), "--out", str(out), "--device", "cpu"),
        *(["--resume"] if resume else []),
        *(*SETTINGS, *settings),
    ]
    return subprocess.run(
        command,
        env={**os.environ, "OMP_NUM_THREADS": "1", **env},
        capture_output=True,
        text=True,
        timeout=300,
    )


def weights(out: Path) -> dict[str, torch.Tensor]:
    return load_file(out / "model" / "model.safetensors")


def test_two_processes_train_as_one_with_twice_the_batch(data: Path, tmp_path: Path) -> None:
    two = launch(data, tmp_path / "two", "training.batch_size=4")
    assert two.returncode == 0, two.stderr[-3000:]
    accumulated = [*SETTINGS, "training.batch_size=4", "training.gradient_accumulation=2"]
    for out, overrides in (
        ("accumulated", accumulated),
        ("started", [*accumulated, "training.learning_rate=1e-30", "training.max_steps=1"]),
    ):
        train_llm(data=[data], out=tmp_path / out, overrides=overrides, device="cpu")
    found, expected, start = (weights(tmp_path / o) for o in ("two", "accumulated", "started"))
    for name, weight in expected.items():
        assert (weight - start[name]).abs().max() > 1e-3
        torch.testing.assert_close(found[name], weight, rtol=0, atol=1e-4)


def test_accumulated_gradients_are_those_of_a_large_batch(data: Path, tmp_path: Path) -> None:
    for out, size, times in (("large", 16, 1), ("accumulated", 4, 4)):
        settings = (f"training.batch_size={size}", f"training.gradient_accumulation={times}")
        train_llm(data=[data], out=tmp_path / out, overrides=[*SETTINGS, *settings], device="cpu")
    found, expected = weights(tmp_path / "accumulated"), weights(tmp_path / "large")
    for name, weight in expected.items():
        torch.testing.assert_close(found[name], weight, rtol=0, atol=1e-4)


def test_what_the_first_process_refuses_ends_the_others(data: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("my work")
    refused = launch(data, tmp_path / "out")
    assert refused.returncode != 0 and "thesis.tex" in refused.stderr
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["thesis.tex"]
