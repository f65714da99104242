"""Where models come from: the bundled pair, a folder, or a hub id."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

from flowllm.errors import UserError
from flowllm.files import sha256_folder

_BUNDLED = Path(__file__).parent / "bundled"
BUNDLED_PRIOR = _BUNDLED / "prior"
BUNDLED_REFINER = _BUNDLED / "refiner"


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


def identity(folder: Path) -> dict[str, str]:
    """Name and content hash of a model folder, for manifests."""
    return {"name": folder.name, "sha256": sha256_folder(folder)}
