"""Plain tables of results as CSV files, made once and never over another file."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from flowllm.errors import UserError
from flowllm.system.files import write_atomic


def check_absent(path: str | Path | None) -> Path | None:
    """See, before hours of work, that a table can be written here (None: it is not wanted).

    Raises:
        UserError: there is a file already, or no folder to hold one.
    """
    if path is None:
        return None
    path = Path(path)
    if path.exists():
        raise UserError(f"{path} exists; choose another name for the table")
    if not path.parent.is_dir():
        raise UserError(f"{path.parent} is no folder; make it first, or choose another one")
    return path


def write_rows(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Write rows of the same keys; the file is whole or absent."""
    text = io.StringIO()
    table = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    table.writeheader()
    table.writerows(rows)
    write_atomic(path, text.getvalue())
