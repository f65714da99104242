"""The key-value cache of `llm_prior.cache` as one that models of transformers take."""

from __future__ import annotations

from typing import Any

import torch
from transformers import Cache
from transformers.cache_utils import CacheLayerMixin

from llm_prior.cache import SlotCache, SlotLayer


def transformers_cache(cache: SlotCache) -> Cache:
    """Return a cache of transformers that reads and writes another one.

    Args:
        cache: holds the keys and values.
    """
    return Cache(layers=[_Layer(layer) for layer in cache.layers])


class _Layer(CacheLayerMixin):
    """One layer of the cache."""

    supports_early_init = False

    def __init__(self, layer: SlotLayer) -> None:
        super().__init__()
        self.layer = layer

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        self.layer.initialize(key_states, value_states)
        self.is_initialized = True

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return self.layer.update(key_states, value_states)

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.get_seq_length(), 0

    def get_seq_length(self) -> int:
        return 0 if self.layer.window is None else self.layer.window.width

    def get_max_length(self) -> int:
        return self.layer.capacity
