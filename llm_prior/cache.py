"""The key-value cache of batched decoding, in which every row has a length of its own.

The caches of transformers hold sequences that began together. Here a slot passes to the next
sequence while the others go on.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from transformers.cache_utils import Cache, CacheLayerMixin


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


class _SlotLayer(CacheLayerMixin):
    """Keys and values of one layer, (slots, heads, capacity, head size)."""

    supports_early_init = False
    keys: torch.Tensor
    values: torch.Tensor

    def __init__(self, slots: int, capacity: int) -> None:
        super().__init__()
        self.slots, self.capacity = slots, capacity
        self.window: _Window | None = None

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        # Zeros: unwritten positions are attended to with weight 0, and 0 * NaN is NaN.
        shape = self.slots, key_states.shape[1], self.capacity
        self.keys = key_states.new_zeros(*shape, key_states.shape[3])
        self.values = value_states.new_zeros(*shape, value_states.shape[3])
        self.is_initialized = True

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write (B, heads, T, size) at the window's positions; return (B, heads, width, size)."""
        assert self.window is not None  # `SlotCache.look_at` precedes every forward pass
        window, count = self.window, len(key_states)
        self.keys[window.rows, :, window.positions] = key_states.transpose(1, 2)
        self.values[window.rows, :, window.positions] = value_states.transpose(1, 2)
        return self.keys[:count, :, : window.width], self.values[:count, :, : window.width]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.get_seq_length(), 0

    def get_seq_length(self) -> int:
        return 0 if self.window is None else self.window.width

    def get_max_length(self) -> int:
        return self.capacity


class SlotCache(Cache):
    """Key-value cache with a fixed number of slots, each as long as the sequence in it.

    The memory is set by `slots` and `capacity`, however many sequences pass through.

    Args:
        num_layers: layers of the model.
        slots: sequences at a time.
        capacity: tokens of the longest sequence.
    """

    def __init__(self, num_layers: int, slots: int, capacity: int) -> None:
        self._slot_layers = [_SlotLayer(slots, capacity) for _ in range(num_layers)]
        super().__init__(layers=[*self._slot_layers])

    def look_at(self, positions: torch.Tensor, width: int) -> None:
        """Set the window of the next forward pass, in which row i of the batch is slot i.

        Args:
            positions: (B, T) of the tokens that are fed.
            width: no slot is longer, these tokens included.
        """
        rows = torch.arange(len(positions), device=positions.device)[:, None]
        window = _Window(rows, positions, width)
        for layer in self._slot_layers:
            layer.window = window

    def admit(self, slots: Sequence[int], prefix: Cache, rows: Sequence[int]) -> None:
        """Copy sequences of another cache into slots.

        Args:
            slots: slot of each sequence.
            prefix: the other cache.
            rows: row of each sequence in it.
        """
        for mine, theirs in zip(self._slot_layers, prefix.layers, strict=True):
            keys, values = layer_states(theirs)
            if not mine.is_initialized:
                mine.lazy_initialization(keys, values)
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
        for layer in self._slot_layers:
            for states in (layer.keys, layer.values):
                states[targets, :, :length] = states[sources, :, :length]


def layer_states(layer: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the keys and values of one layer, each (rows, heads, tokens, head size).

    Args:
        layer: layer of a `transformers.DynamicCache` that holds tokens.
    """
    return layer.keys, layer.values
