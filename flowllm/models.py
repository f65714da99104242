"""Where models come from: the bundled pair, a folder, or a hub id."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

from flowllm.errors import UserError
from flowllm.files import sha256_file, sha256_folder

_BUNDLED = Path(__file__).parent / "bundled"
BUNDLED_PRIOR = _BUNDLED / "prior"
BUNDLED_REFINER = _BUNDLED / "refiner"
_ADAPTER_FILE = "adapter_config.json"  # peft's


def resolve(name: str | Path | None, bundled: Path) -> Path:
    """The folder of a model: `bundled` for None, else a folder or a hub id.

    Raises:
        UserError: neither a folder here nor a model that the hub delivers.
    """
    if name is None:
        return bundled
    path = Path(name).expanduser()
    if path.is_dir():
        return path
    if path.exists():
        raise UserError(f"{path} is a file; give the folder of a model")
    if path.is_absolute() or str(name).startswith((".", "~")) or str(name).count("/") != 1:
        raise UserError(f"there is no model folder {name}; give a folder or a hub id")
    try:
        return Path(snapshot_download(str(name)))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise UserError(
            f"{name} is neither a folder here nor a model on a hub that can be reached"
        ) from error


def identity(folder: Path) -> dict[str, Any]:
    """Name and content hash of a model folder, for manifests.

    A LoRA adapter is nothing without its base, so that is named as well, as `base`: with its hash
    where it is a folder or a GGUF file here, by its name alone where it is a hub id.

    Raises:
        UserError: the folder is not there or empty, or its adapter_config.json is damaged.
    """
    found: dict[str, Any] = {"name": folder.name, "sha256": sha256_folder(folder)}
    adapter = folder / _ADAPTER_FILE
    if adapter.is_file():
        try:
            base = json.loads(adapter.read_text(encoding="utf-8"))["base_model_name_or_path"]
        except (ValueError, LookupError, TypeError) as error:
            raise UserError(f"{adapter} names no base model; copy or train it again") from error
        found["base"] = _identity_of_base(str(base))
    return found


def _identity_of_base(base: str) -> dict[str, Any]:
    path = Path(base)
    if path.is_dir():
        return identity(path)
    if path.is_file():
        return {"name": path.name, "sha256": sha256_file(path)}
    return {"name": base}
