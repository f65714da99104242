"""Tables of results as CSV files, which never replace another file."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from flowllm.errors import UserError
from flowllm.system.files import write_atomic


def check_absent(path: str | Path | None) -> Path | None:
    """Check, before long work begins, that a table can be written.

    Args:
        path: of the table; None: no table is written.

    Returns:
        The path, or None.

    Raises:
        UserError: if there is such a file already, or no folder for it.
    """
    if path is None:
        return None
    path = Path(path)
    if path.exists():
        raise UserError(f"{path} exists; choose another name for the table")
    if not path.parent.is_dir():
        raise UserError(f"{path.parent} is not a folder; make it first, or choose another one")
    return path


def write_rows(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Write rows as CSV; the file is whole or absent, even after a kill.

    Args:
        rows: at least one; all have the same keys.
        path: of the file.
    """
    text = io.StringIO()
    table = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    table.writeheader()
    table.writerows(rows)
    write_atomic(path, text.getvalue())
