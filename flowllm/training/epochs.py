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

_WINDOW = 50  # batches within which draws are sorted by size


class Drawable(Protocol):
    """A data set whose every draw is a function of an index and a random generator."""

    def __len__(self) -> int: ...

    def size(self, index: int, rng: np.random.Generator) -> int:
        """How large the draw with a generator in this state is, about."""
        ...

    def draw(self, index: int, rng: np.random.Generator) -> Mapping[str, Any]: ...


class VirtualEpochs(torch.utils.data.Dataset):
    """`epochs` passes over a data set as one long map-style data set.

    The item at an absolute position is a function of (seed, position) alone, so it does not depend
    on what was drawn before, by which worker, or in which run. Each pass is a fresh permutation;
    within windows of it the draws are put in batches of like size. The remainder that fills no
    batch is another random one in each pass.
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
        self._epoch = -1
        self._permutation = np.empty(0, dtype=np.int64)
        self._window = (-1, -1)
        self._places = np.empty(0, dtype=np.int64)

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, position: int) -> Mapping[str, Any]:
        epoch, place = self._place(position)
        return self.data.draw(int(self._permutation[place]), self._generator(epoch, place))

    def size(self, position: int) -> int:
        """How large the item at an absolute position is, about."""
        return self._size(*self._place(position))

    def _place(self, position: int) -> tuple[int, int]:
        """Epoch of a position, and its place in that epoch's permutation."""
        epoch, at = divmod(position, self.epoch_length)
        window, offset = divmod(at, _WINDOW * self.batch_size)
        if epoch != self._epoch:
            order = self._random(0, epoch).permutation(len(self.data))
            self._permutation = order[: self.epoch_length]
            self._epoch = epoch
        if (epoch, window) != self._window:
            self._places = self._arrange(epoch, window)
            self._window = (epoch, window)
        return epoch, int(self._places[offset])

    def _arrange(self, epoch: int, window: int) -> np.ndarray:
        """The places of one window: in batches of like size, and these in random order."""
        start = window * _WINDOW * self.batch_size
        end = min(start + _WINDOW * self.batch_size, self.epoch_length)
        sizes = [self._size(epoch, place) for place in range(start, end)]
        places = start + np.argsort(sizes, kind="stable")
        batches = np.split(places, range(self.batch_size, len(places), self.batch_size))
        order = self._random(2, epoch, window).permutation(len(batches))
        return np.concatenate([batches[i] for i in order])

    def _size(self, epoch: int, place: int) -> int:
        return self.data.size(int(self._permutation[place]), self._generator(epoch, place))

    def _generator(self, epoch: int, place: int) -> np.random.Generator:
        """Of one draw. It belongs to the place before the sorting, which must know the draw."""
        return self._random(1, epoch * self.epoch_length + place)

    def _random(self, *key: int) -> np.random.Generator:
        return np.random.default_rng(np.random.SeedSequence(self.seed, spawn_key=key))
