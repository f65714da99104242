"""Vectors cached on disk by the hash of the object they describe.

SQLite rather than a cache library: one file, safe for several processes, part of Python.
"""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Iterable, Mapping
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from flowllm.crystals.cache import cache_folder

logger = logging.getLogger(__name__)

_FILE = "fingerprints-1.sqlite"  # raise the number when equal keys would mean other vectors
_WAIT = 60.0  # seconds to wait for another process that writes
_AT_ONCE = 500  # keys per query; SQLite allows 999


class VectorStore:
    """Float64 vectors of one width by key, shared by all processes that use the cache folder.

    If the folder cannot be written or the file is damaged, a warning is logged, nothing is found
    and nothing is stored; results do not change.
    """

    def __init__(self, width: int) -> None:
        """Make a store of vectors of `width` numbers; it is opened by `with`."""
        self.width = width
        self._connection: sqlite3.Connection | None = None

    def __enter__(self) -> VectorStore:
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

    def load(self, keys: Iterable[bytes]) -> dict[bytes, NDArray[np.float64]]:
        """Return the stored vectors.

        Args:
            keys: any keys.

        Returns:
            Vector (width,) by key, for the keys that are stored.
        """
        wanted = list(dict.fromkeys(keys))
        found: dict[bytes, NDArray[np.float64]] = {}
        for start in range(0, len(wanted), _AT_ONCE):
            part = wanted[start : start + _AT_ONCE]
            if self._connection is None:
                break
            marks = ", ".join("?" * len(part))
            try:
                rows = self._connection.execute(
                    f"SELECT key, vector FROM vectors WHERE key IN ({marks})", part
                ).fetchall()
            except sqlite3.Error as error:
                self._give_up(error)
                break
            for key, content in rows:
                vector = np.frombuffer(content, dtype="<f8")
                if len(vector) == self.width:
                    found[key] = vector
        return found

    def save(self, vectors: Mapping[bytes, NDArray[np.float64]]) -> None:
        """Store vectors, all or none.

        Args:
            vectors: vector (width,) by key.
        """
        if self._connection is None:
            return
        rows = [(key, vector.astype("<f8").tobytes()) for key, vector in vectors.items()]
        try:
            with self._connection as connection:
                connection.executemany("INSERT OR REPLACE INTO vectors VALUES (?, ?)", rows)
        except sqlite3.Error as error:
            self._give_up(error)

    def _give_up(self, error: Exception) -> None:
        logger.warning("features are not kept in %s: %s", cache_folder() / _FILE, error)
        if self._connection is not None:
            self._connection.close()
        self._connection = None
