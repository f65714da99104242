"""The fields of a `wyckoff` text as tokens: `llm_prior.wyckoff.grammar` for one tokenizer.

While a field is being written, the values that agree with its tokens so far are the rows of the
table that are left, so any tokenizer is followed: one token per field, one per digit, or anything
between.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from llm_prior.composition import CompositionRule
from llm_prior.errors import PriorError
from llm_prior.layouts.token_table import Choices, TokenTable
from llm_prior.layouts.wyckoff import LETTERS, WyckoffLayout
from llm_prior.tries import Legal, legal_of
from llm_prior.wyckoff.feasibility import sizes
from llm_prior.wyckoff.grammar import Choice, Cursor, Grammar, Kind
from llm_prior.wyckoff.table import space_group
from llm_prior.wyckoff.text import hidden_places

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_MOST_REFUSED = 16  # tokens in one place, before all are examined


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
        self._last: tuple[str, TokenConstraint] | None = None  # what was asked for, and the answer

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
        asked = repr((dict(conditions), tuple(exclude_elements)))
        if self._last is None or self._last[0] != asked:
            fields = self._layout.fields(conditions, exclude_elements)
            self._last = asked, TokenConstraint(self._table, fields)
        return self._last[1]  # the batches of a run share what its grammar remembers


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
        # Orbits of the group with the smallest positions.
        smallest = min(min(sizes(number).atoms) for number in fields.requested)
        most_orbits = max(self.rule.max_atoms // smallest, 1)
        orbit = longest["element"] + longest["letter"]
        orbit += longest["first_coord"] + 2 * longest["coord"]
        cell = longest["first_length"] + 2 * longest["length"] + 3 * longest["angle"]
        self.max_tokens = longest["group"] + most_orbits * orbit + cell + 1

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
        self._accepted: tuple[int, int] | None = None  # a token and the row of its value
        self._refused: list[int] = []  # tokens that may not come next

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
            self._legal = legal_of(ids)
        return self._legal

    def candidates(self) -> Legal:
        """Return tokens of which some may come next; all that may are among them.

        They are found at once, and `accepts` examines one of them, while `legal` examines all
        values. After many refusals they are those of `legal`.

        Raises:
            ValueError: if the sequence is finished.
        """
        examined = self._rows is not None or self._legal is not None
        if self.finished or examined or len(self._refused) > _MOST_REFUSED:
            return self.legal()
        found = self._text.candidates(self._table)
        if self._refused:
            found = legal_of(np.setdiff1d(found.ids.numpy(), self._refused))
        return found if len(found.ids) else self.legal()

    def accepts(self, token: int) -> bool:
        """Return whether one of the `candidates` may come next; if not, it is none any more.

        Args:
            token: the token.
        """
        row = None if self._rows is not None else self._text.row_of(self._table, token)
        if row is None:
            return bool((self.legal().ids == token).any())
        # The token is a whole value, which is examined alone.
        accepted = self._text.accepts(*self._table.field(row))
        if accepted:
            self._accepted = token, row
        else:
            self._refused.append(token)
        return accepted

    def advance(self, token: int) -> None:
        """Take a token as written.

        Args:
            token: one of `legal().ids`.

        Raises:
            ValueError: if it is none of them.
        """
        if self.finished:
            raise ValueError("the sequence is finished")
        if self._accepted is not None and self._accepted[0] == token:
            self._write(self._accepted[1])
            return
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
            self._write(int(rows[0]))

    def _write(self, row: int) -> None:
        """Close the present field with a value."""
        self._text.write(*self._table.field(row))
        self.finished = self._text.finished
        self._rows, self._depth = None, 0
        self._legal = self._accepted = None
        self._refused = []

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
        return table.rows(self._named(self._cursor.legal()))

    def candidates(self, table: TokenTable) -> Legal:
        """Return first tokens of fields of which some may come next, see `TokenCursor`."""
        return table.first_tokens(self._named(self._cursor.candidates()))

    def row_of(self, table: TokenTable, token: int) -> int | None:
        """Return the row of the value that is written with this token alone, if there is one."""
        kinds = (kind for kind, _ in self._named(self._cursor.candidates()))
        rows = (table.single(kind, token) for kind in kinds)
        return next((row for row in rows if row is not None), None)

    def accepts(self, kind: str, value: int) -> bool:
        """Return whether a field may come next."""
        return self._cursor.accepts(_field_kind(kind), value)

    def write(self, kind: str, value: int) -> None:
        """Write a field."""
        self.written.append((kind, value))
        if kind == "first_length":
            self._has_cell = True
            self._starts = frozenset(self._line_starts())
        elif kind in ("first_coord", "coord"):
            self._num_coords += 1
        self._cursor.advance(_field_kind(kind), value)

    def _named(self, choices: Sequence[Choice]) -> Choices:
        """Return (kind, values) with the kinds of the table, which tell the places in a line."""
        found = []
        for kind, values in choices:
            name: str = kind
            if kind == "length" and not self._has_cell:
                name = "first_length"
            elif kind == "coord" and self._num_coords in self._starts:
                name = "first_coord"
            found.append((name, values))
        return tuple(found)

    def _line_starts(self) -> Iterator[int]:
        group = space_group(self.written[0][1])
        letters = [LETTERS[value] for kind, value in self.written if kind == "letter"]
        start = 0
        for number, letter in enumerate(letters):
            yield start
            hidden = hidden_places(group, letter, first=number == 0)
            start += group.position(letter).num_free - len(hidden)


def _field_kind(name: str) -> Kind:
    kind: Any = {"first_length": "length", "first_coord": "coord"}.get(name, name)
    found: Kind = kind
    return found
