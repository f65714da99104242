"""Tables with a crystal in each row: CSV and parquet."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from flowllm.crystals.columns import MISSING, WORD_COLUMNS
from flowllm.crystals.crystal import Geometry
from flowllm.crystals.documents import document
from flowllm.errors import InvalidCrystal, UserError, one_line

CRYSTAL_COLUMNS = ("cif", "structure", "initial_structure")  # the first that is there is read

_DELIMITERS = ",;\t"
_LARGEST_FIELD = 100_000_000  # characters; the default of the csv module is 131,072
_NUMBER = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?|[+-]?inf(?:inity)?", re.IGNORECASE)
_INTEGER = re.compile(r"[+-]?\d{1,18}")
_TRUTH = {"True": True, "False": False, "TRUE": True, "FALSE": False}


class TableRow(NamedTuple):
    """One row of a table.

    Attributes:
        number: of the row, from 1.
        source: text of a CIF, a geometry, or the reason why there is none.
        values: of the other columns.
        ignored: see `flowllm.crystals.documents.Document`.
        column: that holds the crystal.
    """

    number: int
    source: str | Geometry | InvalidCrystal
    values: dict[str, Any]
    ignored: dict[str, str]
    column: str


def parquet_rows(data: bytes, name: str, limit: int | None) -> Iterator[TableRow]:
    """Yield the rows of a parquet file.

    Args:
        data: content of the file.
        name: of the file, for messages.
        limit: number of rows at most; None: all.

    Yields:
        Each row.

    Raises:
        UserError: if the file is damaged, or has no column with crystals.
    """
    try:
        table = pq.read_table(pa.BufferReader(data)).slice(0, limit)
        records = table.to_pylist()
    except (ValueError, OSError, pa.ArrowException) as error:
        raise UserError(f"{name}: not a readable .parquet file: {one_line(error)}") from error
    column = crystal_column(name, table.column_names)
    for number, record in enumerate(records, start=1):
        yield table_row(number, record, column)


def csv_rows(text: str, name: str, limit: int | None) -> Iterator[TableRow]:
    """Yield the rows of a CSV file, whose delimiter is a comma, a semicolon or a tab.

    Columns of numbers become numbers, unless their name says that they hold words.

    Args:
        text: of the file.
        name: of the file, for messages.
        limit: number of rows at most; None: all.

    Yields:
        Each row; one with more or fewer fields than the header is a bad row.

    Raises:
        UserError: if quotes do not match, a column has no unique name, or none holds crystals.
    """
    header, lines = _lines(text, name, limit)
    column = crystal_column(name, header)
    columns = _columns(header, [line for line in lines if len(line) == len(header)])
    place = 0
    for number, line in enumerate(lines, start=1):
        if len(line) == len(header):
            yield table_row(number, {key: values[place] for key, values in columns.items()}, column)
            place += 1
            continue
        known = dict(zip(header, line, strict=False))
        values = {key: known[key] for key in WORD_COLUMNS & known.keys()}
        error = InvalidCrystal("unreadable", _wrong_length(line, header))
        yield TableRow(number, error, values, {}, "")


def csv_columns(text: str, name: str) -> dict[str, list[Any]]:
    """Return the columns of a CSV file; see `csv_rows`.

    Args:
        text: of the file.
        name: of the file, for messages.

    Returns:
        Column -> values.

    Raises:
        UserError: if quotes do not match, a column has no unique name, or a row has more or fewer
            fields than the header.
    """
    header, lines = _lines(text, name, None)
    for number, line in enumerate(lines, start=1):
        if len(line) != len(header):
            raise UserError(f"{name}: row {number}: {_wrong_length(line, header)}")
    return _columns(header, lines)


def parquet_columns(data: bytes, name: str) -> dict[str, list[Any]]:
    """Return the columns of a parquet file.

    Args:
        data: content of the file.
        name: of the file, for messages.

    Returns:
        Column -> values.

    Raises:
        UserError: if the file is damaged.
    """
    try:
        return dict(pq.read_table(pa.BufferReader(data)).to_pydict())
    except (ValueError, OSError, pa.ArrowException) as error:
        raise UserError(f"{name} is damaged: {one_line(error)}; give another") from error


def crystal_column(name: str, columns: list[str]) -> str:
    """Return the column that holds the crystals.

    Args:
        name: of the file, for messages.
        columns: of the table.

    Returns:
        The name of the column.

    Raises:
        UserError: if there is none.
    """
    found = next((column for column in CRYSTAL_COLUMNS if column in columns), None)
    if found is None:
        raise UserError(f"{name}: there is no column 'cif'; the columns are {', '.join(columns)}")
    return found


def table_row(number: int, record: dict[str, Any], column: str) -> TableRow:
    """Return one row of a table.

    Args:
        number: of the row, from 1.
        record: column -> value; the crystal is taken out.
        column: that holds the crystal.

    Returns:
        The row.
    """
    content = record.pop(column)
    if isinstance(content, bytes):
        content = content.decode("utf-8", errors="replace")
    if isinstance(content, str) and column == "cif":
        return TableRow(number, content, record, {}, column)
    if isinstance(content, str | Mapping):
        found = document(content)
        return TableRow(number, found.source, found.values | record, found.ignored, column)
    error = InvalidCrystal("unreadable", "empty")
    return TableRow(number, error, record, {}, column)


def _lines(text: str, name: str, limit: int | None) -> tuple[list[str], list[list[str]]]:
    """Return the fields of the header and of the rows."""
    csv.field_size_limit(_LARGEST_FIELD)
    head = text.split("\n", 1)[0]
    delimiter = max(_DELIMITERS, key=head.count)  # the comma, if none is there
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        header = [column.strip() for column in next(reader, [])]
        lines = []
        for line in reader:
            if line:
                lines.append(line)
            if limit is not None and len(lines) == limit:
                break
    except csv.Error as error:
        raise UserError(
            f"{name}: not a readable .csv file: line {reader.line_num}: {one_line(error)}"
        ) from error
    if not header:
        raise UserError(f"{name}: not a readable .csv file: it is empty")
    repeated = [column for column in header if column and header.count(column) > 1]
    if repeated:
        raise UserError(f"{name}: the column {repeated[0]!r} occurs twice; rename one")
    return header, lines


def _columns(header: list[str], lines: list[list[str]]) -> dict[str, list[Any]]:
    """Return the values of the columns of a CSV file."""
    words = zip(*lines, strict=True) if lines else [()] * len(header)
    return {
        key: _typed(key, values)
        for key, values in zip(header, words, strict=True)
        if key and not key.startswith("Unnamed: ")  # the index of a table of pandas
    }


def _wrong_length(line: list[str], header: list[str]) -> str:
    return f"{len(line)} fields, but the header has {len(header)}; is there a comma too many?"


def _typed(column: str, words: tuple[str, ...]) -> list[Any]:
    """Return the fields of a column as numbers or truth values if all are, else as text."""
    if column in WORD_COLUMNS or column in CRYSTAL_COLUMNS:
        return [word or None for word in words]
    given = [word.strip() for word in words if word]
    if given and all(word in _TRUTH for word in given):
        return [_TRUTH.get(word.strip()) for word in words]
    numbers = [bool(_NUMBER.fullmatch(word)) for word in given]
    others = [word for word, is_number in zip(given, numbers, strict=True) if not is_number]
    if any(numbers) and all(word.lower() in MISSING for word in others):
        return [_number(word.strip()) for word in words]
    return [word or None for word in words]


def _number(word: str) -> float | int | None:
    if _INTEGER.fullmatch(word):
        return int(word)
    return float(word) if _NUMBER.fullmatch(word) else None
