"""Databases of ASE (`ase.db`) in SQLite, read as plain tables.

ASE's own reader would make calculators and constraints that the file names, and it writes its
tables into files that lack them.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from typing import Any, NamedTuple

import numpy as np

from flowllm.crystals.cells import fractional
from flowllm.crystals.crystal import UNREADABLE, Geometry
from flowllm.crystals.rules import check_numbers, check_periodic
from flowllm.errors import InvalidCrystal, UserError, one_line
from flowllm.system.documents import parse_json

_TABLE = "systems"
_QUERY = f"SELECT id, numbers, positions, cell, pbc, energy, key_value_pairs, data FROM {_TABLE}"
OWN_DATA = "flowllm"  # key of `data`: the properties that key-value pairs cannot hold
_LARGEST_VALUE = 2**28  # bytes
_JOURNAL = slice(18, 20)  # bytes of the header that say whether there is a write-ahead log
_WITHOUT_LOG = b"\x01\x01"


class DatabaseRow(NamedTuple):
    """One row of a database.

    Attributes:
        number: its id in the database.
        source: a geometry, or the reason why there is none.
        values: key -> value of the row, and its energy.
    """

    number: int
    source: Geometry | InvalidCrystal
    values: dict[str, Any]


def database_rows(data: bytes, name: str, limit: int | None) -> Iterator[DatabaseRow]:
    """Yield the rows of a database in the order of their ids.

    Args:
        data: content of the file.
        name: of the file, for messages.
        limit: number of rows at most; None: all.

    Yields:
        Each row.

    Raises:
        UserError: if it is no database of ASE, or damaged.
    """
    content = bytearray(data)
    content[_JOURNAL] = _WITHOUT_LOG  # an open log has been refused by the caller
    try:
        with closing(sqlite3.connect(":memory:")) as connection:
            connection.deserialize(bytes(content))
            connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, _LARGEST_VALUE)
            connection.execute("PRAGMA trusted_schema = OFF")
            tables = dict(
                connection.execute("SELECT name, sql FROM sqlite_master WHERE type = 'table'")
            )
            if not str(tables.get(_TABLE)).upper().startswith("CREATE TABLE"):
                held = ", ".join(sorted(map(str, tables))) or "no tables"
                raise UserError(
                    f"{name}: no database of ASE, which has a table {_TABLE!r}; it holds {held}"
                )
            query = f"{_QUERY} ORDER BY id LIMIT ?"
            for row in connection.execute(query, (-1 if limit is None else limit,)):
                yield _row(*row)
    except sqlite3.Error as error:
        raise UserError(f"{name}: not a readable database: {one_line(error)}") from error


def _row(
    number: int,
    numbers: bytes,
    positions: bytes,
    cell: bytes,
    pbc: int,
    energy: Any,
    pairs: Any,
    data: Any,
) -> DatabaseRow:
    source: Geometry | InvalidCrystal
    values: dict[str, Any] = {"energy": energy}
    try:
        values |= _pairs(pairs)
        values |= _own(data)
        check_periodic([bool(pbc & bit) for bit in (1, 2, 4)])
        matrix = np.frombuffer(cell, "<f8").reshape(3, 3)
        places = np.frombuffer(positions, "<f8").reshape(-1, 3)
        atoms = check_numbers(np.frombuffer(numbers, "<i4"))
        if len(atoms) != len(places):
            raise InvalidCrystal("unreadable", f"{len(atoms)} elements for {len(places)} positions")
        source = Geometry(matrix, atoms, fractional(places, matrix))
    except InvalidCrystal as error:
        source = error
    except UNREADABLE as error:
        source = InvalidCrystal("unreadable", f"a damaged row: {one_line(error)}")
    return DatabaseRow(number, source, values)


def _own(data: Any) -> dict[str, Any]:
    """Return the properties that `writers` put into the data of a row; other data are ignored."""
    try:
        return dict(_pairs(data).get(OWN_DATA) or {})
    except UNREADABLE:
        return {}


def _pairs(pairs: Any) -> dict[str, Any]:
    if isinstance(pairs, bytes):  # ASE's binary form: the place of the JSON, arrays, the JSON
        pairs = pairs[int.from_bytes(pairs[:8], "little") :].decode()
    return dict(parse_json(pairs)) if pairs else {}
