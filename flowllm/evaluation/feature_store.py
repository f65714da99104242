"""Features cached on disk by the hash of the object they describe.

SQLite rather than a cache library: one file, safe for several processes, part of Python.
"""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Iterable, Mapping
from types import TracebackType

from flowllm.crystals.cache import cache_folder

logger = logging.getLogger(__name__)

_FILE = "fingerprints-1.sqlite"  # raise the number when equal keys would mean other features
_WAIT = 60.0  # seconds to wait for another process that writes
_AT_ONCE = 500  # keys per query; SQLite allows 999


class FeatureStore:
    """Encoded features by key, shared by all processes that use the cache folder.

    If the folder cannot be written or the file is damaged, a warning is logged, nothing is found
    and nothing is stored; results do not change.
    """

    def __init__(self) -> None:
        """Make a store; it is opened by `with`."""
        self._connection: sqlite3.Connection | None = None

    def __enter__(self) -> FeatureStore:
        file = cache_folder() / _FILE
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            self._connection = sqlite3.connect(file, timeout=_WAIT)
            with self._connection as connection:
                connection.execute(
                    "CREATE TABLE IF NOT EXISTS vectors (key BLOB PRIMARY KEY, vector BLOB)"
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
        if self._connection is not None:
            self._connection.close()

    def load(self, keys: Iterable[bytes]) -> dict[bytes, bytes]:
        """Return the stored features.

        Args:
            keys: any keys.

        Returns:
            Encoded feature by key, for the keys that are stored.
        """
        wanted = list(dict.fromkeys(keys))
        found: dict[bytes, bytes] = {}
        for start in range(0, len(wanted), _AT_ONCE):
            part = wanted[start : start + _AT_ONCE]
            if self._connection is None:
                break
            marks = ", ".join("?" * len(part))
            try:
                found |= self._connection.execute(
                    f"SELECT key, vector FROM vectors WHERE key IN ({marks})", part
                ).fetchall()
            except sqlite3.Error as error:
                self._give_up(error)
                break
        return found

    def save(self, features: Mapping[bytes, bytes]) -> None:
        """Store features, all or none.

        Args:
            features: encoded feature by key.
        """
        if self._connection is None:
            return
        try:
            with self._connection as connection:
                connection.executemany(
                    "INSERT OR REPLACE INTO vectors VALUES (?, ?)", list(features.items())
                )
        except sqlite3.Error as error:
            self._give_up(error)

    def _give_up(self, error: Exception) -> None:
        logger.warning("features are not kept in %s: %s", cache_folder() / _FILE, error)
        if self._connection is not None:
            self._connection.close()
        self._connection = None
