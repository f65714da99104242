"""Data blocks of a CIF: their values by tag, and numbers with standard uncertainties.

gemmi reads the syntax (CIF 1.1). Every block is read by itself, so that one with an error does not
hide the others, and so that two blocks may have one name.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from gemmi import cif

from flowllm.errors import InvalidCrystal, one_line

# The begin of a data block, or of a text field, which may hold such a line.
_MARK = re.compile(r"^(?:(;)|[ \t]*data_(\S*))", re.MULTILINE | re.IGNORECASE)
_POSITION = re.compile(r"^string:(\d+)(?::\d+\(\d+\))?(?: in data_\S*)?:? *")
_NUMBER = re.compile(r"([+-]?(?:\d+(?:\.(\d*))?|\.(\d+))(?:[eE]([+-]?\d{1,3}))?)(?:\(\d+\))?")
_SYNTAX_ONLY = 0  # level of gemmi's checks, which else refuse a repeated tag


@dataclass(frozen=True)
class Block:
    """One data block.

    Attributes:
        name: without `data_`; empty if it has none.
        columns: tag -> its values; a tag outside a loop has one, or several if it is repeated.
            Tags are in lower case with `_` for `.`, so that `_atom_site.fract_x` of DDLm and mmCIF
            is `_atom_site_fract_x`. The values `?` (unknown) and `.` (not applicable) are None.
    """

    name: str
    columns: dict[str, list[str | None]]

    def value(self, *tags: str) -> str | None:
        """Return the value of the first of several tags that has one.

        Args:
            *tags: names of one item in any case, the preferred one first.

        Returns:
            The value without white space around it; None if there is none.

        Raises:
            InvalidCrystal: if the tag has several values.
        """
        for tag in tags:
            column = self.columns.get(tag.lower(), ())
            values = {value.strip() for value in column if value and value.strip()}
            if len(values) > 1:
                raise InvalidCrystal("unreadable", f"{tag} has {len(values)} values; give one")
            if values:
                return values.pop()
        return None


def read_blocks(text: str) -> Iterator[Block | tuple[str, InvalidCrystal]]:
    """Yield the data blocks of a CIF in their order.

    Args:
        text: of the CIF.

    Yields:
        Each block; for one that is no CIF its name and the error, with the line in `text`.
    """
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    starts: list[tuple[int, str]] = []
    in_text = False
    for mark in _MARK.finditer(text):
        if mark[1]:
            in_text = not in_text
        elif not in_text:
            starts.append((mark.start(), mark[2]))
    if not starts:
        yield "", InvalidCrystal("unreadable", "no line begins with data_, so it holds no data")
        return
    head = text[: starts[0][0]]
    for number_of_line, words in enumerate(head.split("\n"), start=1):
        if words.strip() and not words.lstrip().startswith("#"):
            problem = f"line {number_of_line} stands before the first data block"
            yield "", InvalidCrystal("unreadable", problem)
            return
    ends = [start for start, _ in starts[1:]] + [len(text)]
    line = 0
    last = 0
    for (start, name), end in zip(starts, ends, strict=True):
        line += text.count("\n", last, start)
        last = start
        try:
            blocks = [_block(block) for block in cif.read_string(text[start:end], _SYNTAX_ONLY)]
        except (ValueError, RuntimeError) as error:
            yield name, InvalidCrystal("unreadable", _message(error, line))
            continue
        yield from blocks


def number(word: str | None) -> float | None:
    """Return the value of a CIF number such as `5.64`, `5.64(2)` or `.5`.

    Args:
        word: of the CIF.

    Returns:
        The number without its standard uncertainty; None if the word is no finite number.
    """
    match = _NUMBER.fullmatch(word) if word else None
    if match is None:
        return None
    value = float(match[1])
    return value if abs(value) < 1e100 else None


def last_place(word: str) -> float:
    """Return the unit of the last decimal place of a number; zeros at its end do not count.

    Args:
        word: a CIF number, such as `0.333` or `0.3330`.

    Returns:
        0.001 in this example; 0 for a number with less than two decimals, which counts as exact.
    """
    match = _NUMBER.fullmatch(word)
    if match is None:
        return 0.0
    decimals = len((match[2] or match[3] or "").rstrip("0")) - int(match[4] or 0)
    return 10.0**-decimals if decimals >= 2 else 0.0


def _block(block: cif.Block) -> Block:
    columns: dict[str, list[str | None]] = {}
    for item in block:
        loop = item.loop
        if loop is not None:
            width, words = loop.width(), loop.values
            found = {tag: words[index::width] for index, tag in enumerate(loop.tags)}
        else:
            found = {tag: [word] for tag, word in (item.pair,)} if item.pair else {}
        for tag, words in found.items():
            name = tag.lower().replace(".", "_")
            values = [_value(word) for word in words]
            if loop is None:  # a tag may be repeated; `Block.value` compares the values
                columns.setdefault(name, []).extend(values)
            elif columns.setdefault(name, values) != values:
                raise ValueError(f"there are two columns {name}")
    return Block(block.name.strip(), columns)


def _value(word: str) -> str | None:
    return None if cif.is_null(word) else cif.as_string(word)


def _message(error: Exception, lines_before: int) -> str:
    text = str(error)
    match = _POSITION.match(text)
    if match is None:
        return one_line(text)
    cause = text[match.end() :]
    if cause == "parse error":
        cause = "not the syntax of a CIF; put quotation marks around a value with blanks"
    return one_line(f"line {lines_before + int(match[1])}: {cause}")
