"""Bytes cached on disk by key.

SQLite rather than a cache library: one file, safe for several processes, part of Python.
"""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType

logger = logging.getLogger(__name__)

_WAIT = 60.0  # seconds to wait for another process that writes
_AT_ONCE = 500  # keys per query; SQLite allows 999


class KeyValueStore:
    """Bytes by key in one file, shared by all processes that open it.

    If the folder cannot be written or the file is damaged, a warning is logged, nothing is found
    and nothing is stored; results do not change.
    """

    def __init__(self, file: Path) -> None:
        """Make a store in `file`; it is opened by `with`."""
        self.file = file
        self._connection: sqlite3.Connection | None = None

    def __enter__(self) -> KeyValueStore:
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            self._connection = sqlite3.connect(self.file, timeout=_WAIT)
            with self._connection as connection:
                connection.execute(
                    "CREATE TABLE IF NOT EXISTS entries (key BLOB PRIMARY KEY, value BLOB)"
                )
        except (sqlite3.Error, OSError) as error:
            self._give_up(error)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; nothing is found or stored after it."""
        if self._connection is not None:
            self._connection.close()
        self._connection = None

    def load(self, keys: Iterable[bytes]) -> dict[bytes, bytes]:
        """Return the stored values.

        Args:
            keys: any keys.

        Returns:
            Value by key, for the keys that are stored.
        """
        wanted = list(dict.fromkeys(keys))
        found: dict[bytes, bytes] = {}
        for start in range(0, len(wanted), _AT_ONCE):
            part = wanted[start : start + _AT_ONCE]
            if self._connection is None:
                break
            marks = ", ".join("?" * len(part))
            try:
                rows = self._connection.execute(
                    f"SELECT key, value FROM entries WHERE key IN ({marks})", part
                )
                found.update(rows.fetchall())
            except sqlite3.Error as error:
                self._give_up(error)
        return found

    def save(self, values: Mapping[bytes, bytes]) -> None:
        """Store values, all or none.

        Args:
            values: value by key.
        """
        if self._connection is None:
            return
        try:
            with self._connection as connection:
                connection.executemany(
                    "INSERT OR REPLACE INTO entries VALUES (?, ?)", list(values.items())
                )
        except sqlite3.Error as error:
            self._give_up(error)

    def _give_up(self, error: Exception) -> None:
        logger.warning("results are not kept in %s: %s", self.file, error)
        self.close()
