"""Readers: the content of an input of any format as `Row`s, before crystals are checked.

The source of a row is the text of a CIF, a `Geometry`, or an `InvalidCrystal` with its reason.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path, PurePosixPath

from flowllm.crystals.columns import describe
from flowllm.crystals.containers import Container, Member, folder, tar_archive, zip_archive
from flowllm.crystals.contents import (
    TooLarge,
    content_hash,
    decoded,
    decompressed,
    is_standard_input,
    read_bytes,
)
from flowllm.crystals.crystal import Geometry
from flowllm.crystals.databases import database_rows
from flowllm.crystals.documents import documents, keys_of
from flowllm.crystals.extxyz import frames
from flowllm.crystals.formats import READABLE, Format, format_of, format_of_content, stem
from flowllm.crystals.poscar import parse_poscar
from flowllm.crystals.tables import TableRow, crystal_column, csv_rows, parquet_rows, table_row
from flowllm.errors import InvalidCrystal, UserError, one_line
from flowllm.system.documents import parse_json
from flowllm.system.names import printable
from flowllm.system.parquet import column_names, read_parquet

FAILED = "failed"  # the reason of a crystal that a run lists as failed
DEAD_LINK = "dead_link"  # the reason of a link in a folder that points to nothing

# Long texts in the table of a run, which are not properties of its crystals.
_TEXT_COLUMNS = frozenset(
    {
        *("structure", "prior_structure", "initial_structure", "proposed"),
        *("prompt", "text", "rejects"),
    }
)
# Formats in which the name of the file can become an id.
_NAMED = (Format.CIF, Format.POSCAR, Format.JSON)


@dataclass(kw_only=True, slots=True)
class Row:
    """One crystal of a file with its id and properties.

    Attributes:
        place: in the file, such as `row 3`, for messages.
        id: as the file gives it, else made from the file name or the number of the row.
        properties: see `flowllm.crystals.crystal.Crystal`.
        source: the text of a CIF, a geometry, or the reason why there is none.
        column: of the table, that holds the source; else empty.
        ignored: property -> why its value is not used.
        notes: what was assumed to read the source.
    """

    place: str
    id: str
    properties: dict[str, float | int | str]
    source: str | Geometry | InvalidCrystal
    column: str = ""
    ignored: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        self.place, self.id = printable(self.place), printable(self.id)


class Rows(list[Row]):
    """The rows of an input.

    Attributes:
        notes: parts of the input that are not read although they may hold crystals.
    """

    def __init__(self, rows: Iterable[Row] = (), notes: Iterable[str] = ()) -> None:
        super().__init__(rows)
        self.notes = list(notes)


class NoCrystals(UserError):
    """A file that holds something else than crystals."""


class Input:
    """A file, folder or archive of crystals, or standard input, before it is read.

    Attributes:
        path: of the file or folder; `-` is standard input.
        container: the files of a folder; else None.
    """

    def __init__(self, path: Path) -> None:
        """Check that there is such an input of a known format.

        Args:
            path: of the file or folder.

        Raises:
            UserError: if there is no such file, its name tells no format, or a folder holds no
                crystals.
        """
        self.path = path
        self.container: Container | None = None
        if is_standard_input(path):
            return
        if not path.exists():
            raise UserError(f"{path}: no such file or folder; check the path")
        if path.is_dir():
            self.container = folder(path)
            return
        found = format_of(path.name)
        if found is None:
            raise UserError(f"{path}: cannot read {path.suffix!r} files; {READABLE}")
        log = path.with_name(f"{path.name}-wal")
        if found is Format.DATABASE and log.exists() and log.stat().st_size:
            raise UserError(f"{path}: some of its rows are in {log.name}; close the database first")

    def identity(self) -> list[tuple[str, str]]:
        """Return names and hashes of everything that the rows depend on.

        Returns:
            Name and SHA-256 of each file; the name of a file is left out where it does not matter.
        """
        if self.container is not None:
            return [(member.name, _member_hash(member)) for member in self.container.members]
        found = format_of(self.path.name)
        name = self.path.name if found in _NAMED else str(found)
        return [(name, content_hash(self.path))]

    def rows(self, limit: int | None) -> Rows:
        """Return the rows of the input, including bad ones.

        Args:
            limit: number of rows at most; None: all.

        Returns:
            The rows, in the order of the file or of the names of the files.

        Raises:
            UserError: if the file is damaged as a whole, holds something else, or is a table
                without a column of crystals.
        """
        if self.container is not None:
            return _container_rows(self.container, limit)
        name = str(self.path)
        data = decompressed(read_bytes(self.path), name)
        found = _format_of_input(self.path, data)
        if found is Format.ZIP:
            return _container_rows(zip_archive(data, name), limit)
        if found is Format.TAR:
            return _container_rows(tar_archive(data, name), limit)
        file_name = "stdin" if is_standard_input(self.path) else self.path.name
        rows = islice(_content_rows(data, name, file_name, found, limit), limit)
        return Rows(
            replace(row, id=row.id or str(number)) for number, row in enumerate(rows, start=1)
        )


def read_run_rows(table: Path, limit: int | None) -> Rows:
    """Return the rows of the table of a run; see `flowllm.crystals.run_folders.run_table`.

    A crystal that the run lists as failed has an `InvalidCrystal` with the reason `failed`. An
    evaluation of several sets may repeat an id: then all ids begin with the name of their set.

    Args:
        table: parquet file.
        limit: number of rows at most; None: all.

    Returns:
        The rows without the long texts, in the order of the table.

    Raises:
        UserError: if the table is damaged, or has no column `cif`.
    """
    try:
        columns = [name for name in column_names(table) if name not in _TEXT_COLUMNS]
        records = read_parquet(table, columns).to_pylist()
    except (ValueError, OSError) as error:
        raise UserError(f"{table}: not a readable .parquet file: {one_line(error)}") from error
    crystal_column(str(table), columns)
    rows = Rows()
    for number, record in enumerate(records, start=1):
        found = table_row(number, record, "cif")
        if isinstance(found.source, InvalidCrystal):
            failure = record.get("failure") or "no reason is given"
            failed = InvalidCrystal(FAILED, f"the run lists it as failed: {failure}")
            found = found._replace(source=failed, column="")
        row = _table_row(found)
        rows.append(replace(row, id=row.id or str(number)))
    if len({row.id for row in rows}) < len(rows):
        for row in rows:
            if set_name := row.properties.get("set"):
                row.id = f"{set_name}-{row.id}"
    return Rows(rows[:limit])


def _format_of_input(path: Path, data: bytes) -> Format:
    """Return the format by name, for standard input by content."""
    found = format_of(path.name)
    if found is None:
        try:
            text = decoded(data)
        except UnicodeDecodeError:
            text = None
        found = format_of_content(data, text)
    if found is None:
        raise UserError(
            f"{path}: standard input is none of {', '.join(Format)}; save it under a name that "
            "tells its format"
        )
    return found


def _container_rows(container: Container, limit: int | None) -> Rows:
    """Return the rows of all files of a folder or archive."""
    rows = Rows(notes=container.notes)
    names = [printable(stem(member.name)) for member in container.members]
    bases = Counter(PurePosixPath(name).name for name in names)
    empty: list[str] = []
    for member, name in zip(container.members, names, strict=True):
        if limit is not None and len(rows) >= limit:
            break
        base = PurePosixPath(name).name
        base = base if bases[base] == 1 else name
        try:
            found = list(_member_rows(member, base))
        except NoCrystals:
            empty.append(member.name)
            continue
        for number, row in enumerate(found, start=1):
            row.id = row.id or (base if len(found) == 1 else f"{base}-{number}")
        rows += found
    if not rows and empty:
        raise UserError(f"no crystals in {', '.join(empty[:3])}{'...' * (len(empty) > 3)}")
    if empty:
        rows.notes.append(f"{len(empty)} files hold no crystals: {', '.join(empty[:3])}")
    return Rows(rows[:limit], rows.notes)


def _member_rows(member: Member, base: str) -> Iterator[Row]:
    place = f"file {member.name}"
    found = member.format
    assert found is not None  # `containers.chosen` has left the others out
    try:
        data = decompressed(member.content(), member.name)
        for row in _content_rows(data, member.name, base, found, None):
            several = found not in (Format.CIF, Format.POSCAR)
            yield replace(row, place=f"{place}, {row.place}" if several else place)
    except (NoCrystals, TooLarge):
        raise
    except InvalidCrystal as error:
        yield Row(place=place, id=base, properties={}, source=error)
    except UserError as error:
        source = InvalidCrystal("unreadable", str(error))
        yield Row(place=place, id=base, properties={}, source=source)


def _content_rows(
    data: bytes, name: str, file_name: str, found: Format, limit: int | None
) -> Iterator[Row]:
    """Yield the rows of a file; those without an id of their own have none."""
    row_id = stem(file_name)
    match found:
        case Format.CIF:
            text = decoded(data, errors="replace")
            place = f"file {PurePosixPath(name).name}"
            yield Row(place=place, id=row_id, properties={}, source=text)
        case Format.POSCAR:
            yield _poscar_row(decoded(data, errors="replace"), row_id)
        case Format.EXTXYZ:
            for number, frame in enumerate(frames(_text(data, name, found)), start=1):
                yield _described(f"frame {number}", frame.values, frame.source)
        case Format.JSON | Format.JSONL:
            yield from _json_rows(_text(data, name, found), name, row_id, found)
        case Format.CSV:
            yield from map(_table_row, csv_rows(_text(data, name, found), name, limit))
        case Format.PARQUET:
            yield from map(_table_row, parquet_rows(data, name, limit))
        case Format.DATABASE:
            for row in database_rows(data, name, limit):
                place = f"row {row.number}"
                yield _described(place, row.values, row.source, key=str(row.number))
        case _:
            raise UserError(f"{name}: an archive inside of another one; unpack it first")


def _text(data: bytes, name: str, found: Format) -> str:
    try:
        return decoded(data)
    except UnicodeDecodeError as error:
        raise UserError(
            f"{name}: not a readable {found} file: {one_line(error)}; save it as UTF-8"
        ) from error


def _poscar_row(text: str, row_id: str) -> Row:
    source: Geometry | InvalidCrystal
    try:
        source = parse_poscar(text)
    except InvalidCrystal as error:
        source = error
    return Row(place="structure 1", id=row_id, properties={}, source=source)


def _json_rows(text: str, name: str, row_id: str, found: Format) -> Iterator[Row]:
    try:
        if found is Format.JSONL:
            content = [parse_json(line) for line in text.split("\n") if line.strip()]
        else:
            content = parse_json(text)
    except ValueError as error:
        raise UserError(f"{name}: not a readable {found} file: {one_line(error)}") from error
    number = 0
    for number, item in enumerate(documents(content), start=1):
        key = item.key or ("" if isinstance(content, list) else row_id)
        yield _described(f"structure {number}", item.values, item.source, item.ignored, key=key)
    if not number:
        raise NoCrystals(f"{name}: holds no crystals but {keys_of(content)}; give another file")


def _table_row(row: TableRow) -> Row:
    source = row.source
    if isinstance(source, InvalidCrystal) and row.column:
        source = InvalidCrystal(source.reason, f"column {row.column!r}: {source.detail}")
    return _described(f"row {row.number}", row.values, source, row.ignored, column=row.column)


def _described(
    place: str,
    values: dict[str, object],
    source: str | Geometry | InvalidCrystal,
    ignored: dict[str, str] | None = None,
    *,
    key: str = "",
    column: str = "",
) -> Row:
    """Return a row with id and properties from the values beside its crystal."""
    found = describe(values)
    return Row(
        place=place,
        id=found.id or key,
        properties=found.properties,
        source=source,
        column=column,
        ignored=found.ignored | (ignored or {}),
    )


def _member_hash(member: Member) -> str:
    try:
        return hashlib.sha256(member.content()).hexdigest()
    except InvalidCrystal as error:
        return error.reason
