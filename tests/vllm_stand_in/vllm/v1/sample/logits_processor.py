from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Any


class MoveDirectionality(Enum):
    UNIDIRECTIONAL = auto()
    SWAP = auto()


@dataclass
class BatchUpdate:
    removed: list = field(default_factory=list)
    added: list = field(default_factory=list)
    moved: list = field(default_factory=list)


class LogitsProcessor:
    pass


def process_dict_updates(
    entries: dict[int, Any], update: BatchUpdate | None, new: Callable[..., Any]
) -> None:
    """Follow the places of requests: those that leave, come and move."""
    if update is None:
        return
    for place in update.removed:
        entries.pop(place, None)
    for place, params, prompt, written in update.added:
        entries[place] = new(params, prompt, written)
    for source, target, direction in update.moved:
        first, second = entries.pop(source, None), entries.pop(target, None)
        if first is not None:
            entries[target] = first
        if second is not None and direction is MoveDirectionality.SWAP:
            entries[source] = second
