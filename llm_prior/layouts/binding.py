"""The fields of a `wyckoff` text as tokens: `llm_prior.wyckoff.grammar` for one tokenizer.

A table holds the tokens with which the tokenizer writes each value of each field. While a field is
being written, the values that agree with its tokens so far are the rows of that table that are
left, so any tokenizer is followed: one token per field, one per digit, or anything between.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from llm_prior.composition import CompositionRule
from llm_prior.errors import PriorError
from llm_prior.fields import read_tokens
from llm_prior.layouts.wyckoff import LETTERS, WyckoffLayout
from llm_prior.prompts import GENERATION_TAILS
from llm_prior.text import SYMBOLS
from llm_prior.tries import Legal
from llm_prior.wyckoff.grammar import Cursor, Grammar
from llm_prior.wyckoff.spacing import ANGLE_BOUNDS, LENGTH_BOUNDS, ticks_between
from llm_prior.wyckoff.table import NUM_GROUPS, space_group
from llm_prior.wyckoff.text import WyckoffFormat, hidden_places

_MOST_VALUES = 20_000
_SHAPES = (  # of trial texts: the largest cell, and fields that others follow
    ("group", *("element", "letter") * 2, "first_length", *("length",) * 2, *("angle",) * 3,
     *("first_coord", "coord", "coord") * 2),
    ("group", "element", "letter", "first_length", "first_coord", "first_coord"),
    ("group", "element", "letter", "first_length", "length", "first_coord", "coord"),
)  # fmt: skip
_STRIDES = (1, 3, 7)  # of the values of neighbouring fields, so that their pairs vary


class TokenGrammar:
    """The tokens that may follow in a `wyckoff` text, for one tokenizer.

    Args:
        tokenizer: a fast tokenizer with an end-of-sequence token.
        layout: the layout with its precision.

    Raises:
        PriorError: if the tokenizer does not reproduce the text field by field, or the format has
            too many decimals.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, layout: WyckoffLayout) -> None:
        if tokenizer.eos_token_id is None:
            raise PriorError("this tokenizer has no eos_token; name one")
        self._layout = layout
        self._table = TokenTable(tokenizer, layout.wyckoff_format)

    def constraint(
        self, conditions: Mapping[str, Any], *, exclude_elements: Sequence[str] = ()
    ) -> TokenConstraint:
        """Return the constraint of a request; all sequences of the request share it.

        Args:
            conditions: values by name. Every text meets `formula`, `elements`, `num_atoms` and
                `spacegroup`; the other conditions constrain nothing.
            exclude_elements: symbols that are never written.

        Raises:
            PriorError: if no crystal up to `max_atoms` can meet the conditions.
        """
        return TokenConstraint(self._table, self._layout.fields(conditions, exclude_elements))


class TokenConstraint:
    """The constraint of one request.

    Args:
        table: tokens of each value.
        fields: the fields that the request allows.

    Attributes:
        rule: constraint on the elements.
        max_tokens: limit on the tokens of an answer, end of sequence included.
    """

    def __init__(self, table: TokenTable, fields: Grammar) -> None:
        self.rule: CompositionRule = fields.rule
        self._table = table
        self._fields = fields
        longest = table.longest
        orbit = longest["element"] + longest["letter"]
        orbit += longest["first_coord"] + 2 * longest["coord"]
        cell = longest["first_length"] + 2 * longest["length"] + 3 * longest["angle"]
        self.max_tokens = longest["group"] + self.rule.max_atoms * orbit + cell + 1

    def cursor(self) -> TokenCursor:
        """Return a cursor before the first token of a new sequence."""
        return TokenCursor(self._table, self._fields)


class TokenCursor:
    """A place in a sequence that is being written.

    Args:
        table: tokens of each value.
        fields: the fields that the request allows.

    Attributes:
        finished: True once the end of sequence is written.
    """

    def __init__(self, table: TokenTable, fields: Grammar) -> None:
        self.finished = False
        self._table = table
        self._fields = fields
        self._text = _FieldText(fields)
        self._rows: NDArray[np.int64] | None = None  # values that agree with the tokens so far
        self._depth = 0  # tokens of the present field
        self._legal: Legal | None = None

    @property
    def is_certain(self) -> bool:
        """True if the crystal of the text meets all that the grammar promises."""
        return self.finished and not self._text.crowded

    def legal(self) -> Legal:
        """Return the tokens that may come next.

        Raises:
            ValueError: if the sequence is finished.
        """
        if self.finished:
            raise ValueError("the sequence is finished")
        if self._legal is None:
            ids = self._column()
            ended = ids < 0
            if ended.any():  # as N may become Nb, or a group of 2 one of 22
                following = self._table.tokens[self._following().rows(self._table), 0]
                ids = np.concatenate([ids[~ended], following])
            ids = np.unique(ids)
            self._legal = Legal(torch.from_numpy(ids), int(ids[0]) if len(ids) == 1 else None)
        return self._legal

    def advance(self, token: int) -> None:
        """Take a token as written.

        Args:
            token: one of `legal().ids`.

        Raises:
            ValueError: if it is none of them.
        """
        if self.finished:
            raise ValueError("the sequence is finished")
        column = self._column()
        assert self._rows is not None  # `_column` sets them
        rows = self._rows[column == token]
        if not len(rows):
            if not (column < 0).any():
                raise ValueError(f"token {token} may not come here")
            following = self._following()
            rows, depth = following.rows(self._table), 0
            rows = rows[self._table.tokens[rows, 0] == token]
            if not len(rows):
                raise ValueError(f"token {token} may not come here")
            self._text = following
        else:
            depth = self._depth
        self._legal = None
        self._rows, self._depth = rows, depth + 1
        if len(rows) == 1 and self._table.tokens[rows[0], self._depth] < 0:
            self._text.write(*self._table.field(int(rows[0])))
            self.finished = self._text.finished
            self._rows, self._depth = None, 0

    def _column(self) -> NDArray[np.int64]:
        """Return the next token of each value that is left; -1 where it has ended."""
        if self._rows is None:
            self._rows = self._text.rows(self._table)
        return self._table.tokens[self._rows, self._depth]

    def _following(self) -> _FieldText:
        """Return the text if the present field ends here."""
        assert self._rows is not None
        (row,) = self._rows[self._table.tokens[self._rows, self._depth] < 0].tolist()
        text = _FieldText(self._fields)
        for kind, value in [*self._text.written, self._table.field(row)]:
            text.write(kind, value)
        return text


class _FieldText:
    """Fields that are written, and those that may follow."""

    def __init__(self, grammar: Grammar) -> None:
        self.written: list[tuple[str, int]] = []
        self._cursor: Cursor = grammar.cursor()
        self._starts: frozenset[int] = frozenset()  # coordinates that begin the line of an orbit
        self._num_coords = 0
        self._has_cell = False

    @property
    def finished(self) -> bool:
        return self._cursor.finished

    @property
    def crowded(self) -> bool:
        return self._cursor.crowded

    def rows(self, table: TokenTable) -> NDArray[np.int64]:
        """Return the rows of the table that may come next."""
        parts = []
        for choice in self._cursor.legal():
            kind: str = choice.kind
            if kind == "length" and not self._has_cell:
                kind = "first_length"
            elif kind == "coord" and self._num_coords in self._starts:
                kind = "first_coord"
            parts.append(table.rows(kind, choice.values))
        return np.concatenate(parts)

    def write(self, kind: str, value: int) -> None:
        """Write a field."""
        self.written.append((kind, value))
        if kind == "first_length":
            self._has_cell = True
            self._starts = frozenset(self._line_starts())
        elif kind in ("first_coord", "coord"):
            self._num_coords += 1
        self._cursor.advance(_KIND_OF.get(kind, kind), value)  # type: ignore[arg-type]  # a `Kind`

    def _line_starts(self) -> Iterator[int]:
        group = space_group(self.written[0][1])
        letters = [LETTERS[value] for kind, value in self.written if kind == "letter"]
        start = 0
        for number, letter in enumerate(letters):
            yield start
            hidden = hidden_places(group, letter, first=number == 0)
            start += group.position(letter).num_free - len(hidden)


_KIND_OF = {"first_length": "length", "first_coord": "coord"}


class TokenTable:
    """The tokens of every value of every field.

    Args:
        tokenizer: a fast tokenizer with an end-of-sequence token.
        fmt: precision of the text.

    Attributes:
        tokens: (M, L + 1) token ids of each value, filled up with -1.
        longest: most tokens of a value, by kind of field.

    Raises:
        PriorError: if the tokenizer does not reproduce the text field by field, or the format has
            too many decimals.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, fmt: WyckoffFormat) -> None:
        words = _words(fmt)
        found: dict[str, dict[int, tuple[int, ...]]] = {
            **read_tokens(tokenizer, _trials(words), GENERATION_TAILS["wyckoff"]),
            "end": {0: (tokenizer.eos_token_id,)},
        }
        self.longest = {kind: max(map(len, values.values())) for kind, values in found.items()}
        self._fields = [(kind, value) for kind in found for value in sorted(found[kind])]
        self.tokens = np.full((len(self._fields), max(self.longest.values()) + 1), -1)
        for row, (kind, value) in enumerate(self._fields):
            self.tokens[row, : len(found[kind][value])] = found[kind][value]
        self._first: dict[str, int] = {}  # row of a kind's value 0, if it had one
        for row, (kind, value) in enumerate(self._fields):
            self._first.setdefault(kind, row - value)  # the values of a kind have no gap

    def rows(self, kind: str, values: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the rows of values.

        Args:
            kind: kind of field.
            values: (k,) values.
        """
        return self._first[kind] + values

    def field(self, row: int) -> tuple[str, int]:
        """Return the kind and the value of a row.

        Args:
            row: place in `tokens`.
        """
        return self._fields[row]


def _words(fmt: WyckoffFormat) -> dict[str, list[tuple[int, str]]]:
    """Return (value, text with the white space before it) of the values of each field."""

    def numbers(name: str, bounds: tuple[float, float], decimals: int) -> list[tuple[int, str]]:
        ticks = ticks_between(bounds, decimals).tolist()
        if len(ticks) > _MOST_VALUES:
            raise PriorError(
                f"text.{name}_decimals {decimals} is too fine for the text to be constrained; "
                "sample without constraint"
            )
        return [(tick, f"{tick / 10**decimals:.{decimals}f}") for tick in ticks]

    lengths = numbers("length", LENGTH_BOUNDS, fmt.length_decimals)
    angles = numbers("angle", ANGLE_BOUNDS, fmt.angle_decimals)
    coords = [(k, f"{k / fmt.coord_bins:.{fmt.coord_decimals}f}") for k in range(fmt.coord_bins)]
    return {
        "group": [(number, str(number)) for number in range(1, NUM_GROUPS + 1)],
        "element": [(place, "\n" + symbol) for place, symbol in enumerate(SYMBOLS)],
        "letter": [(place, " " + letter) for place, letter in enumerate(LETTERS)],
        "first_length": [(value, "\n" + word) for value, word in lengths],
        "length": [(value, " " + word) for value, word in lengths],
        "angle": [(value, " " + word) for value, word in angles],
        "first_coord": [(value, "\n" + word) for value, word in coords],
        "coord": [(value, " " + word) for value, word in coords],
    }


def _trials(words: Mapping[str, Sequence[tuple[int, str]]]) -> list[list[tuple[str, int, str]]]:
    """Return texts as (kind, value, text) of each field; every value occurs at every place."""
    trials = []
    for shape in _SHAPES:
        for step in range(max(len(words[kind]) for kind in shape)):
            trial = []
            for place, kind in enumerate(shape):
                count = len(words[kind])
                stride = _STRIDES[place % len(_STRIDES)]
                stride = 1 if np.gcd(stride, count) > 1 else stride
                trial.append((kind, *words[kind][(step * stride + place) % count]))
            trials.append(trial)
    return trials
