"""A small LLaMA decoder for sampling on a CPU (Touvron et al. 2023, arXiv 2302.13971).

It computes what transformers' `LlamaForCausalLM` computes, in fewer and larger operations and
without transformers, whose import takes three seconds. Models of another kind, with adapters or
quantised weights, on accelerators or wider than `MAX_WIDTH` are run by transformers.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.functional import linear, rms_norm, scaled_dot_product_attention, silu

if TYPE_CHECKING:
    from llm_prior.cache import SlotCache, SlotLayer

MAX_WIDTH = 1024  # above, the matrix products take nearly all the time, and copies much memory
_NAMES = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj",
          "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj", "input_layernorm",
          "post_attention_layernorm")  # fmt: skip


@dataclass(frozen=True)
class LlamaSizes:
    """What is needed of a config.json; see `transformers.LlamaConfig`."""

    hidden_size: int
    intermediate_size: int
    head_dim: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    max_position_embeddings: int
    rms_norm_eps: float
    rope_theta: float

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> LlamaSizes | None:
        """Return the sizes, or None for a model that `LlamaDecoder` does not compute.

        Args:
            config: content of a config.json.
        """
        rope = config.get("rope_parameters") or {}
        plain = (
            config.get("model_type") == "llama"
            and rope.get("rope_type") == "default"
            and config.get("hidden_act") == "silu"
            and not config.get("attention_bias")
            and not config.get("mlp_bias")
            and not config.get("quantization_config")
            and not any("attn_implementation" in key for key in config)  # transformers checks it
            and config.get("hidden_size", MAX_WIDTH + 1) <= MAX_WIDTH
        )
        if not plain:
            return None
        values = {**config, "rope_theta": rope.get("rope_theta")}
        sizes: dict[str, Any] = {name: values.get(name) for name in cls.__dataclass_fields__}
        if any(size is None for size in sizes.values()):
            return None
        return cls(**sizes)


class Output(NamedTuple):
    """The answer of a forward pass.

    Attributes:
        logits: (B, 1, V) of the token after the last one of each row.
    """

    logits: Tensor


class LlamaDecoder(nn.Module):
    """Logits of the next token of rows of different lengths.

    Args:
        sizes: of the model.
        weights: by transformers' names; float32.

    Raises:
        KeyError: if a weight is missing.
        RuntimeError: if a weight has another shape.
    """

    def __init__(self, sizes: LlamaSizes, weights: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.config = sizes
        self.embedding = weights["model.embed_tokens.weight"]  # (V, W)
        self.head = weights.get("lm_head.weight", self.embedding)  # (V, W)
        self.norm = weights["model.norm.weight"]  # (W,)
        self.layers = [
            _Layer.of(sizes, *(weights[f"model.layers.{k}.{name}.weight"] for name in _NAMES))
            for k in range(sizes.num_hidden_layers)
        ]
        steps = torch.arange(0, sizes.head_dim, 2, dtype=torch.float32) / sizes.head_dim
        places = torch.arange(sizes.max_position_embeddings, dtype=torch.float32)
        phases = torch.outer(places, sizes.rope_theta**-steps).repeat(1, 2)  # (M, head size)
        self.cosines, self.sines = phases.cos(), phases.sin()
        # The head counts as no parameter of its own where it is the embedding.
        self.num_parameters = sum(weight.numel() for weight in weights.values())

    def forward(
        self,
        *,
        input_ids: Tensor,
        cache: SlotCache,
        attention_mask: Tensor,
        position_ids: Tensor,
        logits_to_keep: int | Tensor = 1,
        use_cache: bool = True,
    ) -> Output:
        """Return logits, with the arguments of transformers' models.

        Args:
            input_ids: (B, T) token ids.
            cache: gets the keys and values.
            attention_mask: (B, 1, T, width) that is added to the products of queries and keys.
            position_ids: (B, T) places of the tokens in their rows.
            logits_to_keep: 1 for those after the last token, or (B, 1) place of the token after
                which they are asked for.
            use_cache: always.
        """
        batch, length = input_ids.shape
        x = self.embedding[input_ids]  # (B, T, W)
        cosines = self.cosines[position_ids].unsqueeze(2)  # (B, T, 1, head size)
        sines = self.sines[position_ids].unsqueeze(2)
        for layer, states in zip(self.layers, cache.layers, strict=True):
            x = layer.forward(x, cosines, sines, attention_mask, states, self.config)
        if isinstance(logits_to_keep, Tensor):
            x = x.gather(1, logits_to_keep.unsqueeze(-1).expand(-1, -1, x.shape[-1]))
        else:
            x = x[:, length - 1 :]
        x = rms_norm(x, (x.shape[-1],), self.norm, self.config.rms_norm_eps)
        return Output(linear(x, self.head))


class _Layer(NamedTuple):
    """Weights of one layer; those that act on the same numbers are one matrix."""

    attention_norm: Tensor
    queries_keys_values: Tensor
    mix: Tensor
    mlp_norm: Tensor
    gate_up: Tensor
    down: Tensor

    @classmethod
    def of(cls, sizes: LlamaSizes, *weights: Tensor) -> _Layer:
        """Return the layer from weights in the order of `_NAMES`."""
        q, k, v, out, gate, up, down, first, second = weights
        width, heads = sizes.hidden_size, sizes.head_dim * sizes.num_attention_heads
        pairs = sizes.head_dim * sizes.num_key_value_heads
        hidden = sizes.intermediate_size
        shapes = [
            *((heads, width), (pairs, width), (pairs, width), (width, heads)),
            *((hidden, width), (hidden, width), (width, hidden), (width,), (width,)),
        ]
        if [tuple(weight.shape) for weight in weights] != shapes:
            raise RuntimeError("a weight has another shape than the config says")
        return cls(first, torch.cat([q, k, v]), out, second, torch.cat([gate, up]), down)

    def forward(
        self,
        x: Tensor,
        cosines: Tensor,
        sines: Tensor,
        mask: Tensor,
        states: SlotLayer,
        sizes: LlamaSizes,
    ) -> Tensor:
        """Return the next states (B, T, W)."""
        batch, length, width = x.shape
        queries, pairs = sizes.num_attention_heads, sizes.num_key_value_heads
        h = linear(rms_norm(x, (width,), self.attention_norm, sizes.rms_norm_eps),
                   self.queries_keys_values)  # fmt: skip
        h = h.view(batch, length, queries + 2 * pairs, sizes.head_dim)
        turning, values = h[:, :, : queries + pairs], h[:, :, queries + pairs :]
        first, second = turning.chunk(2, dim=-1)
        turned = turning * cosines + torch.cat([-second, first], dim=-1) * sines
        keys, values = states.update(
            turned[:, :, queries:].transpose(1, 2), values.transpose(1, 2)
        )  # (B, heads, width of the mask, head size)
        seen = scaled_dot_product_attention(
            turned[:, :, :queries].transpose(1, 2),
            keys,
            values,
            attn_mask=mask,
            enable_gqa=queries != pairs,
        )
        x = x + linear(seen.transpose(1, 2).reshape(batch, length, -1), self.mix)
        gate, up = linear(
            rms_norm(x, (width,), self.mlp_norm, sizes.rms_norm_eps), self.gate_up
        ).chunk(2, dim=-1)
        return x + linear(silu(gate) * up, self.down)


def stored_decoder(folder: str | Path) -> LlamaDecoder | None:
    """Return the decoder of a saved model, or None if it is none that `LlamaDecoder` computes, or
    its files are damaged.

    Args:
        folder: with config.json and model.safetensors.
    """
    folder = Path(folder)
    if (folder / "adapter_config.json").exists():
        return None
    try:
        config = json.loads((folder / "config.json").read_bytes())
        if not isinstance(config, dict) or (sizes := LlamaSizes.of(config)) is None:
            return None
        weights = {name: w.float() for name, w in load_file(folder / "model.safetensors").items()}
        shape = config["vocab_size"], sizes.hidden_size
        if tuple(weights["model.embed_tokens.weight"].shape) != shape:
            return None
        if (
            not config.get("tie_word_embeddings")
            and tuple(weights["lm_head.weight"].shape) != shape
        ):
            return None
        return LlamaDecoder(sizes, weights)
    except (OSError, ValueError, LookupError, TypeError, RuntimeError, SafetensorError):
        return None


def decoder_of(model: nn.Module) -> nn.Module:
    """Return a decoder with the weights of a model as they are now, or the model itself.

    Args:
        model: transformers model, or a peft model around one.
    """
    if type(model).__module__ != "transformers.models.llama.modeling_llama":
        return model
    weights = model.state_dict()
    if any(w.dtype != torch.float32 or w.device.type != "cpu" for w in weights.values()):
        return model
    config: Any = model.config
    sizes = LlamaSizes.of(config.to_dict())
    return model if sizes is None else LlamaDecoder(sizes, weights)
