"""The fields of a crystal's text, and the tokens with which a tokenizer writes their values.

A text of `llm_prior.text.encode` is a row of fields (three lengths, three angles, then per site its
element and three coordinates), each with the white space before it. A field has finitely many
values, so the tokens of each value are read once from trial texts.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import TYPE_CHECKING, Literal, TypeVar

from llm_prior.errors import PriorError
from llm_prior.prompts import GENERATION_TAILS
from llm_prior.text import ANGLE_RANGE, LENGTH_RANGE, SYMBOLS, TextFormat

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Kind = Literal["first_length", "length", "first_angle", "angle", "element", "first_coord", "coord"]
FieldTokens = dict[Kind, dict[int, tuple[int, ...]]]
AnyKind = TypeVar("AnyKind", bound=str)

_CELL: tuple[Kind, ...] = ("first_length", "length", "length", "first_angle", "angle", "angle")
_SITE: tuple[Kind, ...] = ("element", "first_coord", "coord", "coord")
_PREFIX: dict[Kind, str] = {
    "first_length": "",
    "length": " ",
    "first_angle": "\n",
    "angle": " ",
    "element": "\n",
    "first_coord": "\n",
    "coord": " ",
}
_MOST_VALUES = 20_000
_SITES = 2  # of a trial text: a site is followed by another one, or by the end
_STRIDES = (1, 3, 7)  # of the values of neighbouring fields, so that their pairs vary


def field_tokens(tokenizer: PreTrainedTokenizerBase, fmt: TextFormat) -> FieldTokens:
    """Return the tokens of every value of every field of the layout `sites`.

    A value is given by its tick: a length, angle or coordinate in units of its last decimal, an
    element by its place in `SYMBOLS`.

    Args:
        tokenizer: a fast tokenizer.
        fmt: the text format.

    Returns:
        kind of field -> tick -> token ids.

    Raises:
        PriorError: if the format has too many decimals to list the values, or the tokenizer does
            not reproduce the text, or has tokens across two fields.
    """
    return read_tokens(tokenizer, _trials(fmt), GENERATION_TAILS["sites"])


def read_tokens(
    tokenizer: PreTrainedTokenizerBase,
    trials: Sequence[Sequence[tuple[AnyKind, int, str]]],
    tail: str,
) -> dict[AnyKind, dict[int, tuple[int, ...]]]:
    """Return the tokens of every value of every field, as the tokenizer writes them in texts.

    Args:
        tokenizer: a fast tokenizer.
        trials: texts as (kind, value, text with the white space before it) of each field.
        tail: end of the prompt before a text.

    Returns:
        kind of field -> value -> token ids.

    Raises:
        PriorError: if the tokenizer does not reproduce the texts, writes a value in several ways,
            or has tokens across two fields.
    """
    texts = ["".join(text for *_, text in trial) for trial in trials]
    rows = tokenizer([tail + text for text in texts], add_special_tokens=False)
    pieces = _pieces(tokenizer, {token for row in rows["input_ids"] for token in row})
    found: dict[AnyKind, dict[int, tuple[int, ...]]] = {}
    for trial, text, row in zip(trials, texts, rows["input_ids"], strict=True):
        whole = tail + text
        ends = [0, *accumulate(len(pieces[token]) for token in row)]
        spare = ends[-1] - len(whole)  # white space that some tokenizers begin every text with
        if "".join(pieces[token] for token in row) != " " * spare + whole:
            raise PriorError(
                "this tokenizer does not reproduce the text of a crystal (has it a token for every "
                f"character of {text!r}?); use another base model"
            )
        place_of = {end: place for place, end in enumerate(ends)}
        border = spare + len(tail)
        start = begin = place_of.get(border)
        for kind, tick, word in trial:
            border += len(word)
            stop = place_of.get(border)
            if start is None or stop is None:
                raise PriorError(
                    f"this tokenizer has a token that joins {word!r} with the text beside it, "
                    "so the text cannot be constrained; sample without constraint"
                )
            tokens = tuple(row[start:stop])
            if found.setdefault(kind, {}).setdefault(tick, tokens) != tokens:
                raise PriorError(
                    f"this tokenizer writes {word!r} in more than one way, so the text cannot be "
                    "constrained; sample without constraint"
                )
            start = stop
        if tokenizer.decode(row[begin:], skip_special_tokens=True) != text:
            raise PriorError(
                f"this tokenizer does not decode its own tokens of {text!r} to that text; "
                "use another base model"
            )
    return found


def _trials(fmt: TextFormat) -> list[list[tuple[Kind, int, str]]]:
    """Return texts as (kind, tick, text) of each field; every value occurs at every place."""
    words = {kind: list(_words(kind, fmt)) for kind in _PREFIX}
    trials = []
    for step in range(max(map(len, words.values()))):
        trial = []
        for place, kind in enumerate(_CELL + _SITE * _SITES):
            count = len(words[kind])
            stride = _STRIDES[place % len(_STRIDES)]
            if math.gcd(stride, count) > 1:
                stride = 1
            tick, word = words[kind][(step * stride + place) % count]
            trial.append((kind, tick, _PREFIX[kind] + word))
        trials.append(trial)
    return trials


def angle_ticks(fmt: TextFormat) -> range:
    """Return the angles that may be written, in units of their last decimal.

    Args:
        fmt: the text format.
    """
    return _ticks(ANGLE_RANGE, fmt.angle_decimals)


def _ticks(bounds: Sequence[float], decimals: int) -> range:
    low, high = (round(bound * 10**decimals) for bound in bounds)
    return range(max(low, 1), high + 1)


def _words(kind: Kind, fmt: TextFormat) -> Iterator[tuple[int, str]]:
    """Yield (tick, text without white space) of each value."""
    if kind == "element":
        yield from enumerate(SYMBOLS)
        return
    if kind in ("first_length", "length"):
        name, decimals = "length", fmt.length_decimals
        ticks = _ticks(LENGTH_RANGE, decimals)
    elif kind in ("first_angle", "angle"):
        name, decimals = "angle", fmt.angle_decimals
        ticks = angle_ticks(fmt)
    else:
        name, decimals = "coord", fmt.coord_decimals
        ticks = range(10**decimals)
    if len(ticks) > _MOST_VALUES:
        raise PriorError(
            f"text.{name}_decimals {decimals} is too fine for the text to be constrained; "
            "sample without constraint"
        )
    for tick in ticks:
        yield tick, f"{tick / 10**decimals:.{decimals}f}"


def _pieces(tokenizer: PreTrainedTokenizerBase, tokens: set[int]) -> dict[int, str]:
    """Return the text that each token adds behind another (some decoders strip the first)."""
    anchor = tokenizer("0", add_special_tokens=False)["input_ids"][-1]
    start = len(tokenizer.decode([anchor]))
    ordered = sorted(tokens)
    decoded = tokenizer.batch_decode([[anchor, token] for token in ordered])
    return {token: text[start:] for token, text in zip(ordered, decoded, strict=True)}
