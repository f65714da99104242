"""The tokens with which a tokenizer writes each value of each field of a `wyckoff` text."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from llm_prior.errors import PriorError
from llm_prior.fields import read_tokens
from llm_prior.layouts.wyckoff import LETTERS
from llm_prior.prompts import GENERATION_TAILS
from llm_prior.text import SYMBOLS
from llm_prior.tries import Legal, legal_of
from llm_prior.wyckoff.parameters import cell_ticks
from llm_prior.wyckoff.table import NUM_GROUPS
from llm_prior.wyckoff.text import WyckoffFormat

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_MOST_VALUES = 20_000
_MOST_REMEMBERED = 1000  # sets of values whose tokens are kept
_SHORT = 128  # values
_SHAPES = (  # of trial texts: the largest cell, and fields that others follow
    ("group", *("element", "letter") * 2, "first_length", *("length",) * 2, *("angle",) * 3,
     *("first_coord", "coord", "coord") * 2),
    ("group", "element", "letter", "first_length", "first_coord", "first_coord"),
    ("group", "element", "letter", "first_length", "length", "first_coord", "coord"),
)  # fmt: skip
Choices = tuple[tuple[str, NDArray[np.int64]], ...]  # kinds of fields, each with values
_STRIDES = (1, 3, 7)  # of the values of neighbouring fields, so that their pairs vary


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
        self._single = {
            (kind, found[kind][value][0]): row
            for row, (kind, value) in enumerate(self._fields)
            if len(found[kind][value]) == 1
        }
        for kind, values in found.items():
            for tokens in values.values():
                if len(tokens) > 1:  # so its first token may be more than the value
                    self._single.pop((kind, tokens[0]), None)
        self._remembered: dict[tuple[tuple[str, bytes | int], ...], tuple[Choices, Legal]] = {}

    def rows(self, choices: Choices) -> NDArray[np.int64]:
        """Return the rows of values.

        Args:
            choices: kinds of fields, each with its (k,) values.
        """
        return np.concatenate([self._first[kind] + values for kind, values in choices])

    def single(self, kind: str, token: int) -> int | None:
        """Return the row of the value that a token is, if no other value begins with it.

        Args:
            kind: kind of field.
            token: token id.
        """
        return self._single.get((kind, token))

    def first_tokens(self, choices: Choices) -> Legal:
        """Return the first tokens of values, remembered for the sets that came last.

        Args:
            choices: kinds of fields, each with its (k,) values.
        """
        # Long rows of values are shared by all places, so that each is one object.
        key = tuple(
            (kind, values.tobytes() if len(values) <= _SHORT else id(values))
            for kind, values in choices
        )
        _, found = self._remembered.pop(key, (choices, None))
        if found is None:
            found = legal_of(self.tokens[self.rows(choices), 0])
            if len(self._remembered) == _MOST_REMEMBERED:
                del self._remembered[next(iter(self._remembered))]  # the least recent
        self._remembered[key] = choices, found  # the choices are kept, so an id stays theirs
        return found

    def field(self, row: int) -> tuple[str, int]:
        """Return the kind and the value of a row.

        Args:
            row: place in `tokens`.
        """
        return self._fields[row]


def _words(fmt: WyckoffFormat) -> dict[str, list[tuple[int, str]]]:
    """Return (value, text with the white space before it) of the values of each field."""

    def numbers(name: Literal["length", "angle"], decimals: int) -> list[tuple[int, str]]:
        ticks = cell_ticks(name, (fmt.length_decimals, fmt.angle_decimals)).tolist()
        if len(ticks) > _MOST_VALUES:
            raise PriorError(
                f"text.{name}_decimals {decimals} is too fine for the text to be constrained; "
                "sample without constraint"
            )
        return [(tick, f"{tick / 10**decimals:.{decimals}f}") for tick in ticks]

    lengths = numbers("length", fmt.length_decimals)
    angles = numbers("angle", fmt.angle_decimals)
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
        steps = range(max(len(words[kind]) for kind in shape))
        columns = []
        for place, kind in enumerate(shape):
            count = len(words[kind])
            stride = _STRIDES[place % len(_STRIDES)]
            stride = 1 if math.gcd(stride, count) > 1 else stride
            fields = [(kind, value, text) for value, text in words[kind]]
            columns.append([fields[(step * stride + place) % count] for step in steps])
        trials += [list(trial) for trial in zip(*columns, strict=True)]
    return trials
