"""Files that are either whole or absent, and hashes of files and folders.

POSIX `rename` within one file system is atomic: a name shows the old content or the new one and
never a part. `fsync` before it and of the folder after it make that hold over a power cut as well.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
from collections.abc import Callable
from pathlib import Path

from flowllm.errors import UserError

_TEMPORARY_SUFFIX = ".flowllm-tmp"


def publish(path: str | Path, write: Callable[[Path], object]) -> Path:
    """Make the file or folder `path` so that a kill leaves it whole or absent.

    `write` gets a path of the same name (so writers that look at the suffix work) in a temporary
    folder beside `path`, and makes a file or a folder there, which is then moved into place.

    Returns:
        `path`. An existing file is replaced.

    Raises:
        OSError: `path` is a folder that is not empty, `write` made nothing, or the disk is full.
    """
    path = Path(path)
    workspace = path.parent / f".{path.name}.{secrets.token_hex(4)}{_TEMPORARY_SUFFIX}"
    workspace.mkdir()
    try:
        write(workspace / path.name)
        _sync_tree(workspace / path.name)
        os.replace(workspace / path.name, path)
    finally:
        shutil.rmtree(workspace)
    _sync(path.parent)
    return path


def write_atomic(path: str | Path, content: str | bytes) -> Path:
    """Write `content` (text as UTF-8) to `path`, replacing it as a whole; see `publish`."""
    data = content.encode() if isinstance(content, str) else content
    return publish(path, lambda temporary: temporary.write_bytes(data))


def is_temporary(path: Path) -> bool:
    """Whether `path` is a left-over of a `publish` that was killed."""
    return path.name.startswith(".") and path.name.endswith(_TEMPORARY_SUFFIX)


def remove_temporaries(folder: Path) -> None:
    """Remove what killed `publish` calls left in `folder`; nobody else may be writing there."""
    for path in folder.iterdir():
        if is_temporary(path):
            shutil.rmtree(path)


def sha256_file(path: str | Path) -> str:
    """SHA-256 of the bytes of a file, as 64 hexadecimal digits.

    Raises:
        UserError: there is no such file.
    """
    if not Path(path).is_file():
        raise UserError(f"{path}: no such file; check the path")
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_path(path: Path) -> str:
    """`sha256_file` of a file, `sha256_folder` of a folder."""
    return sha256_folder(path) if path.is_dir() else sha256_file(path)


def sha256_folder(path: str | Path) -> str:
    """SHA-256 over the relative names and contents of all files in a folder, as 64 hex digits.

    The digest is that of the lines `<sha256 of the file>  <relative POSIX name>` in the order of
    the names: what `sha256sum` prints. Links to files (as in the hub's cache) count by content,
    so a folder keeps its hash wherever it is copied.

    Raises:
        UserError: there is no such folder, or it holds no files.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise UserError(f"{path}: no such folder; check the path")
    files = {p.relative_to(folder).as_posix(): p for p in folder.rglob("*") if p.is_file()}
    lines = [f"{sha256_file(files[name])}  {name}\n" for name in sorted(files)]
    if not lines:
        raise UserError(f"{path}: the folder holds no files; check the path")
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _sync_tree(path: Path) -> None:
    if path.is_dir():
        for child in path.iterdir():
            _sync_tree(child)
    _sync(path)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
