"""Checkpoints that count: a folder with a COMPLETE marker that holds the hash of every file.

The marker is written last and atomically. A folder without it was cut off and is ignored; a folder
with it whose files have other hashes is damaged and is refused by the name of the file.
"""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

from flowllm.errors import UserError
from flowllm.system.files import sha256_file, write_atomic

MARKER = "COMPLETE"
_NAME = re.compile(r"checkpoint-(\d+)")


def mark_complete(folder: Path) -> None:
    """Write the marker with the sha256 of every file in `folder`."""
    hashes = {
        str(path.relative_to(folder)): sha256_file(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != MARKER
    }
    write_atomic(folder / MARKER, json.dumps(hashes, indent=1) + "\n")


def verify(folder: Path) -> None:
    """Check every file of a complete checkpoint against its hash.

    Raises:
        UserError: a file is missing or differs.
    """
    try:
        hashes = dict(json.loads((folder / MARKER).read_bytes()))
    except (ValueError, TypeError) as error:
        raise UserError(
            f"{folder / MARKER} is damaged; delete {folder} to resume from an earlier one"
        ) from error
    for name, expected in hashes.items():
        path = folder / name
        if not path.is_file() or sha256_file(path) != expected:
            raise UserError(
                f"{path} is missing or damaged; delete {folder} to resume from an earlier one"
            )


def complete_checkpoints(folder: Path) -> list[Path]:
    """Complete checkpoints in `folder`, by ascending step."""
    return [path for path in _checkpoints(folder) if (path / MARKER).is_file()]


def newest_complete(folder: Path) -> Path | None:
    """The complete checkpoint of the highest step, or None."""
    found = complete_checkpoints(folder)
    return found[-1] if found else None


def remove_incomplete(folder: Path) -> None:
    """Delete checkpoint folders that were cut off while being written."""
    for path in _checkpoints(folder):
        if not (path / MARKER).is_file():
            shutil.rmtree(path)


def _checkpoints(folder: Path) -> list[Path]:
    """Folders named `checkpoint-STEP`, by ascending step; other names are not ours."""
    steps = {
        int(match[1]): path
        for path in folder.glob("checkpoint-*")
        if (match := _NAME.fullmatch(path.name)) and path.is_dir()
    }
    return [steps[step] for step in sorted(steps)]
