"""The content of an input: bytes of a file or of standard input, decompressed, and their text."""

from __future__ import annotations

import bz2
import codecs
import functools
import gzip
import hashlib
import io
import lzma
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import IO

from flowllm.errors import UserError, one_line
from flowllm.system.files import sha256_path

STANDARD_INPUT = "-"

_OPENERS: dict[bytes, Callable[[IO[bytes]], gzip.GzipFile | bz2.BZ2File | lzma.LZMAFile]] = {
    b"\x1f\x8b": lambda file: gzip.GzipFile(fileobj=file),
    b"BZh": bz2.BZ2File,
    b"\xfd7zXZ\x00": lzma.LZMAFile,
}
_DAMAGED = (OSError, EOFError, zlib.error, lzma.LZMAError)
# The longer marks first: that of UTF-32 begins with that of UTF-16.
_MARKS = {
    codecs.BOM_UTF8: "utf-8",
    codecs.BOM_UTF32_LE: "utf-32-le",
    codecs.BOM_UTF32_BE: "utf-32-be",
    codecs.BOM_UTF16_LE: "utf-16-le",
    codecs.BOM_UTF16_BE: "utf-16-be",
}
_LOOKED_AT = 4096  # bytes
_SMALL = 2**28  # bytes: content of this size is always unpacked
_MOST = 2**32  # bytes: content of more is never unpacked
_RATIO = 200  # of unpacked to packed size; texts of crystals shrink 10 to 50 times


class TooLarge(UserError):
    """Content that unpacks to more than `unpacked_limit`."""


def is_standard_input(path: Path) -> bool:
    """Return whether a path stands for standard input.

    Args:
        path: of an input.

    Returns:
        True for `-`.
    """
    return str(path) == STANDARD_INPUT


@functools.cache
def standard_input() -> bytes:
    """Return everything on standard input, which can be read only once."""
    return sys.stdin.buffer.read()


def read_bytes(path: Path) -> bytes:
    """Return the bytes of a file or of standard input.

    Args:
        path: of the file; `-` is standard input.

    Returns:
        The content as it is, compressed or not.

    Raises:
        UserError: if the file cannot be read.
    """
    if is_standard_input(path):
        return standard_input()
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {one_line(error)}; check the file") from error


def content_hash(path: Path) -> str:
    """Return the SHA-256 of a file, a folder or standard input.

    Args:
        path: see `flowllm.system.files.sha256_path`; `-` is standard input.

    Returns:
        64 hexadecimal digits.

    Raises:
        UserError: if there is no such file or folder.
    """
    if is_standard_input(path):
        return hashlib.sha256(standard_input()).hexdigest()
    return sha256_path(path)


def unpacked_limit(packed: int) -> int:
    """Return how many bytes a compressed input or an archive may hold.

    A few kilobytes can be made to unpack to more than any memory. Real files stay far below.

    Args:
        packed: bytes of the input.

    Returns:
        200 times as many bytes, at least 256 MiB and at most 4 GiB.
    """
    return min(_MOST, max(_SMALL, _RATIO * packed))


def decompressed(data: bytes, name: str) -> bytes:
    """Return the content of a compressed file; other content is returned as it is.

    The first bytes tell gzip, bzip2 and xz, whatever the file is called.

    Args:
        data: bytes of a file.
        name: of the file, for messages.

    Returns:
        The content.

    Raises:
        UserError: if it is damaged, or `TooLarge`.
    """
    opener = next((opener for start, opener in _OPENERS.items() if data.startswith(start)), None)
    if opener is None:
        return data
    limit = unpacked_limit(len(data))
    try:
        with opener(io.BytesIO(data)) as file:
            content = file.read(limit + 1)
    except _DAMAGED as error:
        raise UserError(
            f"{name}: the compressed file is damaged: {one_line(error)}; get it again"
        ) from error
    if len(content) > limit:
        raise TooLarge(
            f"{name}: unpacks from {len(data)} to more than {limit} bytes; unpack it yourself if "
            "you trust it"
        )
    return content


def decoded(data: bytes, errors: str = "strict") -> str:
    """Return bytes as text, with line ends made the same.

    A byte-order mark tells UTF-8, UTF-16 or UTF-32. Without a mark it is UTF-16 if every other
    byte is zero, else UTF-8.

    Args:
        data: of a text file.
        errors: `strict`, or `replace` for formats in which only comments go beyond ASCII.

    Returns:
        The text without the mark.

    Raises:
        UnicodeDecodeError: if the bytes are not of that encoding.
    """
    encoding = next((name for mark, name in _MARKS.items() if data.startswith(mark)), None)
    if encoding is None:
        head = data[:_LOOKED_AT]
        encoding = "utf-8"
        if len(head) >= 4 and 0 in head:
            zeros = [head[start::2].count(0) / len(head[start::2]) for start in (0, 1)]
            if max(zeros) > 0.7 and min(zeros) < 0.3:
                encoding = "utf-16-le" if zeros[1] > zeros[0] else "utf-16-be"
    text = data.decode(encoding, errors).removeprefix("\ufeff")
    return text.replace("\r\n", "\n").replace("\r", "\n")
