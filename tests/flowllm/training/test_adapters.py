"""LoRA adapters on a pretrained model."""

from __future__ import annotations

import shutil
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from training_support import ARCHITECTURE, TRAINING, small_training

from flowllm.errors import UserError
from llm_prior import Prior


def test_an_adapter_on_a_pretrained_model_resumes_bit_for_bit(files: Path, tmp_path: Path) -> None:
    limit = "training.max_steps=12"
    few = [*TRAINING, *ARCHITECTURE, limit]
    base = small_training("llm", files)(out=tmp_path / "base", overrides=few)
    model = ("model.architecture=null", f"model.name={base}", "model.lora.r=2")
    train = partial(small_training("llm", files), overrides=[*TRAINING, limit, *model])
    adapter = train(out=tmp_path / "run") / "adapter_model.safetensors"
    first = adapter.read_bytes()
    assert not (adapter.parent / "model.safetensors").exists()

    shutil.rmtree(adapter.parent)
    for step in (12, 9):
        shutil.rmtree(tmp_path / "run" / f"checkpoint-{step}")
    merged = train(out=tmp_path / "run", resume=True, merge=True)
    assert adapter.read_bytes() == first
    assert merged == tmp_path / "run" / "merged"
    one, two = (Prior.from_pretrained(folder) for folder in (merged, adapter.parent))
    assert one.info == two.info
    # The crystals have a band gap and no energies.
    assert one.info["conditions"] == ["formula", "elements", "num_atoms", "band_gap"]
    ids = torch.arange(5, 60)[None]
    torch.testing.assert_close(one.model(ids).logits, two.model(ids).logits)
    assert train(out=tmp_path / "run", resume=True, merge=True) == merged

    with pytest.raises(UserError, match="llm/small has no model.lora, so there is no adapter"):
        small_training("llm", files)(out=tmp_path / "whole", merge=True)


def test_an_adapter_trains_with_recomputed_activations(files: Path, tmp_path: Path) -> None:
    few = [*TRAINING, "training.max_steps=3", "training.bf16=false"]
    base = small_training("llm", files)(out=tmp_path / "base", overrides=[*few, *ARCHITECTURE])
    model = ("model.architecture=null", f"model.name={base}", "model.lora.r=2")
    found = []
    for recompute in ("false", "true"):
        setting = f"training.gradient_checkpointing={recompute}"
        out = tmp_path / recompute
        folder = small_training("llm", files)(out=out, overrides=[*few, *model, setting])
        found.append(load_file(folder / "adapter_model.safetensors"))
    for name, weight in found[0].items():
        torch.testing.assert_close(found[1][name], weight)
        assert weight.abs().max() > 0  # lora_B starts at zero
