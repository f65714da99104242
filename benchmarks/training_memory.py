"""Estimated memory of a training step beside what its tensors take.

    OMP_NUM_THREADS=1 python benchmarks/training_memory.py

A forward and a backward pass run on the CPU, small enough to take seconds. Every tensor that an
operation makes is counted until it is freed, so the figure has neither allocator nor libraries. The
estimate is that of `flowllm.training.memory`, without weights, gradients and optimiser, which exist
before the step. The adapters have no dropout, whose mask takes four times as much on the CPU.
"""

from __future__ import annotations

import tempfile
import weakref
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import click
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.utils.logging import disable_progress_bar

from flowllm.training.config import TrainingConfig
from flowllm.training.memory import (
    activation_bytes,
    copied_weights,
    refiner_activation_bytes,
)
from flowllm.training.recipes import PriorRecipe, RefinerRecipe, load_recipe
from flowllm.training.sizes import DecoderSizes
from llm_prior import Lora


class PeakOfTensors(TorchDispatchMode):
    """Counts the bytes of the tensors that operations make, until they are freed.

    Attributes:
        peak: largest number of bytes at one time.
    """

    def __init__(self) -> None:
        super().__init__()
        self.live: dict[int, int] = {}
        self.now = self.peak = 0

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        made = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if not isinstance(tensor, torch.Tensor):
                continue
            storage = tensor.untyped_storage()
            key = storage._cdata
            if key not in self.live:
                self.live[key] = storage.nbytes()
                self.now += storage.nbytes()
                self.peak = max(self.peak, self.now)
                weakref.finalize(storage, self.free, key)
        return made

    def free(self, key: int) -> None:
        self.now -= self.live.pop(key, 0)


def measured(model: torch.nn.Module, loss: Callable[[], torch.Tensor], *, bf16: bool) -> float:
    """Return the peak of a forward and a backward pass; the gradients exist before."""
    for weight in model.parameters():
        if weight.requires_grad:
            weight.grad = torch.zeros_like(weight)
    with PeakOfTensors() as counted:
        with torch.autocast("cpu", torch.bfloat16) if bf16 else nullcontext():
            value = loss()
        value.backward()
    return counted.peak


def decoder(sizes: DecoderSizes, lora: Lora | None, *, quantised: bool) -> torch.nn.Module:
    """Return a LLaMA with random weights, as a training has it."""
    config = LlamaConfig(
        hidden_size=sizes.hidden,
        intermediate_size=sizes.intermediate,
        num_hidden_layers=sizes.layers,
        num_attention_heads=8,
        num_key_value_heads=8 * sizes.key_value // sizes.hidden,
        vocab_size=sizes.vocabulary,
        tie_word_embeddings=sizes.tied,
        use_cache=False,
    )
    model: Any = LlamaForCausalLM(config)
    if quantised:
        from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training
        from transformers import BitsAndBytesConfig

        disable_progress_bar()
        with tempfile.TemporaryDirectory() as folder:
            model.save_pretrained(folder)
            model = LlamaForCausalLM.from_pretrained(
                folder,
                dtype=torch.float32,
                quantization_config=BitsAndBytesConfig(
                    load_in_4bit=True,
                    bnb_4bit_quant_type="nf4",
                    bnb_4bit_use_double_quant=True,
                    bnb_4bit_compute_dtype=torch.bfloat16,
                    bnb_4bit_quant_storage=torch.bfloat16,
                ),
            )
        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
        assert lora is not None
        settings = LoraConfig(
            task_type="CAUSAL_LM",
            r=lora.r,
            lora_alpha=lora.alpha,
            lora_dropout=lora.dropout,
            target_modules=lora.target_modules,
        )
        model = get_peft_model(model, settings)
    return model.train()


def compare_decoder(
    name: str,
    sizes: DecoderSizes,
    training: TrainingConfig,
    lora: Lora | None,
    *,
    batch: int,
    length: int,
) -> float:
    """Compare a step of a decoder; return the relative error of the estimate."""
    model: Any = decoder(sizes, lora, quantised=lora is not None)
    if training.gradient_checkpointing:
        model.activation_checkpointing_enable()
    ids = torch.randint(0, sizes.vocabulary, (batch, length))
    found = measured(model, lambda: model(input_ids=ids, labels=ids).loss, bf16=training.bf16)
    known: Any = {"lora": lora, "quantised": lora is not None, "training": training}
    expected = activation_bytes(
        sizes, tokens=batch * length, logits=batch * length, **known
    ) + copied_weights(sizes, **known)
    return show(name, found, expected)


def compare_refiner(name: str, *, atoms: int, batch: int, changes: tuple[str, ...] = ()) -> float:
    """Compare a step of a refiner on random crystals; return the relative error."""
    import numpy as np
    from pymatgen.core import Lattice

    from rfm import PairDataset, PairedCrystal, Refiner, RefinerConfig, collate

    settings = (*changes, "base.kind=llm", "base.symmetry=free")
    recipe = load_recipe(RefinerRecipe, name, settings)
    recipe = replace(recipe, training=replace(recipe.training, batch_size=batch))
    rng = np.random.default_rng(0)
    pairs = [
        PairedCrystal(
            id=str(k),
            atomic_numbers=rng.integers(1, 80, atoms),
            base_frac_coords=rng.random((atoms, 3)),
            base_lattice=Lattice.cubic(6 + rng.random()).matrix,
            target_frac_coords=rng.random((atoms, 3)),
            target_lattice=Lattice.cubic(6 + rng.random()).matrix,
        )
        for k in range(batch)
    ]
    data = PairDataset(pairs, chart_name=recipe.chart, base=recipe.base)
    refiner = Refiner(
        RefinerConfig(
            statistics=data.statistics,
            chart=recipe.chart,
            network=recipe.network,
            base=recipe.base,
            loss=recipe.loss,
        )
    )
    drawn: Any = collate([data.draw(k, np.random.default_rng(k)) for k in range(batch)])
    drawn.pop("ids")
    if recipe.training.gradient_checkpointing:
        refiner.activation_checkpointing_enable()
    found = measured(refiner, lambda: loss_of(refiner(**drawn)), bf16=recipe.training.bf16)
    return show(
        f"{name}, {batch} crystals of {atoms} atoms", found, refiner_activation_bytes(recipe, atoms)
    )


def loss_of(output: Any) -> torch.Tensor:
    return output["loss"] if isinstance(output, dict) else output


def show(name: str, found: float, expected: float) -> float:
    error = expected / found - 1
    click.echo(
        f"{name}: measured {found / 1e6:.1f} MB, estimated {expected / 1e6:.1f} MB "
        f"({100 * error:+.0f}%)"
    )
    return error


@click.command()
def main() -> None:
    """Compare estimate and measurement of small training steps."""
    lora = Lora(dropout=0.0)
    grouped = DecoderSizes(hidden=512, intermediate=1792, layers=4, key_value=64, vocabulary=2000)
    wide = replace(grouped, intermediate=1376, key_value=512, vocabulary=32000)
    for name, sizes in (("grouped queries", grouped), ("LLaMA-2 vocabulary", wide)):
        for checkpointing in (True, False):
            compare_decoder(
                f"QLoRA, {name}, checkpointing {checkpointing}",
                sizes,
                TrainingConfig(gradient_checkpointing=checkpointing),
                lora,
                batch=4,
                length=480,
            )
    small = load_recipe(PriorRecipe, "llm/small")
    assert small.model.architecture is not None
    own = DecoderSizes(
        hidden=192, intermediate=512, layers=6, key_value=192, vocabulary=1676, tied=True
    )
    for checkpointing in (True, False):
        compare_decoder(
            f"all weights, checkpointing {checkpointing}",
            own,
            replace(small.training, gradient_checkpointing=checkpointing),
            None,
            batch=64,
            length=144,
        )
    compare_refiner("rfm/small", atoms=20, batch=32)
    compare_refiner(
        "rfm/small", atoms=20, batch=32, changes=("training.gradient_checkpointing=true",)
    )
    compare_refiner("rfm/release", atoms=10, batch=64)


if __name__ == "__main__":
    main()
