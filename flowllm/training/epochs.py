"""Draws of a training: functions of the seed and the absolute position in the run.

A run of many epochs reads one long data set. A resumed run starts at the position where the first
one stopped, also within an epoch, and draws the same items with any number of workers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
import torch

_WINDOW = 50  # batches within which draws are sorted by size


class Drawable(Protocol):
    """A data set that draws training examples from an index and a random generator alone."""

    def __len__(self) -> int:
        """Return the number of crystals."""
        ...

    def size(self, index: int, rng: np.random.Generator) -> int:
        """Return the approximate size of the draw that a generator in this state gives."""
        ...

    def draw(self, index: int, rng: np.random.Generator) -> Mapping[str, Any]:
        """Return a training example of the crystal at an index."""
        ...


class VirtualEpochs(torch.utils.data.Dataset):
    """Several passes over a data set as one long map-style data set.

    The item at an absolute position is a function of (seed, position) alone. It does not depend on
    earlier draws, on the worker, or on the run. Each pass is a fresh permutation; within windows of
    it, draws of similar size share a batch. Crystals that fill no batch are left out of a pass,
    other ones in each pass.
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
        """Make the data set.

        Args:
            data: crystals to draw from.
            epochs: passes over the crystals, also fractions.
            batch_size: crystals in a batch.
            seed: decides order and draws.
            limit: largest number of draws; None: no limit.
        """
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
        """Return the approximate size of the item at an absolute position."""
        return self._size(*self._place(position))

    def _place(self, position: int) -> tuple[int, int]:
        """Return the epoch of a position and its place in the permutation of that epoch."""
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
        """Return the places of one window: in batches of similar size, the batches shuffled."""
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
        """Return the generator of one draw.

        It belongs to the place before the sorting by size, because the size depends on the draw.
        """
        return self._random(1, epoch * self.epoch_length + place)

    def _random(self, *key: int) -> np.random.Generator:
        return np.random.default_rng(np.random.SeedSequence(self.seed, spawn_key=key))
