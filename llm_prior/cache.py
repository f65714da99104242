"""The key-value cache of batched decoding, in which every row has a length of its own.

The caches of transformers hold sequences that began together. Here a slot passes to the next
sequence while the others go on; `llm_prior.transformers_cache` hands it to their models.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch


def cache_argument(model: torch.nn.Module) -> str:
    """Return the name under which a model takes its key-value cache.

    transformers 5.24 renamed `past_key_values` to `cache` and warns about the old name.

    Args:
        model: transformers model, or a peft model around one.
    """
    base: Any = model
    if hasattr(base, "get_base_model"):
        base = base.get_base_model()
    kind: Any = type(base)
    return _cache_argument(kind)


@lru_cache(maxsize=8)
def _cache_argument(kind: Any) -> str:
    known = inspect.signature(kind.forward).parameters
    return "cache" if "cache" in known else "past_key_values"


@dataclass(frozen=True)
class _Window:
    """Positions that the current forward pass writes, and the width that it attends to."""

    rows: torch.Tensor  # (B, 1)
    positions: torch.Tensor  # (B, T)
    width: int


class SlotLayer:
    """Keys and values of one layer, (slots, heads, capacity, head size).

    Args:
        slots: sequences at a time.
        capacity: tokens of the longest sequence.
    """

    keys: torch.Tensor
    values: torch.Tensor

    def __init__(self, slots: int, capacity: int) -> None:
        self.slots, self.capacity = slots, capacity
        self.window: _Window | None = None
        self.is_initialized = False

    def initialize(self, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Make room for keys and values of the shape and type of these.

        Args:
            keys: (B, heads, T, size).
            values: (B, heads, T, size).
        """
        # Zeros: unwritten positions are attended to with weight 0, and 0 * NaN is NaN.
        shape = self.slots, keys.shape[1], self.capacity
        self.keys = keys.new_zeros(*shape, keys.shape[3])
        self.values = values.new_zeros(*shape, values.shape[3])
        self.is_initialized = True

    def update(self, keys: torch.Tensor, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Write (B, heads, T, size) at the window's positions; return (B, heads, width, size).

        Args:
            keys: of the tokens that are fed.
            values: of the tokens that are fed.
        """
        assert self.window is not None  # `SlotCache.look_at` precedes every forward pass
        if not self.is_initialized:
            self.initialize(keys, values)
        window, count = self.window, len(keys)
        self.keys[window.rows, :, window.positions] = keys.transpose(1, 2)
        self.values[window.rows, :, window.positions] = values.transpose(1, 2)
        return self.keys[:count, :, : window.width], self.values[:count, :, : window.width]


class SlotCache:
    """Key-value cache with a fixed number of slots, each as long as the sequence in it.

    The memory is set by `slots` and `capacity`, however many sequences pass through.

    Args:
        num_layers: layers of the model.
        slots: sequences at a time.
        capacity: tokens of the longest sequence.
    """

    def __init__(self, num_layers: int, slots: int, capacity: int) -> None:
        self.layers = [SlotLayer(slots, capacity) for _ in range(num_layers)]

    def look_at(self, positions: torch.Tensor, width: int) -> None:
        """Set the window of the next forward pass, in which row i of the batch is slot i.

        Args:
            positions: (B, T) of the tokens that are fed.
            width: no slot is longer, these tokens included.
        """
        rows = torch.arange(len(positions), device=positions.device)[:, None]
        window = _Window(rows, positions, width)
        for layer in self.layers:
            layer.window = window

    def admit(self, slots: Sequence[int], prefix: Any, rows: Sequence[int]) -> None:
        """Copy sequences of another cache into slots.

        Args:
            slots: slot of each sequence.
            prefix: the other cache, a `SlotCache` or a cache of transformers.
            rows: row of each sequence in it.
        """
        for mine, theirs in zip(self.layers, prefix.layers, strict=True):
            keys, values = layer_states(theirs)
            if not mine.is_initialized:
                mine.initialize(keys, values)
            length = keys.shape[2]
            mine.keys[slots, :, :length] = keys[rows]
            mine.values[slots, :, :length] = values[rows]

    def move(self, sources: Sequence[int], targets: Sequence[int], length: int) -> None:
        """Copy the first `length` tokens of slots to others.

        Args:
            sources: slots that are read.
            targets: slots that are overwritten.
            length: tokens that are copied.
        """
        for layer in self.layers:
            for states in (layer.keys, layer.values):
                states[targets, :, :length] = states[sources, :, :length]


def layer_states(layer: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the keys and values of one layer, each (rows, heads, tokens, head size).

    Args:
        layer: layer of a `SlotCache` or a `transformers.DynamicCache` that holds tokens.
    """
    return layer.keys, layer.values
