"""A key-value cache with a fixed number of slots, each as long as the sequence in it.

transformers' own caches hold sequences that began together. Here every row is at a position of its
own: new keys and values are written there, and a slot is given to the next sequence without the
others noticing. The memory is what `slots` and `capacity` say, however many sequences pass through.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers.cache_utils import Cache, CacheLayerMixin


@dataclass(frozen=True)
class _Window:
    """Where the current forward pass writes and how far it looks."""

    rows: torch.Tensor  # (B, 1)
    positions: torch.Tensor  # (B, T)
    width: int


class _SlotLayer(CacheLayerMixin):
    """Keys and values of one layer, (slots, heads, capacity, head size)."""

    supports_early_init = False

    def __init__(self, slots: int, capacity: int) -> None:
        super().__init__()
        self.slots, self.capacity = slots, capacity
        self.window: _Window | None = None

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        # Zeros: what no sequence has written yet is looked at with weight 0, and 0 * NaN is NaN.
        shape = self.slots, key_states.shape[1], self.capacity
        self.keys = key_states.new_zeros(*shape, key_states.shape[3])
        self.values = value_states.new_zeros(*shape, value_states.shape[3])
        self.is_initialized = True

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write (B, heads, T, size) at the window's positions; return (B, heads, width, size)."""
        window, count = self.window, len(key_states)
        self.keys[window.rows, :, window.positions] = key_states.transpose(1, 2)
        self.values[window.rows, :, window.positions] = value_states.transpose(1, 2)
        return self.keys[:count, :, : window.width], self.values[:count, :, : window.width]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.window.width, 0

    def get_seq_length(self) -> int:
        return 0 if self.window is None else self.window.width

    def get_max_length(self) -> int:
        return self.capacity


class SlotCache(Cache):
    """The cache of all layers.

    Args:
        num_layers: of the model.
        slots: sequences at a time.
        capacity: tokens of the longest sequence.
    """

    def __init__(self, num_layers: int, slots: int, capacity: int) -> None:
        super().__init__(layers=[_SlotLayer(slots, capacity) for _ in range(num_layers)])

    def look_at(self, positions: torch.Tensor, width: int) -> None:
        """Say what the next forward pass is about: row i of its batch is slot i, its tokens stand
        at `positions[i]` (B, T), and with them no slot is longer than `width`."""
        rows = torch.arange(len(positions), device=positions.device)[:, None]
        window = _Window(rows, positions, width)
        for layer in self.layers:
            layer.window = window

    def admit(self, slots: Sequence[int], prefix: Cache, rows: Sequence[int]) -> None:
        """Let the sequences in `rows` of another cache go on in `slots`."""
        for mine, theirs in zip(self.layers, prefix.layers, strict=True):
            if not mine.is_initialized:
                mine.lazy_initialization(theirs.keys, theirs.values)
            length = theirs.keys.shape[2]
            mine.keys[slots, :, :length] = theirs.keys[rows]
            mine.values[slots, :, :length] = theirs.values[rows]

    def move(self, sources: Sequence[int], targets: Sequence[int], length: int) -> None:
        """Copy the first `length` tokens of slots to others."""
        for layer in self.layers:
            for states in (layer.keys, layer.values):
                states[targets, :, :length] = states[sources, :, :length]
