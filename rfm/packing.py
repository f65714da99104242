"""Crystals into batches of bounded memory."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from rfm.errors import RefinerError

# MP-20 has 113 pairs a crystal on average: about 140 crystals at a time.
MAX_EDGES = 16_384


def pack(sizes: Sequence[int], max_edges: int = MAX_EDGES) -> list[list[int]]:
    """Places of crystals with `sizes` atoms, in batches of like sizes with bounded pairs of atoms.

    The network works on the n^2 pairs of atoms within each crystal and its memory goes with their
    sum. The largest crystals come first, so that what does not fit shows at once.

    Args:
        sizes: atoms of each crystal.
        max_edges: a batch has at most this sum of n^2, or is a single crystal.

    Raises:
        RefinerError: max_edges is below 1.
    """
    if max_edges < 1:
        raise RefinerError(f"max_edges is {max_edges}; at least one is needed")
    batches: list[list[int]] = []
    room = 0
    for place in np.argsort(-np.asarray(sizes, dtype=np.int64), kind="stable").tolist():
        edges = sizes[place] ** 2
        if not batches or edges > room:
            batches.append([])
            room = max_edges
        batches[-1].append(place)
        room -= edges
    return batches
