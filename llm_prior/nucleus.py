"""Draw tokens from logits: temperature and nucleus (Holtzman et al. 2019, arXiv 1904.09751)."""

from __future__ import annotations

import numpy as np
import torch


def draw(
    logits: torch.Tensor, uniforms: torch.Tensor, *, temperature: float, top_p: float
) -> torch.Tensor:
    """One index per row, by the inverse of the cumulative distribution at `uniforms`.

    The nucleus is the smallest set of likeliest tokens whose probabilities add up to `top_p`;
    tokens as likely as its least likely one belong to it.

    Args:
        logits: (B, K), at least one finite in each row; -inf is never drawn.
        uniforms: (B,) float64 in [0, 1).
        temperature: divides the logits first; 0 takes the likeliest token.
        top_p: in (0, 1].

    Returns:
        (B,) indices into K.
    """
    if temperature == 0:
        return logits.argmax(-1)
    weights = torch.softmax(logits.float() / temperature, -1)  # (B, K)
    if top_p < 1:
        ranked = _descending(weights)
        before = ranked.cumsum(-1) - ranked  # mass of the likelier ones
        last = (before < top_p).sum(-1, keepdim=True) - 1
        weights = weights.where(weights >= ranked.gather(-1, last), 0)
    cumulative = weights.double().cumsum(-1)
    total = cumulative[:, -1:]
    # Never the total itself, past which no token is left.
    below = torch.nextafter(total, torch.zeros_like(total))
    target = torch.minimum(uniforms[:, None] * total, below)
    return torch.searchsorted(cumulative, target, right=True)[:, 0]


def _descending(weights: torch.Tensor) -> torch.Tensor:
    if weights.is_cuda:
        return weights.sort(-1, descending=True).values
    # On the CPU torch orders the indices as well and takes seven times as long.
    return torch.from_numpy(np.sort(weights.numpy(), -1)[:, ::-1].copy())
