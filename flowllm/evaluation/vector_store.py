"""Vectors cached on disk by the hash of the object they describe."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
from numpy.typing import NDArray

from flowllm.crystals.cache import cache_folder
from flowllm.system.key_value import KeyValueStore

_FILE = "fingerprints-2.sqlite"  # raise the number when equal keys would mean other vectors


class VectorStore:
    """Float64 vectors of one width by key, shared by all processes that use the cache folder."""

    def __init__(self, width: int) -> None:
        """Make a store of vectors of `width` numbers; it is opened by `with`."""
        self.width = width
        self._store = KeyValueStore(cache_folder() / _FILE)

    def __enter__(self) -> VectorStore:
        self._store.__enter__()
        return self

    def __exit__(self, *raised: object) -> None:
        self._store.close()

    def load(self, keys: Iterable[bytes]) -> dict[bytes, NDArray[np.float64]]:
        """Return the stored vectors.

        Args:
            keys: any keys.

        Returns:
            Vector (width,) by key, for the keys that are stored.
        """
        vectors = {k: np.frombuffer(value, "<f8") for k, value in self._store.load(keys).items()}
        return {key: vector for key, vector in vectors.items() if len(vector) == self.width}

    def save(self, vectors: Mapping[bytes, NDArray[np.float64]]) -> None:
        """Store vectors, all or none.

        Args:
            vectors: vector (width,) by key.
        """
        self._store.save({key: v.astype("<f8").tobytes() for key, v in vectors.items()})
