"""A start for the embeddings of numbers: near numbers alike, coordinates on a circle.

With one token a number, random embeddings say nothing of which numbers are near, and that 0.99 is a
neighbour of 0.00 must be learned from examples. Here half of the dimensions of such a token start
as sines and cosines of its value (the features of Vaswani et al. 2017, section 3.5, with whole
frequencies for what is periodic) and the other half stays random. The model is a plain LLaMA
decoder and every number is trained like the rest.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

import torch
from torch import Tensor

# Periods of the unit cell; all but the last two tell neighbours of 0.01 apart only together.
_COORD_FREQUENCIES = (1, 2, 3, 4, 6, 8, 12, 24)
# Of log length, so that they count in ratios, and of an angle in radians.
_LENGTH_FREQUENCIES = (0.5, 1, 2, 4, 8, 16, 32, 64)
_ANGLE_FREQUENCIES = (0.5, 1, 2, 3, 4, 6, 12, 24)
# (A length below 1 Angstrom, which no crystal has, reads as a coordinate.)
_COORD = re.compile(r"[\n ](0\.[0-9]+)")
_LENGTH = re.compile(r" ?([0-9]+\.[0-9])")
_ANGLE = re.compile(r"[\n ]([1-9][0-9]+)")


def embed_numbers(embedding: Tensor, vocabulary: Mapping[str, int]) -> None:
    """Give the tokens of numbers their start, in place.

    Args:
        embedding: (V, W) freshly drawn; its standard deviation is kept.
        vocabulary: token -> row, of the compact tokenizer.
    """
    pairs = embedding.shape[1] // 4
    amplitude = math.sqrt(2) * float(embedding.detach().std())
    with torch.no_grad():
        for token, row in vocabulary.items():
            phases = _phases(token)
            if phases is None:
                continue
            phase = phases[torch.arange(pairs) % len(phases)]
            embedding[row, :pairs] = amplitude * phase.sin()
            embedding[row, pairs : 2 * pairs] = amplitude * phase.cos()


def _phases(token: str) -> Tensor | None:
    """The angle of each frequency for a token that is a number, else None."""
    if match := _COORD.fullmatch(token):
        return 2 * math.pi * float(match[1]) * torch.tensor(_COORD_FREQUENCIES)
    if match := _LENGTH.fullmatch(token):
        return math.log(max(float(match[1]), 0.1)) * torch.tensor(_LENGTH_FREQUENCIES)
    if match := _ANGLE.fullmatch(token):
        return math.radians(float(match[1])) * torch.tensor(_ANGLE_FREQUENCIES)
    return None
