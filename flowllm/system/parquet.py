"""Parquet files by path. pyarrow itself takes only paths that are UTF-8."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq


def read_parquet(path: Path, columns: Sequence[str] | None = None) -> pa.Table:
    """Return the table in a file.

    Args:
        path: of the file.
        columns: names of those to read; None: all.

    Returns:
        The table.

    Raises:
        OSError: if there is no such file.
        pyarrow.ArrowException: if it is damaged or lacks a column.
    """
    with open(path, "rb") as file:
        # Threads of pyarrow that still end while the process does abort it now and then.
        return pq.read_table(file, columns=columns, use_threads=False, pre_buffer=False)


def column_names(path: Path) -> list[str]:
    """Return the names of the columns of a file, without reading its rows.

    Args:
        path: of the file.

    Returns:
        The names.

    Raises:
        OSError: if there is no such file.
        pyarrow.ArrowException: if it is damaged.
    """
    with open(path, "rb") as file:
        return list(pq.read_schema(file).names)


def write_parquet(table: pa.Table, path: Path) -> None:
    """Write a table.

    Args:
        table: the rows.
        path: of the file; an existing one is replaced.
    """
    with open(path, "wb") as file:
        pq.write_table(table, file, compression="zstd")
