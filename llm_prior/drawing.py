"""Draws of the next token from logits: temperature, nucleus and the rules that a text follows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch

from llm_prior.tries import Legal


class TokenRule(Protocol):
    """A rule for the next token, such as a `llm_prior.grammar.Cursor`.

    To examine all tokens may cost much more than to examine one. So a token is drawn among
    candidates; if it may not come, another one is drawn among the candidates that are left. With
    the whole softmax that is a draw from the softmax over the tokens that may come. The nucleus is
    that of the candidates that are left.
    """

    def legal(self) -> Legal:
        """Return the tokens that may come next."""

    def candidates(self) -> Legal:
        """Return tokens of which some may come next; all that may are among them."""

    def accepts(self, token: int) -> bool:
        """Return whether one of the candidates may come next; if not, it is no candidate any more.

        Args:
            token: the token.
        """

    def advance(self, token: int) -> None:
        """Take a token as written.

        Args:
            token: one of the tokens of `legal`.
        """


def draw(
    logits: torch.Tensor, uniforms: torch.Tensor, *, temperature: float, top_p: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw one index per row by temperature and nucleus (Holtzman et al. 2019, arXiv 1904.09751).

    The nucleus is the smallest set of likeliest tokens whose probabilities add up to `top_p`;
    tokens as likely as its least likely one belong to it. The index is the inverse of the
    cumulative distribution at `uniforms`, so it needs no random generator of the device.

    Args:
        logits: (B, K), at least one finite in each row; -inf is never drawn.
        uniforms: (B,) float64 in [0, 1).
        temperature: divides the logits first; 0 takes the likeliest token.
        top_p: in (0, 1].

    Returns:
        (indices, rests): (B,) indices into K, and (B,) float64 in [0, 1), where the uniform number
        lies in the interval of the index: uniform too, and independent of the index.
    """
    if temperature == 0:
        return logits.argmax(-1), uniforms
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
    places = torch.searchsorted(cumulative, target, right=True)  # (B, 1)
    mass = weights.double().gather(-1, places)
    rests = (target - cumulative.gather(-1, places) + mass) / mass
    return places[:, 0], rests[:, 0].clamp(0, 1 - 2**-53)


def draw_tokens(
    logits: torch.Tensor,
    uniforms: torch.Tensor,
    rules: Sequence[TokenRule | None],
    *,
    temperature: float,
    top_p: float,
) -> list[int]:
    """Draw the next token of each text among those that its rule allows.

    Args:
        logits: (B, V).
        uniforms: (B,) float64 in [0, 1).
        rules: of each text, see `TokenRule`; None allows every token.
        temperature: see `draw`.
        top_p: see `draw`.

    Returns:
        B token ids.
    """
    if all(rule is None for rule in rules):
        return draw(logits, uniforms, temperature=temperature, top_p=top_p)[0].tolist()
    everything = np.arange(logits.shape[1])
    uniforms = uniforms.clone()
    drawn = np.zeros(len(rules), dtype=np.int64)
    rows = list(range(len(rules)))  # without a token
    while rows:
        asked = [rules[row] for row in rows]
        choices = [everything if r is None else r.candidates().ids.numpy() for r in asked]
        table = np.full((len(rows), max(map(len, choices))), -1)  # (B, K)
        for line, choice in zip(table, choices, strict=True):
            line[: len(choice)] = choice
        tokens = torch.from_numpy(table).to(logits.device)
        left = logits if len(rows) == len(logits) else logits[rows]
        scores = left.gather(1, tokens.clamp_min(0)).masked_fill_(tokens < 0, -torch.inf)
        places, rests = draw(scores, uniforms[rows], temperature=temperature, top_p=top_p)
        drawn[rows] = table[np.arange(len(table)), places.cpu().numpy()]
        uniforms[rows] = rests
        rows = [
            row
            for row, rule in zip(rows, asked, strict=True)
            if rule is not None and not rule.accepts(int(drawn[row]))
        ]
    found: list[int] = drawn.tolist()
    return found


def _descending(weights: torch.Tensor) -> torch.Tensor:
    if weights.is_cuda:
        return weights.sort(-1, descending=True).values
    # On the CPU torch orders the indices as well and takes seven times as long.
    return torch.from_numpy(np.sort(weights.numpy(), -1)[:, ::-1].copy())
