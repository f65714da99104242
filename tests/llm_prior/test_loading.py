"""Quantised bases, merged adapters, and adapters that do not belong to their base."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from pymatgen.core import Lattice, Structure
from transformers import LlamaForCausalLM

from llm_prior import BaseModel, Collator, CrystalTextDataset, Lora, Prior, TaskMix, TextFormat
from llm_prior.errors import PriorError
from prior_support import FMT, logits, make_base

# Linear layers wide enough for NF4.
WIDE = {"hidden_size": 64, "intermediate_size": 128, "max_position_embeddings": 512}


@pytest.fixture
def base(tmp_path: Path) -> str:
    return make_base(tmp_path / "base", sizes=WIDE)


def trained(base: str, quantization: str | None, steps: int = 8) -> Prior:
    """An adapter after a few steps with a large learning rate, so that it tells."""
    prior = Prior.build(BaseModel(name=base, lora=Lora(r=4), quantization=quantization), FMT)
    structure = Structure(Lattice.cubic(5.6), ["Na", "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]])
    data = CrystalTextDataset([("salt", structure, {})], prior.tokenizer, FMT, TaskMix(infill=0))
    rng = np.random.default_rng(0)
    batch = Collator(prior.tokenizer.pad_token_id)([data.draw(0, rng) for _ in range(4)])
    batch.pop("ids")
    learnt = [weight for weight in prior.model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(learnt, lr=0.01)
    torch.manual_seed(0)
    prior.model.train()
    losses = []
    for _ in range(steps):
        loss = prior.model(**batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    prior.model.eval()
    return prior


@pytest.mark.parametrize("quantization", ["4bit", "8bit"])
def test_an_adapter_loads_on_its_base_quantised_as_in_training(
    tmp_path: Path, base: str, quantization: str
) -> None:
    prior = trained(base, quantization)
    prior.save_pretrained(tmp_path / "adapter")
    again = Prior.from_pretrained(tmp_path / "adapter")
    assert again.tokenizer.pad_token_id != again.tokenizer.eos_token_id
    kinds = {type(module).__name__ for module in again.model.modules()}
    assert ("Linear4bit" if quantization == "4bit" else "Linear8bitLt") in kinds
    found, expected = logits(again), logits(prior)
    torch.testing.assert_close(found, expected, rtol=0.01, atol=0.01)

    # In full precision it would be another model.
    settings = (tmp_path / "adapter" / "prior.json").read_text()
    assert f'"quantization": "{quantization}"' in settings
    (tmp_path / "adapter" / "prior.json").write_text(
        settings.replace(f'"quantization": "{quantization}"', '"quantization": null', 1)
    )
    full = Prior.from_pretrained(tmp_path / "adapter")
    assert (logits(full) - expected).abs().max() > 2 * (found - expected).abs().max()


@pytest.mark.parametrize("quantization", [None, "4bit"])
def test_a_merged_model_needs_no_base_and_has_the_logits_of_adapter_on_base(
    tmp_path: Path, base: str, quantization: str | None
) -> None:
    prior = trained(base, quantization)
    prior.info = {"crystals": 1}
    prior.save_pretrained(tmp_path / "adapter")
    Prior.from_pretrained(tmp_path / "adapter", merge=True).save_pretrained(tmp_path / "merged")
    shutil.rmtree(base)
    shutil.rmtree(tmp_path / "adapter")
    merged = Prior.from_pretrained(tmp_path / "merged")
    assert type(merged.model) is LlamaForCausalLM and merged.info == prior.info
    # A 4-bit product is in bfloat16.
    tolerance = 1e-4 if quantization is None else 0.02 * logits(prior).abs().max().item()
    torch.testing.assert_close(logits(merged), logits(prior), rtol=0, atol=tolerance)
    with pytest.raises(PriorError, match="merged is a whole model; only an adapter can be merged"):
        Prior.from_pretrained(tmp_path / "merged", merge=True)


@pytest.mark.parametrize("merge", [False, True])
def test_an_adapter_on_another_base_of_the_same_shape_is_refused(
    tmp_path: Path, merge: bool
) -> None:
    base = make_base(tmp_path / "base", sizes=WIDE)
    trained(base, None).save_pretrained(tmp_path / "adapter")
    make_base(tmp_path / "base", sizes=WIDE, seed=2)
    with pytest.raises(
        PriorError, match="adapter is an adapter for another base than base_model_name_or_path"
    ):
        Prior.from_pretrained(tmp_path / "adapter", merge=merge)


def test_a_prior_is_no_base_for_another_precision_nor_an_adapter_one_at_all(tmp_path: Path) -> None:
    base = make_base(tmp_path / "base", sizes=WIDE)
    Prior.build(BaseModel(name=base), FMT).save_pretrained(tmp_path / "prior")
    fine = TextFormat(coord_decimals=3)
    for lora in (None, Lora()):
        with pytest.raises(PriorError, match="trained with text.coord_decimals=2, .* has 3; set"):
            Prior.build(BaseModel(name=str(tmp_path / "prior"), lora=lora), fine)
    trained(base, None).save_pretrained(tmp_path / "adapter")
    with pytest.raises(PriorError, match="adapter is an adapter; merge it into its base first"):
        Prior.build(BaseModel(name=str(tmp_path / "adapter"), lora=Lora()), FMT)
