"""Models by name: the bundled pair, a folder, or a hub id."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flowllm.errors import UserError
from flowllm.hub.card import check_weights
from flowllm.system.documents import parse_json
from flowllm.system.files import sha256_file, sha256_folder

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)

_BUNDLED = Path(__file__).parent / "bundled"
BUNDLED_PRIOR = _BUNDLED / "prior"
BUNDLED_REFINER = _BUNDLED / "refiner"
_ADAPTER_FILE = "adapter_config.json"  # peft's


def resolve(name: str | Path | None, bundled: Path) -> Path:
    """Return the folder of a model, downloaded first if the name is a hub id.

    Args:
        name: a folder of a model or of a finished training, or a hub id such as `owner/model`;
            None for the bundled model.
        bundled: folder of the bundled model.

    Returns:
        The folder.

    Raises:
        UserError: if there is no such folder, the hub has no such model or cannot be reached, or
            the weights differ from the model card.
    """
    folder = _find(name, bundled)
    check_weights(folder)
    return folder


def _find(name: str | Path | None, bundled: Path) -> Path:
    if name is None:
        return bundled
    path = Path(name).expanduser()
    if (path / "run.json").is_file():  # a run folder of a training
        if not (path / "model").is_dir():
            raise UserError(f"{path}: the training is not finished; resume it (--resume)")
        return path / "model"
    if path.is_dir():
        return path
    if path.exists():
        raise UserError(f"{path} is a file; give the folder of a model")
    if path.is_absolute() or str(name).startswith((".", "~")) or str(name).count("/") != 1:
        raise UserError(f"there is no model folder {name}; give a folder or a hub id")
    return _download(str(name))


def _download(hub_id: str) -> Path:
    # Slow to import, and models on this disk do not need it.
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(hub_id))
    except HFValidationError as error:
        raise UserError(
            f"{hub_id!r} is neither a folder here nor a valid hub id (OWNER/NAME); check the name"
        ) from error
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise UserError(
            f"{hub_id} is neither a folder here nor a model on a hub that can be reached; check "
            "the name and the connection"
        ) from error


def identity(folder: Path) -> dict[str, Any]:
    """Return name and content hash of a model folder, for manifests.

    Args:
        folder: of the model.

    Returns:
        `name` and `sha256`. A LoRA adapter also has its base model as `base`: with a hash if it is
        a folder or a GGUF file on this disk, by its name alone if it is a hub id.

    Raises:
        UserError: if the folder does not exist or is empty, or its adapter_config.json is damaged.
    """
    found: dict[str, Any] = {"name": folder.name, "sha256": sha256_folder(folder)}
    adapter = folder / _ADAPTER_FILE
    if adapter.is_file():
        try:
            base = parse_json(adapter.read_bytes())["base_model_name_or_path"]
        except (ValueError, LookupError, TypeError) as error:
            raise UserError(f"{adapter} names no base model; copy or train it again") from error
        found["base"] = _identity_of_base(str(base))
    return found


def announce(role: str, folder: Path, found: Mapping[str, Any], module: torch.nn.Module) -> int:
    """Log the model that a run uses: its source, size and hash.

    Args:
        role: `prior` or `refiner`.
        folder: of the model.
        found: `identity` of the model.
        module: the loaded model.

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
