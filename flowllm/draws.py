"""Which crystal is drawn, and how, as a function of the seed and an absolute position alone.

A run over many epochs is one long data set. A resumed run starts at the position where the other
stopped and repeats it bit for bit, in the middle of an epoch and with any number of workers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
import torch

_WINDOW = 50  # batches within which crystals are sorted by size


class Drawable(Protocol):
    """A data set whose every draw is a function of an index and a random generator."""

    def __len__(self) -> int: ...

    def size(self, index: int) -> int: ...

    def draw(self, index: int, rng: np.random.Generator) -> Mapping[str, Any]: ...


class VirtualEpochs(torch.utils.data.Dataset):
    """`epochs` passes over a data set as one long map-style data set.

    The item at an absolute position is drawn with a generator seeded from (seed, position), so it
    does not depend on what was drawn before, by which worker, or in which run. Each pass is a
    fresh permutation in which the crystals of a batch are of like size; the remainder that fills
    no batch is another random one in each pass.
    """

    def __init__(
        self,
        data: Drawable,
        *,
        epochs: float,
        batch_size: int,
        seed: int,
        limit: int | None = None,
    ) -> None:
        """Take a data set; `limit` ends the passes after so many draws."""
        self.data = data
        self.batch_size = batch_size
        self.seed = seed
        whole = len(data) - len(data) % batch_size
        self.epoch_length = whole or len(data)
        self.length = math.ceil(self.epoch_length * epochs)
        if limit is not None:
            self.length = min(self.length, limit)
        self._sizes = np.array([data.size(index) for index in range(len(data))])
        self._epoch = -1
        self._order = np.empty(0, dtype=np.int64)

    def __len__(self) -> int:
        return self.length

    def index(self, position: int) -> int:
        """Which crystal stands at an absolute position."""
        epoch, place = divmod(position, self.epoch_length)
        if epoch != self._epoch:
            self._order = self._permutation(epoch)
            self._epoch = epoch
        return int(self._order[place])

    def __getitem__(self, position: int) -> Mapping[str, Any]:
        rng = np.random.default_rng([self.seed, 1, position])
        return self.data.draw(self.index(position), rng)

    def _permutation(self, epoch: int) -> np.ndarray:
        rng = np.random.default_rng([self.seed, 0, epoch])
        order = rng.permutation(len(self.data))[: self.epoch_length]
        window = _WINDOW * self.batch_size
        batches = []
        for start in range(0, len(order), window):
            part = order[start : start + window]
            part = part[np.argsort(self._sizes[part], kind="stable")]
            batches.extend(
                part[at : at + self.batch_size] for at in range(0, len(part), self.batch_size)
            )
        return np.concatenate([batches[i] for i in rng.permutation(len(batches))])
