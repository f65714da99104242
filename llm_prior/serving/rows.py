"""The texts that a server writes: which token comes next in each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from llm_prior.drawing import draw_tokens
from llm_prior.errors import PriorError
from llm_prior.layouts import layout_of
from llm_prior.settings import read_settings
from llm_prior.text import TextFormat

if TYPE_CHECKING:
    from llm_prior.layouts import TextConstraint, TextCursor

_MOST_KNOWN = 4096  # constraints that are kept


class Constraints:
    """The constraints of requests by their conditions, for one saved prior.

    Args:
        folder: of the prior; only its settings and its tokenizer are read.
    """

    def __init__(self, folder: str) -> None:
        from transformers import AutoTokenizer

        fmt = TextFormat(**read_settings(folder)["text"])
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        self._grammar = layout_of(fmt).grammar(tokenizer)
        self._known: dict[str, TextConstraint] = {}

    def find(
        self, conditions: Mapping[str, Any], exclude_elements: Sequence[str]
    ) -> TextConstraint:
        """Return the constraint of a request.

        Args:
            conditions: values by name.
            exclude_elements: symbols that are never written.

        Raises:
            PriorError: if no crystal can meet the conditions.
        """
        key = repr((sorted(conditions.items()), list(exclude_elements)))
        if key not in self._known:
            if len(self._known) >= _MOST_KNOWN:
                self._known.clear()
            self._known[key] = self._grammar.constraint(
                conditions, exclude_elements=exclude_elements
            )
        return self._known[key]


class Row:
    """A text that is being written.

    The next token is a function of the tokens before it. A server may ask for it again, as when it
    read a prompt in parts, and it may take the text up again in another place.

    Args:
        constraint: of the request; None allows every token.
        uniforms: see `llm_prior.decoding.Answer`.
        written: the tokens so far; the server appends to this list.
        temperature: see `llm_prior.drawing.draw`.
        top_p: see `llm_prior.drawing.draw`.
    """

    def __init__(
        self,
        constraint: TextConstraint | None,
        uniforms: Sequence[float],
        written: Sequence[int],
        *,
        temperature: float,
        top_p: float,
    ) -> None:
        self.sampling = temperature, top_p
        self._constraint = constraint
        self._uniforms = uniforms
        self._written = written
        self._cursor: TextCursor | None = None
        self._taken = 0  # tokens that the cursor has taken

    @property
    def uniform(self) -> float:
        """The random number of the next token."""
        return self._uniforms[len(self._written)]

    def cursor(self) -> TextCursor | None:
        """Return the cursor behind the tokens so far, for one draw: a draw leaves traces in it."""
        if self._constraint is None:
            return None
        if self._cursor is None or self._taken == len(self._written):
            self._cursor, self._taken = self._constraint.cursor(), 0
        for token in self._written[self._taken :]:
            write(self._cursor, token)
        self._taken = len(self._written)
        return self._cursor


def write(cursor: TextCursor, token: int) -> None:
    """Take a token as written, at the cost of examining it alone.

    Args:
        cursor: before the token.
        token: its id.

    Raises:
        ValueError: if it may not come next.
    """
    cursor.accepts(token)
    cursor.advance(token)


def next_tokens(rows: Sequence[Row], logits: torch.Tensor) -> list[int]:
    """Draw the next token of each text.

    Args:
        rows: the texts.
        logits: (B, V), one row for each text.

    Raises:
        PriorError: if the model computes NaN.
    """
    if logits.isnan().any():
        raise PriorError(
            "the model computes NaN, so its weights are damaged; train or copy it again"
        )
    tokens = [0] * len(rows)
    for sampling in dict.fromkeys(row.sampling for row in rows):
        places = [place for place, row in enumerate(rows) if row.sampling == sampling]
        temperature, top_p = sampling
        drawn = draw_tokens(
            logits if len(places) == len(rows) else logits[places],
            torch.tensor(
                [rows[place].uniform for place in places],
                dtype=torch.float64,
                device=logits.device,
            ),
            [rows[place].cursor() for place in places],
            temperature=temperature,
            top_p=top_p,
        )
        for place, token in zip(places, drawn, strict=True):
            tokens[place] = token
    return tokens
