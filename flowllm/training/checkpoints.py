"""Complete checkpoints: folders with a COMPLETE marker that holds the hash of every file.

The marker is written last and atomically. A folder without a marker was cut off and is ignored. A
folder with a marker and files of other hashes is damaged and is refused by the name of the file.
"""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

from flowllm.errors import UserError
from flowllm.system.documents import parse_json
from flowllm.system.files import sha256_file, write_atomic

MARKER = "COMPLETE"
_NAME = re.compile(r"checkpoint-(\d+)")


def mark_complete(checkpoint: Path) -> None:
    """Write the marker with the SHA-256 of every file in a checkpoint.

    Args:
        checkpoint: folder whose other files are all written.
    """
    hashes = {
        str(path.relative_to(checkpoint)): sha256_file(path)
        for path in sorted(checkpoint.rglob("*"))
        if path.is_file() and path.name != MARKER
    }
    write_atomic(checkpoint / MARKER, json.dumps(hashes, indent=1) + "\n")


def verify_checkpoint(checkpoint: Path) -> None:
    """Check every file of a complete checkpoint against its hash in the marker.

    Args:
        checkpoint: folder with a marker.

    Raises:
        UserError: if the marker is damaged, or if a file is missing or has another hash.
    """
    remedy = f"delete {checkpoint} to resume from an earlier one"
    try:
        hashes = dict(parse_json((checkpoint / MARKER).read_bytes()))
    except (ValueError, TypeError) as error:
        raise UserError(f"{checkpoint / MARKER} is damaged; {remedy}") from error
    for name, expected in hashes.items():
        path = checkpoint / name
        if not path.is_file() or sha256_file(path) != expected:
            raise UserError(f"{path} is missing or damaged; {remedy}")


def complete_checkpoints(folder: Path) -> list[Path]:
    """Return the complete checkpoints of a run.

    Args:
        folder: the run folder.

    Returns:
        Folders of checkpoints by ascending step.
    """
    return [path for path in _checkpoints(folder) if (path / MARKER).is_file()]


def newest_complete(folder: Path) -> Path | None:
    """Return the complete checkpoint of the highest step of a run.

    Args:
        folder: the run folder.

    Returns:
        The folder of the checkpoint; None if there is none.
    """
    found = complete_checkpoints(folder)
    return found[-1] if found else None


def remove_incomplete(folder: Path) -> None:
    """Delete the checkpoints of a run that were cut off while they were written.

    Args:
        folder: the run folder.
    """
    for path in _checkpoints(folder):
        if not (path / MARKER).is_file():
            shutil.rmtree(path)


def _checkpoints(folder: Path) -> list[Path]:
    """Return the folders named `checkpoint-STEP` by ascending step; other names are not ours."""
    steps = {
        int(match[1]): path
        for path in folder.glob("checkpoint-*")
        if (match := _NAME.fullmatch(path.name)) and path.is_dir()
    }
    return [steps[step] for step in sorted(steps)]
