"""The language model: a base, its tokenizer, an optional LoRA adapter, and the text it speaks.

One path for every base: a hub id, a local folder, a GGUF file, or an architecture that starts
from random weights. A saved prior is a transformers (or peft) model folder plus `prior.json`,
which records the text format and what the model was trained with.
"""

from __future__ import annotations

import json
import logging
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from peft import LoraConfig, PeftModel, get_peft_model, prepare_model_for_kbit_training
from safetensors import SafetensorError
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from llm_prior.errors import PriorError
from llm_prior.text import TextFormat
from llm_prior.tokenizer import compact_tokenizer

log = logging.getLogger(__name__)

SETTINGS_FILE = "prior.json"
SETTINGS_VERSION = 1
PAD_TOKEN = "<pad>"


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """A LLaMA decoder that starts from random weights (transformers `LlamaConfig` names)."""

    hidden_size: int = 256
    intermediate_size: int = 704
    num_hidden_layers: int = 8
    num_attention_heads: int = 8
    max_position_embeddings: int = 512
    rope_theta: float = 10000.0


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
        name: hub id, local folder, or GGUF file of a pretrained causal language model.
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
        info: what it was trained with and on, for people; stored as is.
        source: folder or hub id it was loaded from, or None.
    """

    model: torch.nn.Module
    tokenizer: PreTrainedTokenizerBase
    fmt: TextFormat
    info: dict[str, Any] = field(default_factory=dict)
    source: str | None = None

    @classmethod
    def build(cls, base: BaseModel, fmt: TextFormat, *, seed: int = 0) -> Prior:
        """A prior ready to be trained.

        Raises:
            PriorError: the base has no weights or no tokenizer, or cannot be read.
        """
        if base.architecture is not None:
            tokenizer = compact_tokenizer(fmt)
            with torch.random.fork_rng():
                torch.manual_seed(seed)
                model: torch.nn.Module = LlamaForCausalLM(
                    _llama_config(base.architecture, tokenizer)
                )
            return cls(model=model, tokenizer=tokenizer, fmt=fmt)

        model, tokenizer = _load_pretrained(str(base.name), base.quantization)
        if base.quantization:
            model = prepare_model_for_kbit_training(model)
        if base.lora:
            lora = base.lora
            with torch.random.fork_rng():
                torch.manual_seed(seed)
                model = get_peft_model(
                    model,
                    LoraConfig(
                        task_type="CAUSAL_LM",
                        r=lora.r,
                        lora_alpha=lora.alpha,
                        lora_dropout=lora.dropout,
                        target_modules=lora.target_modules,
                    ),
                )
        return cls(model=model, tokenizer=tokenizer, fmt=fmt, source=base.name)

    def save_pretrained(self, folder: str | Path, *, dtype: torch.dtype | None = None) -> None:
        """Write weights (safetensors), config, tokenizer and settings to a folder.

        Args:
            folder: is created; an adapter saves alone, without its base.
            dtype: store the weights in this type (for instance torch.bfloat16); default as is.
        """
        folder = Path(folder)
        state = self.model.state_dict() if dtype is not None else None
        if state is not None:
            state = {k: v.to(dtype) if v.is_floating_point() else v for k, v in state.items()}
        self.model.save_pretrained(folder, state_dict=state)
        self.tokenizer.save_pretrained(folder)
        settings = {"version": SETTINGS_VERSION, "text": asdict(self.fmt), "info": self.info}
        (folder / SETTINGS_FILE).write_text(json.dumps(settings, indent=2) + "\n")

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path,
        *,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> Prior:
        """Load a prior that `save_pretrained` wrote, from a folder or a hub id.

        Raises:
            PriorError: no such folder, no weights, damaged weights, or no `prior.json` (a plain
                language model that was never trained on crystals).
        """
        settings = _read_settings(str(name))
        fmt = TextFormat(**settings["text"])
        model, tokenizer = _load_pretrained(str(name), None, dtype)
        model.to(device)
        model.eval()
        return cls(
            model=model,
            tokenizer=tokenizer,
            fmt=fmt,
            info=settings.get("info", {}),
            source=str(name),
        )

    @property
    def device(self) -> torch.device:
        """Where the weights lie."""
        return next(self.model.parameters()).device

    @property
    def context_length(self) -> int:
        """Longest sequence, in tokens, that the model takes."""
        return int(self.model.config.max_position_embeddings)


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


def _load_pretrained(
    name: str, quantization: str | None, dtype: torch.dtype = torch.float32
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    options: dict[str, Any] = {"dtype": dtype}
    if quantization == "4bit":
        options["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.bfloat16,
        )
    elif quantization == "8bit":
        options["quantization_config"] = BitsAndBytesConfig(load_in_8bit=True)

    path = Path(name)
    if path.suffix == ".gguf" and path.is_file():
        folder, options["gguf_file"] = str(path.parent), path.name
        tokenizer_options = {"gguf_file": path.name}
    else:
        folder, tokenizer_options = name, {}
    adapter = path / "adapter_config.json"
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, **tokenizer_options)
        if adapter.is_file():
            base = json.loads(adapter.read_text())["base_model_name_or_path"]
            model, _ = _load_pretrained(base, quantization, dtype)
            model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
            model = PeftModel.from_pretrained(model, folder)
        else:
            model = AutoModelForCausalLM.from_pretrained(folder, **options)
    except SafetensorError as error:
        raise PriorError(
            f"the weights in {name} are damaged ({error}); copy or train them again"
        ) from error
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise PriorError(
            f"cannot load a language model from {name}: {reason}; give a model folder or hub id"
        ) from error
    if not tokenizer.is_fast:
        raise PriorError(f"{name} has no fast tokenizer; add its tokenizer.json")
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id == tokenizer.eos_token_id:
        tokenizer.add_special_tokens({"pad_token": PAD_TOKEN})
        if len(tokenizer) > model.get_input_embeddings().num_embeddings:
            model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    model.config.pad_token_id = tokenizer.pad_token_id
    tokenizer.padding_side = "left"
    return model, tokenizer


def _read_settings(name: str) -> dict[str, Any]:
    path = Path(name)
    if path.is_dir():
        file = path / SETTINGS_FILE
    elif path.exists() or name.startswith((".", "/", "~")):
        raise PriorError(f"{name} is not a model folder; give a folder that train-llm wrote")
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
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise PriorError(f"{file} is damaged ({error}); copy or train the model again") from error
    return settings
