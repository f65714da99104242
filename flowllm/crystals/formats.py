"""Formats of files of crystals: by the name of a file, and by the content of standard input."""

from __future__ import annotations

import re
from enum import StrEnum
from pathlib import PurePath

_COMPRESSED = (".gz", ".bz2", ".xz")
_SHORT = {".tgz": ".tar", ".tbz": ".tar", ".tbz2": ".tar", ".txz": ".tar"}
_POSCARS = ("POSCAR", "CONTCAR")


class Format(StrEnum):
    """How a file holds crystals."""

    CIF = "CIF"
    POSCAR = "POSCAR"
    EXTXYZ = "extxyz"
    JSON = "JSON"
    JSONL = "JSON lines"
    CSV = "CSV"
    PARQUET = "parquet"
    DATABASE = "ASE database"
    ZIP = "zip"
    TAR = "tar"

    @property
    def is_archive(self) -> bool:
        """Whether it holds other files."""
        return self in (Format.ZIP, Format.TAR)

    @property
    def is_table(self) -> bool:
        """Whether it usually holds a whole data set."""
        return self in (Format.CSV, Format.PARQUET, Format.DATABASE)


_OF_SUFFIX = {
    ".cif": Format.CIF,
    ".mcif": Format.CIF,
    ".vasp": Format.POSCAR,
    ".poscar": Format.POSCAR,
    ".contcar": Format.POSCAR,
    ".extxyz": Format.EXTXYZ,
    ".xyz": Format.EXTXYZ,
    ".json": Format.JSON,
    ".jsonl": Format.JSONL,
    ".ndjson": Format.JSONL,
    ".csv": Format.CSV,
    ".tsv": Format.CSV,
    ".parquet": Format.PARQUET,
    ".db": Format.DATABASE,
    ".zip": Format.ZIP,
    ".tar": Format.TAR,
}
READABLE = (
    f"known are {', '.join(_OF_SUFFIX)}, POSCAR and CONTCAR, each also with "
    f"{', '.join(_COMPRESSED)}, folders of them, run folders, and - for standard input"
)


def plain_name(name: str) -> str:
    """Return the name of a file without the suffix of its compression.

    Args:
        name: of a file, such as `POSCAR.gz` or `cifs.tgz`.

    Returns:
        The name of the content, such as `POSCAR` or `cifs.tar`.
    """
    path = PurePath(name)
    suffix = path.suffix.lower()
    if suffix in _COMPRESSED:
        return name[: -len(suffix)]
    return name[: -len(suffix)] + _SHORT[suffix] if suffix in _SHORT else name


def format_of(name: str) -> Format | None:
    """Return the format of a file by its name.

    Args:
        name: of a file, which may be compressed.

    Returns:
        The format; None if the name tells none.
    """
    path = PurePath(plain_name(name))
    found = _OF_SUFFIX.get(path.suffix.lower())
    if found is None and path.name.upper().startswith(_POSCARS):
        return Format.POSCAR
    return found


def stem(name: str) -> str:
    """Return the name of a file without the suffixes of its format and compression.

    Args:
        name: of a file; folders before it stay.

    Returns:
        The id of the crystal of a file of one crystal.
    """
    plain = plain_name(name)
    suffix = PurePath(plain).suffix
    return plain[: -len(suffix)] if suffix.lower() in _OF_SUFFIX else plain


def format_of_content(data: bytes, text: str | None) -> Format | None:
    """Return the format of content that has no name.

    Args:
        data: the content, not compressed.
        text: the same as text; None if it is none.

    Returns:
        The format; None if it is not recognised.
    """
    for start, found in (
        (b"PK\x03\x04", Format.ZIP),
        (b"PAR1", Format.PARQUET),
        (b"SQLite format 3\x00", Format.DATABASE),
    ):
        if data.startswith(start):
            return found
    if data[257:262] == b"ustar":
        return Format.TAR
    return None if text is None else _format_of_text(text)


def _format_of_text(text: str) -> Format | None:
    lines = text.lstrip().split("\n", 6)
    if lines[0].startswith(("{", "[")):
        several = lines[0].startswith("{") and len(lines) > 1 and lines[1].startswith("{")
        return Format.JSONL if several else Format.JSON
    if re.search(r"^\s*data_\S*\s*$", text, re.MULTILINE | re.IGNORECASE):
        return Format.CIF if not re.search(r"[,\t;]", lines[0]) else Format.CSV
    if lines[0].strip().isdigit():
        return Format.EXTXYZ
    columns = re.split(r"[,;\t]", lines[0])
    if {"cif", "structure"} & {name.strip(' "') for name in columns}:
        return Format.CSV
    rows = text.split("\n", 6)[1:5]  # the first line of a POSCAR is a comment and may be empty
    if len(rows) == 4 and all(re.match(r"\s*[-+]?[.\d]", row) for row in rows):
        return Format.POSCAR
    return None
