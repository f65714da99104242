"""Random generators of single crystals."""

from __future__ import annotations

import numpy as np


def crystal_generator(seed: int, index: int) -> np.random.Generator:
    """Of crystal number `index` of a run with `seed`, whatever other crystals there are."""
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(index,)))
