"""Memory of a training on GPUs, estimated from the recipe alone.

The peak is the sum of what stays (weights, gradients, optimiser, checkpoints of activations) and
of the largest thing that comes and goes: the logits, or one decoder layer that is computed again.
Sizes are bytes; N is the number of tokens of the longest batch; h, f and V are those of
`DecoderSizes`.

- NF4 with double quantisation: 4 bits for each weight, an 8-bit scale for 64 weights and a 32-bit
  scale for 256 of those, 4.127 bits in all (Dettmers et al. 2023, arXiv 2305.14314, section 3).
  Embeddings, output layer and norms stay in float32.
- AdamW: two float32 moments for each trained weight, beside weight and gradient (Rajbhandari et al.
  2020, ZeRO, arXiv 1910.02054, section 3.1).
- FSDP 2 divides weights, gradients and moments by the number of GPUs, and gathers a decoder layer
  while the next one is on its way (Zhao et al. 2023, arXiv 2304.11277).
- Gradient checkpointing keeps the input of each layer and computes one layer again (Chen et al.
  2016, arXiv 1604.06174).

The bytes for each token in `_layer_bytes` were counted tensor by tensor for this code;
`benchmarks/training_memory.py` compares them with what autograd keeps.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from flowllm.errors import UserError
from flowllm.training.config import TrainingConfig
from flowllm.training.recipes import PriorRecipe, RefinerRecipe, load_any_recipe
from flowllm.training.sizes import DecoderSizes, decoder_sizes, refiner_weights
from llm_prior import Lora

FLOAT = 4  # bytes of a float32
HALF = 2  # of a bfloat16
_SCALES = (1 + 4 / 256) / 64  # bytes of the scales of a weight in NF4
_QUANTISED = {"4bit": 0.5, "8bit": 1.0}  # bytes of a quantised weight, without scales
# CUDA context and library workspaces in bytes, and the share of memory that the allocator cannot
# use. Both are assumptions: no GPU was at hand to measure them.
CONTEXT, FRAGMENTATION = 1.0e9, 0.1
# Tokens of a prompt with a crystal of n atoms: the longest of 1,600 training examples of MP-20 had
# 468 of LLaMA-2, 133 (sites) and 147 (wyckoff) compact ones, all with n = 20. The second pair
# counts the answer, which alone has logits.
_LLAMA_TOKENS = ((120, 18), (24, 18))
_COMPACT_TOKENS = ((70, 4), (8, 5))
_REFINER_ATOMS = 20  # of the largest crystal of MP-20; a recipe of a refiner sets no limit


@dataclass(frozen=True, kw_only=True)
class GpuMemory:
    """Bytes on each GPU.

    Attributes:
        weights: the weights or this GPU's share, with the scales of quantised ones.
        gathered: weights of the layers at work, whole (FSDP), and their copies in bfloat16.
        gradients: of the trained weights, with the buffers in which they are summed.
        optimiser: moments of AdamW, and the moving average of the weights.
        activations: kept for the backward pass, and the largest temporary ones.
        loading: the peak before the training starts.
    """

    weights: float
    gathered: float
    gradients: float
    optimiser: float
    activations: float
    loading: float

    @property
    def training(self) -> float:
        """Peak in training."""
        parts = (self.weights, self.gathered, self.gradients, self.optimiser, self.activations)
        return sum(parts)

    @property
    def needed(self) -> float:
        """Memory that a GPU should have: the larger peak, with context and fragmentation."""
        return max(self.training, self.loading) * (1 + FRAGMENTATION) + CONTEXT


@dataclass(frozen=True, kw_only=True)
class MemoryPlan:
    """Weights and memory of a training.

    Attributes:
        total: all weights, without an adapter.
        trainable: weights that are trained.
        batch: crystals of one optimiser step, over all GPUs.
        tokens: tokens of the longest example of a prior; None for a refiner.
        copied: memory if each GPU holds all weights (DDP, or one GPU).
        sharded: memory if weights are divided (FSDP 2); None where that is not supported.
    """

    total: int
    trainable: int
    batch: int
    tokens: int | None
    copied: GpuMemory
    sharded: GpuMemory | None


def plan_training(recipe: str | Path, gpus: int = 1) -> MemoryPlan:
    """Estimate the memory of a training on each GPU. Nothing is downloaded or built.

    Args:
        recipe: name or path, as for training.
        gpus: GPUs of all nodes together, one process each.

    Returns:
        The estimate.

    Raises:
        UserError: if the recipe is bad, there is no GPU, or the sizes of its model are not known.
    """
    if gpus < 1:
        raise UserError(f"gpus is {gpus}; give 1 or more")
    loaded = load_any_recipe(recipe)
    if isinstance(loaded, RefinerRecipe):
        return _refiner_plan(loaded, gpus)
    return prior_plan(loaded, decoder_sizes(loaded.model, loaded.text), gpus)


def prior_plan(recipe: PriorRecipe, sizes: DecoderSizes, gpus: int) -> MemoryPlan:
    """Estimate the memory of the training of a prior.

    Args:
        recipe: its settings.
        sizes: of its model.
        gpus: GPUs of all nodes together.

    Returns:
        The estimate.
    """
    lora, quantization = recipe.model.lora, recipe.model.quantization
    training = recipe.training
    adapter = 0 if lora is None else sizes.adapter(lora)
    trainable = adapter or sizes.total
    compute = HALF if training.bf16 else FLOAT
    quantised = sizes.layers * sizes.linear if quantization else 0
    packed = _QUANTISED.get(quantization or "", 0.0) * quantised
    scales = _SCALES * quantised if quantization == "4bit" else 0.0
    floats = FLOAT * (sizes.total - quantised + adapter)

    tokens, activations = _prior_activations(recipe, sizes)
    copies = copied_weights(sizes, lora=lora, quantised=bool(quantised), training=training)
    loading = packed + scales + floats + FLOAT * sizes.vocabulary * sizes.hidden
    copied = GpuMemory(
        weights=packed + scales + floats,
        gathered=copies,
        gradients=FLOAT * trainable * (2 if gpus > 1 else 1),
        optimiser=2 * FLOAT * trainable + (FLOAT * trainable if training.ema_decay else 0),
        activations=activations,
        loading=loading if quantised else 0.0,
    )
    layer = _QUANTISED.get(quantization or "", compute) * sizes.linear
    layer += compute * (2 * sizes.hidden + adapter / sizes.layers)
    per_layer = trainable / sizes.layers  # gradients of a layer, before they are divided
    unpacked = HALF * max(a * b for a, b in sizes.linear_layers.values()) if quantised else 0.0
    sharded = GpuMemory(
        weights=(packed + floats) / gpus + scales,  # every GPU keeps all scales
        gathered=2 * layer + compute * sizes.embeddings + unpacked,
        gradients=FLOAT * trainable / gpus + (compute + FLOAT) * per_layer,
        optimiser=2 * FLOAT * trainable / gpus,
        activations=activations,
        loading=loading if quantised else 0.0,  # a GPU holds all weights before they are divided
    )
    divisible = gpus > 1 and quantization != "8bit" and not training.ema_decay
    return MemoryPlan(
        total=sizes.total,
        trainable=trainable,
        batch=_batch(training, gpus),
        tokens=tokens,
        copied=copied,
        sharded=sharded if divisible else None,
    )


def copied_weights(
    sizes: DecoderSizes, *, lora: Lora | None, quantised: bool, training: TrainingConfig
) -> float:
    """Return the bytes of the copies of weights in the type of the matrix products.

    Autocast copies the output layer and the linear layers, and keeps the copies until the backward
    pass. In a full training their gradients take as much again. Quantised weights are unpacked one
    matrix at a time.

    Args:
        sizes: of the decoder.
        lora: the adapter; None trains all weights.
        quantised: the linear layers are quantised.
        training: precision and gradient checkpointing.

    Returns:
        Bytes.
    """
    unpacked = HALF * max(a * b for a, b in sizes.linear_layers.values()) if quantised else 0.0
    if not training.bf16:
        return unpacked
    copies = HALF * sizes.vocabulary * sizes.hidden
    if not quantised:
        kept = 1 if lora is not None and training.gradient_checkpointing else sizes.layers
        copies += HALF * kept * sizes.linear * (1 if lora is not None else 2)
    return copies + unpacked


def longest_example(recipe: PriorRecipe) -> tuple[int, int]:
    """Return the tokens of the longest training example, and those of its answer.

    Args:
        recipe: of a prior.

    Returns:
        Both numbers; batches hold examples of like length, so there is one of the longest.
    """
    known = _LLAMA_TOKENS if recipe.model.architecture is None else _COMPACT_TOKENS
    (start, each), (answer, each_answer) = known
    atoms = recipe.text.max_atoms
    tokens = start + each * atoms
    if (architecture := recipe.model.architecture) is not None:
        tokens = min(tokens, architecture.max_position_embeddings)
    return tokens, min(tokens, answer + each_answer * atoms)


def _prior_activations(recipe: PriorRecipe, sizes: DecoderSizes) -> tuple[int, float]:
    """Return the tokens of the longest example, and the bytes of activations of its batch."""
    training = recipe.training
    tokens, answer = longest_example(recipe)
    return tokens, activation_bytes(
        sizes,
        tokens=training.batch_size * tokens,
        logits=training.batch_size * answer,
        lora=recipe.model.lora,
        quantised=recipe.model.quantization is not None,
        training=training,
    )


def activation_bytes(
    sizes: DecoderSizes,
    *,
    tokens: int,
    logits: int,
    lora: Lora | None,
    quantised: bool,
    training: TrainingConfig,
) -> float:
    """Return the peak of the activations of a decoder, without copies of weights.

    Args:
        sizes: of the decoder.
        tokens: tokens N of the batch.
        logits: tokens that are predicted.
        lora: the adapter; None trains all weights.
        quantised: the linear layers are quantised.
        training: precision and gradient checkpointing.

    Returns:
        Bytes.
    """
    residual = FLOAT * tokens * sizes.hidden  # the sum of the layers stays in float32
    compute = HALF if training.bf16 else FLOAT
    hidden = FLOAT if quantised else compute  # bitsandbytes gives back the type of its input
    layer = tokens * _layer_bytes(sizes, lora, compute, hidden)
    # The logits in the type of the products, in float32, their log-softmax and its gradient.
    head = logits * sizes.vocabulary * (FLOAT + FLOAT + FLOAT) + 2 * residual
    if training.gradient_checkpointing:
        # The gradients of a layer come while its activations are there.
        backward = layer + 2 * residual + 2 * hidden * tokens * sizes.intermediate
        return sizes.layers * residual + max(head, backward)
    return sizes.layers * layer + head


def _layer_bytes(sizes: DecoderSizes, lora: Lora | None, compute: int, hidden: int) -> float:
    """Return the bytes that a decoder layer keeps for each token until its backward pass.

    Args:
        sizes: of the decoder.
        lora: the adapter; None trains all weights.
        compute: bytes of a number in a matrix product.
        hidden: bytes of a number in the feed-forward layer.
    """
    h, f, kv = sizes.hidden, sizes.intermediate, sizes.key_value
    attention = compute * (2 * h + 2 * kv)  # queries, keys, values, output
    if lora is None:
        # Two norms keep input and normalised input in float32. Each product keeps its input, with
        # autocast a copy for each of q, k, v and of gate, up.
        return 4 * FLOAT * h + attention + compute * 6 * h + compute * 4 * f
    # Frozen products keep nothing. An adapter keeps its input and the mask of its dropout (a byte);
    # the feed-forward layer keeps gate, its SiLU and up.
    shapes = sizes.linear_layers
    adapted = sum(shapes[name][0] for name in lora.target_modules)
    return 2 * FLOAT * h + attention + (compute + (lora.dropout > 0)) * adapted + hidden * 3 * f


def _refiner_plan(recipe: RefinerRecipe, gpus: int) -> MemoryPlan:
    weights = refiner_weights(recipe.network)
    training = recipe.training
    trained = FLOAT * weights
    return MemoryPlan(
        total=weights,
        trainable=weights,
        batch=_batch(training, gpus),
        tokens=None,
        copied=GpuMemory(
            weights=trained,
            gathered=2 * HALF * weights if training.bf16 else 0.0,
            gradients=trained * (2 if gpus > 1 else 1),
            optimiser=2 * trained + (trained if training.ema_decay else 0),
            activations=refiner_activation_bytes(recipe, _REFINER_ATOMS),
            loading=0.0,
        ),
        sharded=None,
    )


def refiner_activation_bytes(recipe: RefinerRecipe, atoms: int) -> float:
    """Return the peak of the activations of a refiner in training.

    Messages dominate: each of the n (n - 1) / 2 pairs of atoms of a crystal has two, and each keeps
    its input, the activation of its first layer and the input of the second.

    Args:
        recipe: of the refiner.
        atoms: number n of atoms of each crystal of the batch.

    Returns:
        Bytes.
    """
    network, training = recipe.network, recipe.training
    compute = HALF if training.bf16 else FLOAT
    pairs = training.batch_size * atoms * (atoms - 1) / 2
    features = pairs * (6 * network.num_frequencies + 20) * (FLOAT + compute)
    messages = pairs * 2 * 3 * compute * network.width  # of a layer; as much again for gradients
    kept = 1 if training.gradient_checkpointing else network.layers
    states = training.batch_size * atoms * network.layers * network.width * 10 * FLOAT
    return features + (kept + 1) * messages + states


def _batch(training: TrainingConfig, gpus: int) -> int:
    return training.batch_size * training.gradient_accumulation * gpus
