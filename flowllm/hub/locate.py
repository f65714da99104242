"""Models by name: a bundled model, a folder, or a hub id."""

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
    from llm_prior import Prior
    from rfm import Refiner

logger = logging.getLogger(__name__)

PRIOR, REFINER = "prior", "refiner"  # subfolders of a pair
ADAPTER_FILE = "adapter_config.json"  # peft's
# The files that a model may need; nothing else is downloaded or uploaded.
MODEL_FILES = ("*.safetensors", "*.json", "*.txt", "*.model", "*.jinja", "README.md")
_PREFIX = "bundled:"
_DEFAULT_PAIR = "wyckoff"
_BUNDLED = Path(__file__).parent / "bundled"  # PAIR/prior and PAIR/refiner
BUNDLED_PRIOR = _BUNDLED / _DEFAULT_PAIR / PRIOR
BUNDLED_REFINER = _BUNDLED / _DEFAULT_PAIR / REFINER


def resolve(name: str | Path | None, bundled: Path) -> Path:
    """Return the folder of a model, downloaded first if the name is a hub id.

    Args:
        name: a folder of a model, of a finished training or of a pair (`prior/` and `refiner/`), a
            hub id of a model or a pair such as `owner/model`, or `bundled:PAIR` for the model of a
            bundled pair; None for the model of the default pair.
        bundled: folder of the model of the default pair, `BUNDLED_PRIOR` or `BUNDLED_REFINER`.

    Returns:
        The folder.

    Raises:
        UserError: if there is no such folder or pair, the pair lacks this model, the hub has no
            such model or cannot be reached, or the weights differ from the model card.
    """
    if name is None:
        check_weights(bundled)
        return bundled
    place = _find(name)
    if not is_pair(place):
        check_weights(place)
        return place
    folder = place / bundled.name
    if not folder.is_dir():
        other = REFINER if bundled.name == PRIOR else PRIOR
        raise UserError(
            f"{name} holds no {bundled.name}; give another folder (--{bundled.name}), and this one "
            f"for its {other} (--{other})"
        )
    check_weights(place)
    check_weights(folder)
    return folder


def resolve_pair(prior: str | Path | None, refiner: str | Path | None) -> tuple[Path, Path]:
    """Return the folders of a prior and a refiner; see `resolve`.

    Args:
        prior: name of a prior or a pair.
        refiner: name of a refiner; None: that of the pair that `prior` names, if it has one, else
            the bundled one.

    Returns:
        Folder of the prior, folder of the refiner.

    Raises:
        UserError: see `resolve`.
    """
    if refiner is None and prior is not None:
        place = _find(prior)
        if is_pair(place):
            prior = place
            refiner = place if (place / REFINER).is_dir() else None
    return resolve(prior, BUNDLED_PRIOR), resolve(refiner, BUNDLED_REFINER)


def is_pair(folder: Path) -> bool:
    """Return whether a folder holds models in `prior/` or `refiner/`, and none itself.

    Args:
        folder: any.
    """
    if any((folder / name).is_file() for name in ("config.json", ADAPTER_FILE)):
        return False
    return any((folder / role).is_dir() for role in (PRIOR, REFINER))


def bundled_pairs() -> dict[str, Path]:
    """Return the folder of each bundled pair by name; it holds `prior/` and `refiner/`."""
    return {folder.name: folder for folder in sorted(_BUNDLED.iterdir()) if folder.is_dir()}


def local_folder(name: str | Path) -> Path:
    """Return the folder of a model on this machine.

    Args:
        name: folder of a model, of a pair or of a finished training.

    Returns:
        The folder.

    Raises:
        UserError: if there is no such folder, or the training is not finished.
    """
    path = Path(name).expanduser()
    if (path / "run.json").is_file():  # a run folder of a training
        if not (path / "model").is_dir():
            raise UserError(f"{path}: the training is not finished; resume it (--resume)")
        return path / "model"
    if path.is_dir():
        return path
    if path.exists():
        raise UserError(f"{path} is a file; give the folder of a model")
    raise UserError(f"there is no model folder {name}; give a folder or a hub id")


def _find(name: str | Path) -> Path:
    """Return the folder of a model or pair."""
    if str(name).startswith(_PREFIX):
        pairs = bundled_pairs()
        pair = str(name).removeprefix(_PREFIX)
        if pair not in pairs:
            raise UserError(f"there is no bundled pair {pair!r}; choose {' or '.join(pairs)}")
        return pairs[pair]
    path = Path(name).expanduser()
    here = path.is_absolute() or str(name).startswith((".", "~")) or str(name).count("/") != 1
    if path.exists() or here:
        return local_folder(name)
    return _download(str(name))


def _download(hub_id: str) -> Path:
    # Slow to import, and models on this disk do not need it.
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(hub_id, allow_patterns=list(MODEL_FILES)))
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
    adapter = folder / ADAPTER_FILE
    if adapter.is_file():
        try:
            base = parse_json(adapter.read_bytes())["base_model_name_or_path"]
        except (ValueError, LookupError, TypeError) as error:
            raise UserError(f"{adapter} names no base model; copy or train it again") from error
        found["base"] = _identity_of_base(str(base))
    return found


def announce(role: str, folder: Path, found: Mapping[str, Any], model: Prior | Refiner) -> int:
    """Log the model that a run uses: its source, size and hash.

    Args:
        role: `prior` or `refiner`.
        folder: of the model.
        found: `identity` of the model.
        model: the loaded model.

    Returns:
        The number of parameters.
    """
    is_bundled = folder.parent.parent == _BUNDLED
    device = model.device
    place = "vLLM" if device.type == "meta" else device  # its weights are in another process
    source = f"{_PREFIX}{folder.parent.name}" if is_bundled else str(folder)
    logger.info(
        "%s: %s, %.1f M parameters, sha256 %s, on %s",
        role, source, model.num_parameters / 1e6, found["sha256"][:8], place,
    )  # fmt: skip
    return model.num_parameters


def _identity_of_base(base: str) -> dict[str, Any]:
    path = Path(base)
    if path.is_dir():
        return identity(path)
    if path.is_file():
        return {"name": path.name, "sha256": sha256_file(path)}
    return {"name": base}
