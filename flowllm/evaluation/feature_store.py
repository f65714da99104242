"""Vectors kept on disk by the hash of what they describe."""

from __future__ import annotations

import hashlib
import logging
import sqlite3
from collections.abc import Iterable, Mapping
from types import TracebackType

import numpy as np
from numpy.typing import NDArray
from pymatgen.core import Structure

from flowllm.crystals.cache import cache_folder

logger = logging.getLogger(__name__)

_FILE = "fingerprints-1.sqlite"  # raise the number when the same key would mean another vector
_WAIT = 60.0  # seconds for another process that writes
_AT_ONCE = 500  # keys in a query; SQLite takes 999


def structure_key(what: str, structure: Structure) -> bytes:
    """Hash of a crystal and of `what` is computed of it, the versions that do so included."""
    digest = hashlib.sha256(what.encode())
    digest.update(structure.lattice.matrix.tobytes())
    digest.update(structure.frac_coords.tobytes())
    digest.update(np.array(structure.atomic_numbers, dtype=np.int64).tobytes())
    return digest.digest()


class VectorStore:
    """Float64 vectors of one width by key, shared by all processes that use the cache folder.

    A folder that cannot be written or a damaged file costs the memory, not the result: it is
    logged, nothing is found and nothing kept.
    """

    def __init__(self, width: int) -> None:
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
        """Those of `keys` that are kept."""
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
        """Keep vectors (width,), at once and all or none."""
        if self._connection is None:
            return
        rows = [(key, vector.astype("<f8").tobytes()) for key, vector in vectors.items()]
        try:
            with self._connection as connection:
                connection.executemany("INSERT OR REPLACE INTO vectors VALUES (?, ?)", rows)
        except sqlite3.Error as error:
            self._give_up(error)

    def _give_up(self, error: Exception) -> None:
        logger.warning("fingerprints are not kept in %s: %s", cache_folder() / _FILE, error)
        if self._connection is not None:
            self._connection.close()
        self._connection = None
