"""A LLaMA with the real LLaMA-2 vocabulary: trained in 4 bits by `train_prior`, loaded, sampled."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
import torch
from pymatgen.core import Lattice, Structure
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from flowllm.crystals.io import Crystal, write
from flowllm.training.prior import train_prior
from llm_prior import BaseModel, Lora, Prior, PriorError, TextFormat, propose
from support import SHARED

VOCABULARY = SHARED / "tokenizers" / "llama_tokenizer.json"


@pytest.mark.skipif(not VOCABULARY.exists(), reason="no LLaMA-2 vocabulary at ../shared/tokenizers")
def test_a_quantised_llama_trains_saves_loads_and_writes_crystals(tmp_path: Path) -> None:
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_file=str(VOCABULARY), bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )
    torch.manual_seed(0)
    size = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2}
    special = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    config = LlamaConfig(vocab_size=len(tokenizer), num_attention_heads=2, **size, **special)
    LlamaForCausalLM(config).save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    salt = Structure(Lattice.cubic(4.1), ["Cs", "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]])
    crystals = [Crystal(id=f"c{k}", structure=salt, properties={}) for k in range(4)]
    write(crystals, tmp_path / "train.jsonl")
    model = train_prior(
        "llm/llama2-7b",
        data=[tmp_path / "train.jsonl"],
        out=tmp_path / "run",
        overrides=[
            *(f"model.name={tmp_path / 'base'}", "training.batch_size=4", "training.epochs=3"),
            *("training.gradient_accumulation=1", "training.num_workers=0"),
        ],
        device="cpu",
    )
    prior = Prior.from_pretrained(model)
    assert any(type(module).__name__ == "Linear4bit" for module in prior.model.modules())
    trained = [weight for name, weight in prior.model.named_parameters() if "lora_B" in name]
    assert any(weight.abs().max() > 0 for weight in trained)  # they start at zero
    requests = [{"formula": "TiO2", "num_atoms": 3}, {"formula": "CsCl"}]
    titania, salt = propose(prior, requests, seed=0, max_attempts=1)
    assert Counter(site.specie.symbol for site in titania.structure) == {"Ti": 1, "O": 2}
    assert salt.structure.composition.reduced_formula == "CsCl"


def test_a_gguf_file_cannot_be_quantised_again(tmp_path: Path) -> None:
    file = tmp_path / "tiny.gguf"
    file.write_bytes(b"GGUF")
    with pytest.raises(PriorError, match="GGUF file .* model.quantization"):
        Prior.build(BaseModel(name=str(file), quantization="4bit", lora=Lora()), TextFormat())
