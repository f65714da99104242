"""Where models come from: the bundled pair, a folder, or a hub id."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

from flowllm.errors import UserError
from flowllm.hub.card import check_weights
from flowllm.system.files import sha256_file, sha256_folder

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)

_BUNDLED = Path(__file__).parent / "bundled"
BUNDLED_PRIOR = _BUNDLED / "prior"
BUNDLED_REFINER = _BUNDLED / "refiner"
_ADAPTER_FILE = "adapter_config.json"  # peft's


def resolve(name: str | Path | None, bundled: Path) -> Path:
    """The folder of a model: `bundled` for None, else a folder or a hub id.

    Raises:
        UserError: neither a folder here nor a model that the hub delivers, or weights that are not
            those of its model card.
    """
    folder = _find(name, bundled)
    check_weights(folder)
    return folder


def _find(name: str | Path | None, bundled: Path) -> Path:
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


def announce(role: str, folder: Path, found: Mapping[str, Any], module: torch.nn.Module) -> int:
    """Log which model a run uses: where from, its size, and a piece of its hash.

    Args:
        role: what it is used as.
        folder: its folder.
        found: its `identity`.
        module: its weights.

    Returns:
        The number of parameters.
    """
    parameters = sum(parameter.numel() for parameter in module.parameters())
    source = "bundled" if folder.parent == _BUNDLED else str(folder)
    logger.info(
        "%s: %s, %.1f M parameters, sha256 %s, on %s",
        role, source, parameters / 1e6, found["sha256"][:8], next(module.parameters()).device,
    )  # fmt: skip
    return parameters


def _identity_of_base(base: str) -> dict[str, Any]:
    path = Path(base)
    if path.is_dir():
        return identity(path)
    if path.is_file():
        return {"name": path.name, "sha256": sha256_file(path)}
    return {"name": base}
