"""Priors with random weights, on a pretrained base and with an adapter, saved and loaded."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import LlamaForCausalLM

from llm_prior import Architecture, BaseModel, Lora, Prior, TextFormat
from prior_support import (
    FMT,
    TINY,
    WHOLE,
    byte_tokenizer,
    logits,
    make_base,
    refused,
    small_prior,
    with_trained_adapter,
)

# --- from random weights -------------------------------------------------------------------------


def test_a_new_model_has_the_sizes_asked_for_and_the_compact_tokenizer() -> None:
    prior = small_prior()
    config = prior.model.config
    assert (config.hidden_size, config.num_hidden_layers) == (16, 2)
    assert config.rope_parameters["rope_theta"] == 10000.0
    assert config.vocab_size == len(prior.tokenizer)
    assert (config.pad_token_id, config.bos_token_id, config.eos_token_id) == (0, 1, 2)
    assert prior.context_length == 512 and prior.device == torch.device("cpu")
    assert prior.source is None


def test_the_weights_are_a_function_of_the_seed_and_leave_the_global_generator_alone() -> None:
    torch.manual_seed(5)
    state = torch.get_rng_state()
    first = logits(small_prior(seed=3))
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(6)
    assert torch.equal(logits(small_prior(seed=3)), first)
    assert not torch.equal(logits(small_prior(seed=4)), first)


@pytest.mark.parametrize(
    "sizes",
    [
        {"hidden_size": 0},
        {"num_hidden_layers": -1},
        {"num_attention_heads": 0},
        {"max_position_embeddings": 0},
        {"rope_theta": 0.0},
        {"hidden_size": 100, "num_attention_heads": 3},
        {"hidden_size": 12, "num_attention_heads": 4},  # heads of odd width
    ],
)
def test_sizes_that_make_no_model_are_refused(sizes: dict) -> None:
    refused(lambda: Architecture(**sizes), f"model.architecture.{next(iter(sizes))}")


def test_a_base_is_exactly_one_thing() -> None:
    refused(BaseModel, "exactly one of `name` and `architecture`")
    refused(lambda: BaseModel(name="x", architecture=TINY), "exactly one of")
    refused(lambda: BaseModel(architecture=TINY, lora=Lora()), "need a pretrained model.name")
    refused(lambda: BaseModel(architecture=TINY, quantization="4bit"), "need a pretrained")
    refused(lambda: BaseModel(name="x", quantization="8bit"), "set model.lora as well")


# --- saving and loading --------------------------------------------------------------------------


def test_a_saved_prior_loads_with_the_same_logits_tokens_and_settings(tmp_path: Path) -> None:
    fmt = TextFormat(coord_decimals=3, max_atoms=7)
    prior = Prior.build(BaseModel(architecture=TINY), fmt)
    prior.info = {"crystals": 3, "metrics": {"loss": 1.5}}
    prior.save_pretrained(tmp_path / "prior")
    again = Prior.from_pretrained(tmp_path / "prior")

    assert torch.equal(logits(again), logits(prior))
    assert again.tokenizer.get_vocab() == prior.tokenizer.get_vocab()
    assert again.tokenizer.pad_token_id == 0 and again.tokenizer.padding_side == "left"
    assert (again.fmt, again.info) == (fmt, prior.info)
    assert again.source == str(tmp_path / "prior")
    assert not again.model.training


def test_a_prior_that_was_loaded_saves_to_the_same_files(tmp_path: Path) -> None:
    small_prior().save_pretrained(tmp_path / "a")
    Prior.from_pretrained(tmp_path / "a").save_pretrained(tmp_path / "b")
    names = {path.name for path in (tmp_path / "a").iterdir()}
    assert names == {path.name for path in (tmp_path / "b").iterdir()}
    for name in ("model.safetensors", "prior.json", "tokenizer.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_whoever_may_read_the_settings_may_read_the_weights(tmp_path: Path) -> None:
    small_prior().save_pretrained(tmp_path)
    assert len({path.stat().st_mode for path in tmp_path.iterdir()}) == 1


def test_nothing_that_is_saved_needs_unpickling(tmp_path: Path) -> None:
    small_prior().save_pretrained(tmp_path)
    assert {path.suffix for path in tmp_path.iterdir()} == {".json", ".safetensors"}


def test_weights_can_be_stored_in_half_the_bytes(tmp_path: Path) -> None:
    prior = small_prior()
    prior.save_pretrained(tmp_path / "full")
    prior.save_pretrained(tmp_path / "half", dtype=torch.bfloat16)
    full = load_file(tmp_path / "full" / "model.safetensors")
    half = load_file(tmp_path / "half" / "model.safetensors")
    assert set(half) == set(full)  # the tied output layer is not stored a second time
    for name, weight in half.items():
        assert torch.equal(weight, full[name].to(torch.bfloat16))
    assert prior.model.dtype == torch.float32

    again = Prior.from_pretrained(tmp_path / "half")
    assert again.model.dtype == torch.float32
    torch.testing.assert_close(logits(again), logits(prior), rtol=0, atol=0.01)
    assert Prior.from_pretrained(tmp_path / "full", dtype=torch.bfloat16).model.dtype == (
        torch.bfloat16
    )


def test_seeds_that_agree_in_their_low_32_bits_start_apart() -> None:
    base = BaseModel(architecture=Architecture(hidden_size=16, num_hidden_layers=1))
    one, other, again = (
        Prior.build(base, FMT, seed=seed).model.get_input_embeddings().weight
        for seed in (7, 7 + 2**32, 7 + 2**32)
    )
    assert torch.equal(other, again) and not torch.equal(one, other)
    refused(lambda: Prior.build(base, FMT, seed=-1), "seed -1 is negative")


# --- a pretrained base ---------------------------------------------------------------------------


@pytest.mark.parametrize("tied", [False, True], ids=["own output layer", "tied"])
def test_a_base_without_a_pad_token_gets_one_and_keeps_its_predictions(
    tmp_path: Path, tied: bool
) -> None:
    base = make_base(tmp_path / "base", tied=tied)
    prior = Prior.build(BaseModel(name=base), FMT)
    assert prior.tokenizer.pad_token_id == 258 != prior.tokenizer.eos_token_id
    assert prior.model.config.pad_token_id == 258
    assert prior.model.get_input_embeddings().num_embeddings == 259

    plain = LlamaForCausalLM.from_pretrained(base)
    ids = byte_tokenizer()(WHOLE, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        expected = plain(ids).logits
    found = logits(prior)
    torch.testing.assert_close(found[..., :258], expected)
    torch.testing.assert_close(found[..., 258], expected.mean(-1))  # never a likely answer


def test_a_pad_token_that_ends_the_sequence_is_replaced_and_another_is_kept(tmp_path: Path) -> None:
    clash = make_base(tmp_path / "clash", pad_token="</s>")
    assert Prior.build(BaseModel(name=clash), FMT).tokenizer.pad_token == "<pad>"
    own = make_base(tmp_path / "own", pad_token="<s>")
    prior = Prior.build(BaseModel(name=own), FMT)
    assert prior.tokenizer.pad_token == "<s>" and prior.model.config.vocab_size == 258


def test_spare_embeddings_are_left_as_they_are(tmp_path: Path) -> None:
    """Some bases round their vocabulary up; a new token takes a spare row."""
    base = make_base(tmp_path / "base", rows=272)
    prior = with_trained_adapter(base)
    assert prior.model.get_input_embeddings().num_embeddings == 272
    prior.save_pretrained(tmp_path / "adapter")
    assert torch.equal(logits(Prior.from_pretrained(tmp_path / "adapter")), logits(prior))


def test_a_fine_tuned_base_is_saved_whole_with_its_new_token(tmp_path: Path, base: str) -> None:
    prior = Prior.build(BaseModel(name=base), FMT)
    prior.save_pretrained(tmp_path / "prior")
    shutil.rmtree(base)
    again = Prior.from_pretrained(tmp_path / "prior")
    assert torch.equal(logits(again), logits(prior))
    assert again.tokenizer.pad_token_id == 258


# --- an adapter ----------------------------------------------------------------------------------


@pytest.mark.parametrize("tied", [False, True], ids=["own output layer", "tied"])
def test_an_adapter_is_saved_alone_and_loads_on_its_base(tmp_path: Path, tied: bool) -> None:
    base = make_base(tmp_path / "base", tied=tied)
    prior = with_trained_adapter(base)
    prior.save_pretrained(tmp_path / "adapter")
    weights = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert weights and all("lora_" in name for name in weights)
    assert not (tmp_path / "adapter" / "model.safetensors").exists()

    torch.manual_seed(99)  # a new embedding must not depend on the global generator
    again = Prior.from_pretrained(tmp_path / "adapter")
    assert torch.equal(logits(again), logits(prior))  # the pad token's column included
    assert not torch.allclose(logits(Prior.build(BaseModel(name=base), FMT)), logits(prior))
    assert isinstance(again.model, PeftModel) and not again.model.training
    assert again.context_length == 256
    assert again.tokenizer.pad_token_id == 258

    again.save_pretrained(tmp_path / "again")
    assert load_file(tmp_path / "again" / "adapter_model.safetensors").keys() == weights.keys()


def test_an_adapter_made_elsewhere_brings_its_own_tokens(tmp_path: Path, base: str) -> None:
    """Fine-tuning with further tokens stores their embeddings inside the adapter."""
    tokenizer = byte_tokenizer(pad_token="[PAD]")
    tokenizer.add_tokens(["[SITE]"])
    model = LlamaForCausalLM.from_pretrained(base)
    model.resize_token_embeddings(260, mean_resizing=False)
    model = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj"]))
    model.save_pretrained(tmp_path / "adapter", save_embedding_layers=True)
    tokenizer.save_pretrained(tmp_path / "adapter")
    (tmp_path / "adapter" / "prior.json").write_text(json.dumps({"version": 1, "text": {}}))

    prior = Prior.from_pretrained(tmp_path / "adapter")
    assert prior.tokenizer.pad_token == "[PAD]"
    expected = Prior(model=model.eval(), tokenizer=tokenizer, fmt=FMT)
    assert torch.equal(logits(prior, WHOLE + "[SITE]"), logits(expected, WHOLE + "[SITE]"))


def test_only_the_adapter_is_trained(base: str) -> None:
    prior = Prior.build(BaseModel(name=base, lora=Lora(r=2, target_modules=["q_proj"])), FMT)
    trained = [name for name, weight in prior.model.named_parameters() if weight.requires_grad]
    assert len(trained) == 4 and all("q_proj.lora_" in name for name in trained)


def test_an_adapters_weights_are_a_function_of_the_seed(base: str) -> None:
    def first_weights(seed: int) -> torch.Tensor:
        prior = Prior.build(BaseModel(name=base, lora=Lora(r=2)), FMT, seed=seed)
        return next(weight for name, weight in prior.model.named_parameters() if "lora_A" in name)

    assert torch.equal(first_weights(0), first_weights(0))
    assert not torch.equal(first_weights(0), first_weights(1))


def test_an_adapter_of_a_relative_base_loads_from_another_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_base(tmp_path / "models" / "base")
    monkeypatch.chdir(tmp_path)
    prior = with_trained_adapter("models/base")
    prior.save_pretrained("adapter")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert torch.equal(logits(Prior.from_pretrained(tmp_path / "adapter")), logits(prior))


@pytest.mark.parametrize(
    "lora", [Lora(target_modules=["c_attn"]), Lora(r=0)], ids=["modules", "rank"]
)
def test_an_adapter_that_fits_nowhere_is_refused(base: str, lora: Lora) -> None:
    refused(lambda: Prior.build(BaseModel(name=base, lora=lora), FMT), "model.lora on", base)
