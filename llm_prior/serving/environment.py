"""The environment of vLLM: which Python it is, and whether it can serve a prior."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

from llm_prior.errors import PriorError
from llm_prior.settings import PACKAGE, read_settings

PYTHON = "FLOWLLM_VLLM_PYTHON"
OPTIONS = "FLOWLLM_VLLM_OPTIONS"

_MODULES = ("vllm", "torch", "transformers", "numpy", "pymatgen", "spglib", "moyopy")
_QUANTIZATION_MODULES = ("vllm_bnb_plugin", "bitsandbytes")
_FIND = """\
import importlib.util, json, sys
print(json.dumps([name for name in sys.argv[1:] if importlib.util.find_spec(name) is None]))
"""
_ANSWER_LIMIT = 60  # seconds


def check_served(folder: str | Path) -> None:
    """Check that there is an environment of vLLM that can serve a prior; nothing is loaded.

    Args:
        folder: of the prior.

    Raises:
        PriorError: if the environment is missing or incomplete, or its options are no JSON object,
            or vLLM has no such quantisation or no such base.
    """
    options()
    check_python(modules=_QUANTIZATION_MODULES if _is_quantized(Path(folder)) else ())


def check_python(modules: tuple[str, ...] = ()) -> Path:
    """Return the Python of the environment of vLLM after a look at its packages.

    Args:
        modules: that it needs besides those of every prior.

    Raises:
        PriorError: if there is none, it does not run, or a package is missing.
    """
    named = os.environ.get(PYTHON)
    if not named:
        raise PriorError(
            "engine vllm needs an environment with vLLM; make one (tools/check_vllm.sh FOLDER) "
            f"and set {PYTHON} to its Python"
        )
    python = Path(os.path.abspath(shutil.which(named) or named))
    try:
        answer = subprocess.run(
            [python, "-c", _FIND, *_MODULES, *modules],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_ANSWER_LIMIT,
            check=True,
            env=variables(),
        )
        missing = json.loads(answer.stdout)
    except (OSError, subprocess.SubprocessError, ValueError) as error:
        raise PriorError(
            f"{PYTHON} is {named}, which does not run as Python; correct it"
        ) from error
    if missing:
        raise PriorError(
            f"{PYTHON} is {named}, which has no {', '.join(missing)}; install "
            f"{'it' if len(missing) == 1 else 'them'} there (tools/check_vllm.sh FOLDER)"
        )
    return python


def variables() -> dict[str, str]:
    """Return the environment variables of a process of vLLM's Python: not this Python's paths."""
    ours = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")
    return {name: value for name, value in os.environ.items() if name not in ours}


def options() -> dict[str, Any]:
    """Return the user's arguments of `vllm.LLM`, the JSON object in `FLOWLLM_VLLM_OPTIONS`.

    Raises:
        PriorError: if it is no JSON object.
    """
    text = os.environ.get(OPTIONS) or "{}"
    try:
        found = json.loads(text)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise PriorError(
            f'{OPTIONS} is {text!r}; give arguments of vllm.LLM as JSON: {{"max_num_seqs": 64}}'
        )
    return found


def base_of(folder: Path) -> str | None:
    """Return the base of an adapter, or None for a whole model.

    Args:
        folder: of the prior.

    Raises:
        PriorError: if the adapter names none.
    """
    file = folder / "adapter_config.json"
    if not file.is_file():
        return None
    return str(_adapter(file, "base_model_name_or_path"))


def rank_of(folder: Path) -> int:
    """Return the rank of an adapter.

    Args:
        folder: of the adapter.

    Raises:
        PriorError: if it names none.
    """
    return int(_adapter(folder / "adapter_config.json", "r"))


def _adapter(file: Path, key: str) -> Any:
    try:
        value = json.loads(file.read_bytes())[key]
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise PriorError(f"{file} has no {key}; copy or train the adapter again") from error
    if not value:
        raise PriorError(f"{file} names no {key}; add it")
    return value


def _is_quantized(folder: Path) -> bool:
    """Return whether the base is quantised when it is loaded; refuse what vLLM does not load."""
    quantization = read_settings(str(folder)).get("base", {}).get("quantization")
    advice = "take the engine plain, or merge the adapter into its base (train-llm --merge)"
    if quantization not in (None, "4bit"):
        raise PriorError(f"vLLM does not quantise to {quantization} when it loads a base; {advice}")
    base = base_of(folder)
    if base is not None and (base.startswith(PACKAGE) or base.endswith(".gguf")):
        raise PriorError(f"vLLM does not read the GGUF file {base}; {advice}")
    return quantization is not None
