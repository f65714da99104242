"""Estimates of memory, against counted tensors and known sums."""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from types import ModuleType

import numpy as np
import pytest

from flowllm.errors import UserError
from flowllm.training.config import TrainingConfig
from flowllm.training.memory import (
    activation_bytes,
    copied_weights,
    longest_example,
    plan_training,
    prior_plan,
)
from flowllm.training.recipes import PriorRecipe, load_recipe, named_recipes
from flowllm.training.sizes import KNOWN_SIZES, DecoderSizes
from llm_prior.tokenizer import compact_tokenizer
from support import ROOT


@pytest.fixture(scope="module")
def benchmark() -> ModuleType:
    spec = importlib.util.spec_from_file_location(
        "training_memory", ROOT / "benchmarks" / "training_memory.py"
    )
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("checkpointing", [True, False])
@pytest.mark.parametrize("lora", [True, False])
def test_activations_are_those_of_a_training_step(
    checkpointing: bool, lora: bool, benchmark: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    sizes = DecoderSizes(hidden=256, intermediate=704, layers=4, key_value=256, vocabulary=1000)
    training = TrainingConfig(gradient_checkpointing=checkpointing)
    adapter = benchmark.Lora(dropout=0.0) if lora else None
    error = benchmark.compare_decoder("step", sizes, training, adapter, batch=4, length=256)
    assert -0.15 < error < 0.25, capsys.readouterr().out


def test_activations_of_a_refiner_are_those_of_a_training_step(benchmark: ModuleType) -> None:
    assert abs(benchmark.compare_refiner("rfm/small", atoms=20, batch=8)) < 0.15


def test_the_parts_of_a_qlora_training_add_up() -> None:
    """LLaMA-2 7B: 6.476 G quantised weights of 4.127 bits, the other ones in float32."""
    plan = plan_training("llm/llama2-7b")
    quantised = 32 * (4 * 4096**2 + 3 * 4096 * 11008)
    rest = 6_738_415_616 - quantised + 8_388_608
    expected = quantised * (0.5 + 1 / 64 + 4 / (64 * 256)) + 4 * rest
    assert plan.copied.weights == pytest.approx(expected)
    assert (plan.trainable, plan.batch, plan.sharded) == (8_388_608, 256, None)
    assert plan.copied.gradients == 4 * plan.trainable
    assert plan.copied.optimiser == 8 * plan.trainable
    parts = ("weights", "gathered", "gradients", "optimiser", "activations")
    assert plan.copied.training == sum(getattr(plan.copied, name) for name in parts)
    assert plan.copied.needed > plan.copied.training


def test_more_gpus_divide_what_is_divided() -> None:
    eight, sixteen = (plan_training("llm/llama2-70b", gpus).sharded for gpus in (8, 16))
    assert eight is not None and sixteen is not None
    scales = 80 * KNOWN_SIZES["meta-llama/Llama-2-70b-hf"].linear * (1 + 4 / 256) / 64
    assert eight.weights - scales == pytest.approx(2 * (sixteen.weights - scales))
    assert eight.optimiser == 2 * sixteen.optimiser
    assert eight.activations == sixteen.activations and eight.gathered == sixteen.gathered
    copied = plan_training("llm/llama2-70b", 8).copied
    assert copied.weights > 3 * eight.weights
    assert (
        copied.loading == eight.loading > copied.weights
    )  # all are loaded before they are divided


@pytest.mark.parametrize("key", ["training.ema_decay=0.9", "model.quantization=8bit"])
def test_what_fsdp_cannot_do_is_not_planned(key: str) -> None:
    recipe = load_recipe(PriorRecipe, "llm/llama2-7b", [key])
    assert prior_plan(recipe, KNOWN_SIZES[str(recipe.model.name)], 8).sharded is None


@pytest.mark.parametrize("name", [name for name in named_recipes() if name != "llm/tune"])
def test_every_recipe_of_a_training_has_a_plan(name: str) -> None:
    plan = plan_training(name, 2)
    assert 0 < plan.trainable <= plan.total
    assert 0 < plan.copied.training < plan.copied.needed


def test_smaller_batches_take_less() -> None:
    recipe = load_recipe(PriorRecipe, "llm/llama2-7b")
    sizes = KNOWN_SIZES[str(recipe.model.name)]
    half = replace(recipe, training=replace(recipe.training, batch_size=4))
    large, small = (prior_plan(r, sizes, 1).copied.activations for r in (recipe, half))
    assert large == pytest.approx(2 * small)


def test_full_training_keeps_copies_in_bfloat16() -> None:
    sizes = KNOWN_SIZES["meta-llama/Llama-2-7b-hf"]
    known = {"lora": None, "quantised": False}
    assert copied_weights(sizes, training=TrainingConfig(bf16=False), **known) == 0
    copies = copied_weights(sizes, training=TrainingConfig(bf16=True), **known)
    assert copies == 2 * 32000 * 4096 + 4 * 32 * sizes.linear
    exact = TrainingConfig(bf16=False)
    half = TrainingConfig(bf16=True)
    for_exact, for_half = (
        activation_bytes(sizes, tokens=8, logits=1, training=t, **known) for t in (exact, half)
    )
    assert for_exact > for_half


@pytest.mark.parametrize("name", ["llm/small", "llm/wyckoff"])
def test_no_example_is_longer_than_the_longest(name: str, training_rows: list) -> None:
    from llm_prior import CrystalTextDataset

    recipe = load_recipe(PriorRecipe, name)
    tokenizer = compact_tokenizer(recipe.text)
    data = CrystalTextDataset(training_rows, tokenizer, recipe.text, recipe.tasks)
    drawn = [data.draw(k, np.random.default_rng(k)) for k in range(len(data))]
    tokens, answer = longest_example(recipe)
    assert max(len(item["input_ids"]) for item in drawn) <= tokens
    assert max(sum(label != -100 for label in item["labels"]) for item in drawn) <= answer


@pytest.fixture(scope="module")
def training_rows() -> list:
    from flowllm.crystals.io import read

    crystals = read(ROOT / "tests" / "data" / "mp20_sample.parquet")
    return [(crystal.id, crystal.structure, crystal.properties) for crystal in crystals]


def test_no_gpus_are_refused() -> None:
    with pytest.raises(UserError, match="gpus is 0; give 1 or more"):
        plan_training("llm/small", 0)
