"""The language model of crystals with its tokenizer and text format.

The base is a hub id, a local folder, a GGUF file, or an architecture with random weights. A saved
prior is a transformers (or peft) model folder plus `prior.json`, which records the text format and
the training.
"""

from __future__ import annotations

import functools
import json
import logging
import shutil
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from llm_prior.config import Architecture, BaseModel, TaskMix, check_seed
from llm_prior.errors import PriorError
from llm_prior.layouts import TextGrammar, TextLayout, layout_of
from llm_prior.llama import LlamaDecoder, decoder_of, stored_decoder
from llm_prior.prompts import stated_conditions
from llm_prior.settings import SETTINGS_FILE, SETTINGS_VERSION, read_settings
from llm_prior.stored_tokenizer import StoredTokenizer, stored_tokenizer
from llm_prior.text import TextFormat
from llm_prior.tokenizer import compact_tokenizer, embed_numbers

if TYPE_CHECKING:
    from transformers import LlamaConfig, PreTrainedTokenizerBase

logger = logging.getLogger(__name__)


@dataclass(kw_only=True)
class Prior:
    """A language model of crystals.

    Attributes:
        model: causal language model (a peft model if it carries an adapter).
        tokenizer: its fast tokenizer; the pad token differs from end-of-sequence.
        fmt: text format of its training.
        info: description of its training, stored as is. `info["conditions"]` names the conditions
            of its training data.
        source: folder or hub id from which it was loaded, or None.
        base: of an adapter: the quantisation of its base, and some numbers that identify the base.
    """

    model: torch.nn.Module
    tokenizer: PreTrainedTokenizerBase
    fmt: TextFormat
    info: dict[str, Any] = field(default_factory=dict)
    source: str | None = None
    base: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def build(cls, base: BaseModel, fmt: TextFormat, *, seed: int = 0) -> Prior:
        """Return a prior ready to be trained.

        Args:
            base: source of the initial weights.
            fmt: text format.
            seed: seed of random weights and of a new adapter.

        Raises:
            PriorError: if the base has no weights or no tokenizer, cannot be read, was trained with
                another text layout or precision, is an adapter, or does not fit `base.lora`, or if
                the seed is negative.
        """
        check_seed(seed)
        if base.architecture is not None:
            from transformers import LlamaForCausalLM

            from llm_prior.loading import input_embeddings

            tokenizer = compact_tokenizer(fmt)
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(_torch_seed(seed))
                llama = LlamaForCausalLM(_llama_config(base.architecture, tokenizer))
            embed_numbers(input_embeddings(llama).weight, tokenizer.get_vocab())
            return cls(model=llama, tokenizer=tokenizer, fmt=fmt)
        return cls._on_pretrained(base, fmt, seed)

    @classmethod
    def _on_pretrained(cls, base: BaseModel, fmt: TextFormat, seed: int) -> Prior:
        from llm_prior.loading import first_line, load_pretrained

        _check_base(str(base.name), fmt)
        loaded, tokenizer = load_pretrained(str(base.name), base.quantization)
        model: Any = loaded  # peft's functions take a PreTrainedModel and return peft models
        known: dict[str, Any] = {}
        if base.lora:
            known = {"quantization": base.quantization, "probe": _probe(model)}
        if base.quantization:
            from peft import prepare_model_for_kbit_training

            # Recomputing activations is a setting of the training.
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
            # peft takes the name from the model, which lacks the file name of a GGUF file, and a
            # relative path would depend on the working directory.
            place = Path(str(base.name))
            model.peft_config["default"].base_model_name_or_path = (
                str(place.resolve()) if place.exists() else base.name
            )
        return cls(model=model, tokenizer=tokenizer, fmt=fmt, source=base.name, base=known)

    def save_pretrained(self, folder: str | Path, *, dtype: torch.dtype | None = None) -> None:
        """Write weights (safetensors), config, tokenizer and settings to a folder.

        Args:
            folder: is created; an adapter is saved without its base.
            dtype: type in which the weights are stored, such as torch.bfloat16; None keeps theirs.
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
        model: Any = self.model
        model.save_pretrained(folder, state_dict=state, **options)
        self.tokenizer.save_pretrained(folder)
        settings = {"version": SETTINGS_VERSION, "text": self.fmt.to_dict(), "info": self.info}
        if adapter:
            settings["base"] = self.base
        (folder / SETTINGS_FILE).write_text(json.dumps(settings, indent=2) + "\n")
        for weights in folder.glob("*.safetensors"):  # are created readable by their owner alone
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
        """Load a prior from a folder or hub id that `save_pretrained` wrote.

        An adapter is put on its base with the quantisation of the training, because it has learnt
        to correct the quantised weights.

        Args:
            name: folder or hub id.
            device: device of the model.
            dtype: type of the weights that are not quantised.
            merge: add an adapter to the weights of its base, so that the model needs no base;
                quantised weights are converted to `dtype` first.

        Returns:
            The prior in evaluation mode.

        Raises:
            PriorError: if the folder or its weights are missing or damaged, if it has no
                `prior.json` (a language model that was not trained on crystals), if an adapter is
                on another base, or if `merge` is given without an adapter.
        """
        settings = read_settings(str(name))
        fmt = TextFormat(**settings["text"])
        base = settings.get("base", {})
        if merge and "base" not in settings:
            raise PriorError(
                f"{name} is a whole model; only an adapter can be merged, use it as it is"
            )
        info = settings.get("info", {})
        plain = "base" not in settings and dtype == torch.float32
        if plain and torch.device(device).type == "cpu" and Path(name).is_dir():
            decoder, words = stored_decoder(name), stored_tokenizer(name)
            if decoder is not None and words is not None and len(words) == len(decoder.embedding):
                return _StoredPrior(str(name), decoder, words, fmt, info)
        model, tokenizer = _load(str(name), base, dtype, merge)
        model.to(device)
        return cls(
            model=model,
            tokenizer=tokenizer,
            fmt=fmt,
            info=info,
            source=str(name),
            base={} if merge else base,
        )

    @functools.cached_property
    def layout(self) -> TextLayout:
        """Layout in which the model writes crystals."""
        return layout_of(self.fmt)

    @functools.cached_property
    def grammar(self) -> TextGrammar:
        """Grammar of this tokenizer and format.

        Raises:
            PriorError: if the tokenizer does not reproduce the text field by field, or the format
                has too many decimals.
        """
        return self.layout.grammar(self.words)

    @property
    def words(self) -> Any:
        """Tokenizer for sampling; see `llm_prior.stored_tokenizer.StoredTokenizer`."""
        return self.tokenizer

    @property
    def decoder(self) -> torch.nn.Module:
        """Model for sampling, with the weights as they are now; see `llm_prior.llama`."""
        return decoder_of(self.model)

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return next(self.model.parameters()).device

    @property
    def num_parameters(self) -> int:
        """Number of weights."""
        return sum(parameter.numel() for parameter in self.model.parameters())

    @property
    def context_length(self) -> int:
        """Longest sequence that the model takes, in tokens."""
        config: Any = self.model.config
        return int(config.max_position_embeddings)


class _StoredPrior(Prior):
    """A prior in a folder that sampling uses without transformers.

    `model` and `tokenizer` are loaded by transformers when they are first asked for.
    """

    def __init__(
        self,
        folder: str,
        decoder: LlamaDecoder,
        words: StoredTokenizer,
        fmt: TextFormat,
        info: dict[str, Any],
    ) -> None:
        self.fmt, self.info, self.source, self.base = fmt, info, folder, {}
        self._decoder, self._words = decoder, words

    def __getattr__(self, name: str) -> Any:
        """Load the model and its tokenizer when they are first asked for."""
        if name not in ("model", "tokenizer"):
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        self.model, self.tokenizer = _load(str(self.source), {}, torch.float32, False)
        return getattr(self, name)

    @property
    def words(self) -> StoredTokenizer:
        return self._words

    @property
    def decoder(self) -> torch.nn.Module:
        return decoder_of(self.model) if "model" in vars(self) else self._decoder

    @property
    def device(self) -> torch.device:
        return super().device if "model" in vars(self) else torch.device("cpu")

    @property
    def num_parameters(self) -> int:
        return self._decoder.num_parameters

    @property
    def context_length(self) -> int:
        return self._decoder.config.max_position_embeddings


def _load(
    name: str, base: Mapping[str, Any], dtype: torch.dtype, merge: bool
) -> tuple[torch.nn.Module, PreTrainedTokenizerBase]:
    """Return the model of a saved prior, in evaluation mode, and its tokenizer."""
    from llm_prior.loading import load_pretrained

    model, tokenizer = load_pretrained(name, base.get("quantization"), dtype, merge=merge)
    if "probe" in base:
        _check_probe(name, model, base["probe"])
    return model.eval(), tokenizer


def warn_of_untrained(
    prior: Prior, conditions: Mapping[str, Any] | Collection[str] = (), *, infill: bool = False
) -> None:
    """Log the parts of a prompt that the model was not trained with, if its training is recorded.

    Args:
        prior: the model.
        conditions: values by name, or names that the prompt states.
        infill: the prompt is one of infilling.

    Raises:
        PriorError: if a condition has a bad value.
    """
    names = stated_conditions(conditions) if isinstance(conditions, Mapping) else list(conditions)
    known = prior.info.get("conditions")
    unknown = [name for name in names if known is not None and name not in known]
    if tasks := prior.info.get("recipe", {}).get("tasks"):
        mix = TaskMix(**tasks)
        if infill and not mix.infill:
            unknown.append("infilling")
        if not (infill or names or mix.has_unconditional):
            unknown.append("a prompt without conditions")
    if unknown:
        logger.warning(
            "this model was never trained with %s and will not know what it means",
            " and ".join(unknown),
        )


def _check_base(name: str, fmt: TextFormat) -> None:
    """Raise `PriorError` if a model cannot be the base for texts of this format."""
    folder = Path(name)
    if (folder / "adapter_config.json").is_file():
        raise PriorError(f"{name} is an adapter; merge it into its base first (train-llm --merge)")
    if not (folder / SETTINGS_FILE).is_file():
        return
    trained = TextFormat(**read_settings(name)["text"]).to_dict()
    for key, value in fmt.to_dict().items():
        if key not in ("max_atoms", "symprec") and trained.get(key) != value:
            raise PriorError(
                f"{name} was trained with text.{key}={trained.get(key)}, the recipe has {value}; "
                f"set text.{key}={trained.get(key)}"
            )


def _probe(model: torch.nn.Module) -> list[float]:
    """Return eight numbers of the input embeddings, which are never quantised nor adapted, so they
    tell bases apart."""
    from llm_prior.loading import input_embeddings

    weight = input_embeddings(model).weight.detach()
    rows = torch.arange(8) * 29 + 5  # no special tokens
    return [float(weight[row % len(weight), k]) for k, row in enumerate(rows)]


def _check_probe(name: str, model: torch.nn.Module, expected: list[float]) -> None:
    found = _probe(model)
    scale = max(map(abs, expected))
    # bfloat16 rounds by up to 0.4%.
    if any(abs(a - b) > 0.01 * scale for a, b in zip(found, expected, strict=True)):
        raise PriorError(
            f"{name} is an adapter for another base than base_model_name_or_path in its "
            "adapter_config.json; put back the weights of its training"
        )


def _torch_seed(seed: int) -> int:
    """Return a seed of any size as the 32 bits that torch's generator on a CPU uses."""
    return int(np.random.SeedSequence(seed).generate_state(1)[0])


def _llama_config(architecture: Architecture, tokenizer: PreTrainedTokenizerBase) -> LlamaConfig:
    from transformers import LlamaConfig

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
