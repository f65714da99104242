"""Atomic writing of files and folders, and their hashes.

POSIX `rename` within one file system is atomic: a name shows the old content or the new one, never
a part. `fsync` before it, and `fsync` of the folder after it, extend that to a power cut.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import secrets
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from flowllm.errors import UserError

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # on the disk, in the quota, in a file
_LONGEST_NAME = 100  # characters
_LONGEST_KEPT = 200  # bytes; file systems take 255
_TEMPORARY_SUFFIX = ".flowllm-tmp"


def publish(path: str | Path, write: Callable[[Path], object]) -> Path:
    """Make a file or folder so that a kill leaves it whole or absent.

    Args:
        path: of the file or folder; an existing file is replaced.
        write: makes the file or folder at the path that it is given: one of the same name (so that
            writers can look at the suffix) in a temporary folder beside `path`. The result is then
            moved to `path`.

    Returns:
        `path`.

    Raises:
        OSError: if `path` is a folder that is not empty, `write` makes nothing, or the disk is
            full.
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


def publish_together(folder: Path, names: Sequence[str], write: Callable[[Path], object]) -> None:
    """Make several files or folders in one go; a kill leaves each whole or absent.

    Args:
        folder: holds them in the end.
        names: their names; none exists. The first one appears last, so that where it is, the others
            are too.
        write: makes them in the temporary folder that it is given. What it leaves out is not made.

    Raises:
        OSError: if the disk is full.
    """
    workspace = folder / f".{names[0]}.{secrets.token_hex(4)}{_TEMPORARY_SUFFIX}"
    workspace.mkdir()
    try:
        write(workspace)
        made = [name for name in names if (workspace / name).exists()]
        for name in made:
            _sync_tree(workspace / name)
        for name in reversed(made):
            os.replace(workspace / name, folder / name)
    finally:
        shutil.rmtree(workspace)
    _sync(folder)


def write_atomic(path: str | Path, content: str | bytes) -> Path:
    """Write a file so that a kill leaves the old content or the new one; see `publish`.

    Args:
        path: of the file; an existing one is replaced.
        content: bytes, or text, which is written as UTF-8; half characters (as Python has them for
            bytes of a file name that are no text) are escaped, such as `\\udce9`.

    Returns:
        `path`.
    """
    data = content.encode(errors="backslashreplace") if isinstance(content, str) else content
    return publish(path, lambda temporary: temporary.write_bytes(data))


def write_failure(error: BaseException) -> str | None:
    """Return why a file could not be written, if that is what an error comes from.

    The writers of safetensors and torch have errors of their own for a full disk.

    Args:
        error: any error.

    Returns:
        The reason, such as `No space left on device`; None for another error.
    """
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.errno in _NO_ROOM:
            return cause.strerror
        for number in _NO_ROOM:
            if f"os error {number})" in str(cause) or f"code: {number}," in str(cause):
                return os.strerror(number)
        if "PytorchStreamWriter failed" in str(cause):
            return "a file could not be written to its end"
        cause = cause.__cause__ or cause.__context__
    return None


def file_names(ids: Sequence[str], *, keep: str = "") -> list[str]:
    """Return a file name for each id, all different and allowed by every file system.

    Args:
        ids: any strings.
        keep: a regular expression of the ids that stay as they are; others get the letters,
            digits, points and dashes of ASCII.

    Returns:
        The names without a suffix, in order.
    """
    chosen = FileNames(keep)
    return [chosen.next(name) for name in ids]


class FileNames:
    """File names for ids that come one after the other; see `file_names`."""

    def __init__(self, keep: str = "") -> None:
        self._keep = keep
        self._taken: set[str] = set()
        self._number = -1

    def next(self, name: str) -> str:
        """Return the file name of the next id.

        Args:
            name: the id.
        """
        self._number += 1
        plain = name
        if not (
            self._keep and re.fullmatch(self._keep, name) and len(name.encode()) <= _LONGEST_KEPT
        ):
            plain = re.sub(r"[^A-Za-z0-9._-]", "_", name)[:_LONGEST_NAME]
            plain = plain if re.match(r"\w", plain) else f"_{plain}"
        while plain.casefold() in self._taken:  # some file systems do not distinguish CO from Co
            plain = f"{plain}_{self._number}"
        self._taken.add(plain.casefold())
        return plain


def is_temporary(path: Path) -> bool:
    """Return whether a killed `publish` left this path behind.

    Args:
        path: of a file or folder.

    Returns:
        True for a left-over.
    """
    return path.name.startswith(".") and path.name.endswith(_TEMPORARY_SUFFIX)


def remove_temporaries(folder: Path) -> None:
    """Remove what killed calls of `publish` left behind.

    Args:
        folder: no other process may write in it at the same time.
    """
    for path in folder.iterdir():
        if is_temporary(path):
            shutil.rmtree(path)


def sha256_file(path: str | Path) -> str:
    """Return the SHA-256 of a file.

    Args:
        path: of the file.

    Returns:
        64 hexadecimal digits.

    Raises:
        UserError: if there is no such file.
    """
    if not Path(path).is_file():
        raise UserError(f"{path}: no such file; check the path")
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_path(path: Path) -> str:
    """Return the SHA-256 of a file or folder; see `sha256_file` and `sha256_folder`.

    Args:
        path: of the file or folder.

    Returns:
        64 hexadecimal digits.

    Raises:
        UserError: if there is no such file or folder, or the folder holds no files.
    """
    return sha256_folder(path) if path.is_dir() else sha256_file(path)


def sha256_folder(path: str | Path) -> str:
    """Return the SHA-256 over the relative names and contents of all files in a folder.

    It is the hash of the output of `sha256sum`: lines `<sha256 of the file>  <relative POSIX
    name>` in the order of the names. Links to files (as in the cache of the hub) count by content,
    so that a folder keeps its hash wherever it is copied.

    Args:
        path: of the folder.

    Returns:
        64 hexadecimal digits.

    Raises:
        UserError: if there is no such folder, or it holds no files.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise UserError(f"{path}: no such folder; check the path")
    files = {p.relative_to(folder).as_posix(): p for p in folder.rglob("*") if p.is_file()}
    lines = [f"{sha256_file(files[name])}  {name}\n" for name in sorted(files)]
    if not lines:
        raise UserError(f"{path}: the folder holds no files; check the path")
    return hashlib.sha256("".join(lines).encode(errors="surrogateescape")).hexdigest()


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
