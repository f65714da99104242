"""Readers: the content of a file of any format as `Row`s, before crystals are checked.

The source of a row is the text of a CIF, a `Geometry`, or an `InvalidCrystal` with its reason.
"""

from __future__ import annotations

import json
import math
import warnings
import zipfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import numpy as np

from flowllm.crystals.crystal import (
    ATOMIC_NUMBER,
    UNREADABLE,
    Geometry,
    geometry_of_atoms,
    geometry_of_structure,
    scalar,
)
from flowllm.errors import InvalidCrystal, UserError, one_line
from flowllm.system.names import printable
from flowllm.system.parquet import column_names, read_parquet

if TYPE_CHECKING:
    import pandas as pd

# Columns of public data sets, and the names of the same properties here.
FIELD_OF_COLUMN = {
    "formation_energy_per_atom": "formation_energy_per_atom",
    "band_gap": "band_gap",
    "e_above_hull": "e_above_hull",
    "energy_above_hull": "e_above_hull",
    "spacegroup": "spacegroup",
    "spacegroup.number": "spacegroup",
}
ID_COLUMNS = ("material_id", "id")
FAILED = "failed"  # the reason of a crystal that a run lists as failed

_FIELDS = frozenset(FIELD_OF_COLUMN.values())
_LARGEST_CIF = 10_000_000  # bytes, in an archive
# Long texts in the table of a run, which are not properties of its crystals.
_TEXT_COLUMNS = frozenset(
    {
        *("structure", "prior_structure", "initial_structure", "proposed"),
        *("prompt", "text", "rejects"),
    }
)
_MISSING = frozenset({"", "nan", "none", "null", "na", "n/a"})


@dataclass(kw_only=True, slots=True)
class Row:
    """One crystal of a file with its id and properties.

    Attributes:
        place: in the file, such as `row 3`, for messages.
        id: as the file gives it, else made from the file name or the number of the row.
        properties: see `flowllm.crystals.crystal.Crystal`.
        source: the text of a CIF, a geometry, or the reason why there is none.
        column: of the table, that holds the source; else empty.
    """

    place: str
    id: str
    properties: dict[str, float | int | str]
    source: str | Geometry | InvalidCrystal
    column: str = ""

    def __post_init__(self) -> None:
        self.place, self.id = printable(self.place), printable(self.id)


def read_rows(path: Path, files: list[Path], limit: int | None) -> Iterator[Row]:
    """Return the rows of a file or of a folder of CIFs, including bad rows.

    Args:
        path: of the file or folder.
        files: the file, or the CIFs of the folder.
        limit: number of rows at most; None: all.

    Returns:
        The rows, in the order of the file.

    Raises:
        UserError: if the file is damaged as a whole, or is a table without a column `cif`.
    """
    match files[0].suffix.lower():
        case ".cif":
            return _cif_rows(files)
        case ".csv" | ".parquet":
            return _table_rows(path, limit)
        case ".zip":
            return _zip_rows(path, limit)
        case ".json" | ".jsonl":
            return _json_rows(path, limit)
        case ".extxyz" | ".xyz":
            return _extxyz_rows(path, limit)
        case _:
            return _poscar_rows(path)


def read_run_rows(table: Path, limit: int | None) -> list[Row]:
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
    _require_cif(table, columns)
    rows = []
    for number, record in enumerate(records, start=1):
        source = record.pop("cif")
        if source is None:
            failure = record.get("failure") or "no reason is given"
            source = InvalidCrystal(FAILED, f"the run lists it as failed: {failure}")
        rows.append(_row(f"row {number}", str(number), record, source, column="cif"))
    if len({row.id for row in rows}) < len(rows):
        for row in rows:
            if set_name := row.properties.get("set"):
                row.id = f"{set_name}-{row.id}"
    return rows[:limit]


def _cif_rows(files: list[Path]) -> Iterator[Row]:
    for file in files:
        text = file.read_text(encoding="utf-8", errors="replace")
        yield Row(place=f"file {file.name}", id=file.stem, properties={}, source=text)


def _zip_rows(path: Path, limit: int | None) -> Iterator[Row]:
    """Yield the CIFs of an archive in the order of their names, without unpacking it to the disk.

    The id is the file name, with its folders if two files have the same name.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = sorted(
                (m for m in archive.infolist() if _is_cif(PurePosixPath(m.filename))),
                key=lambda member: member.filename,
            )[:limit]
            stems = Counter(PurePosixPath(member.filename).stem for member in members)
            for member in members:
                name = PurePosixPath(member.filename)
                source: str | InvalidCrystal
                if member.file_size > _LARGEST_CIF:
                    source = InvalidCrystal("unreadable", f"{member.file_size} bytes are not a CIF")
                else:
                    source = archive.read(member).decode("utf-8", errors="replace")
                yield Row(
                    place=f"file {name}",
                    id=name.stem if stems[name.stem] == 1 else str(name.with_suffix("")),
                    properties={},
                    source=source,
                )
    except (zipfile.BadZipFile, RuntimeError, OSError, EOFError, NotImplementedError) as error:
        raise UserError(f"{path}: not a readable .zip file: {one_line(error)}") from error


def _is_cif(name: PurePosixPath) -> bool:
    # macOS adds a second entry, `__MACOSX/._NAME`, for every file.
    return name.suffix.lower() == ".cif" and not name.name.startswith("._")


def _table_rows(path: Path, limit: int | None) -> Iterator[Row]:
    try:
        if path.suffix.lower() == ".parquet":
            records = read_parquet(path).slice(0, limit).to_pylist()
            columns = column_names(path)
        else:
            frame = _read_csv(path, limit)
            records = frame.to_dict("records")
            columns = list(frame.columns)
    except (ValueError, OSError) as error:
        raise UserError(f"{path}: not a readable {path.suffix} file: {one_line(error)}") from error
    _require_cif(path, columns)
    for number, record in enumerate(records, start=1):
        cif = record.pop("cif")
        source = (
            cif if isinstance(cif, str) else InvalidCrystal("unreadable", "column 'cif': empty")
        )
        yield _row(f"row {number}", str(number), record, source, column="cif")


def _require_cif(path: Path, columns: list[str]) -> None:
    if "cif" not in columns:
        raise UserError(f"{path}: there is no column 'cif'; the columns are {', '.join(columns)}")


def _read_csv(path: Path, limit: int | None) -> pd.DataFrame:
    import pandas as pd  # slow to import, and no other format needs it

    # "NaN" is sodium nitride, not a missing formula, so pandas' own missing values are off.
    frame = pd.read_csv(
        path,
        nrows=limit,
        dtype=dict.fromkeys(("cif", *ID_COLUMNS), str),
        keep_default_na=False,
        na_values=[""],
        float_precision="round_trip",
        low_memory=False,
    )
    frame = frame.loc[:, [not str(name).startswith("Unnamed: ") for name in frame.columns]]
    for name in frame.columns.difference(["cif", *ID_COLUMNS]):
        if frame[name].dtype == object:
            numbers = pd.to_numeric(frame[name], errors="coerce")
            words = frame[name].notna() & numbers.isna()
            if numbers.notna().any() and frame[name][words].str.lower().isin(_MISSING).all():
                frame[name] = numbers
    return frame


def _json_rows(path: Path, limit: int | None) -> Iterator[Row]:
    try:
        text = path.read_text(encoding="utf-8")
        if path.suffix.lower() == ".jsonl":
            items = [json.loads(line) for line in text.split("\n") if line.strip()]
        else:
            items = json.loads(text)
    except (ValueError, OSError) as error:
        raise UserError(f"{path}: not a readable {path.suffix} file: {one_line(error)}") from error
    for number, item in enumerate((items if isinstance(items, list) else [items])[:limit], start=1):
        source: Geometry | InvalidCrystal
        try:
            source = geometry_of_dict(item)
        except InvalidCrystal as error:
            source = error
        except UNREADABLE as error:
            source = InvalidCrystal("unreadable", f"not a pymatgen structure: {one_line(error)}")
        properties = item.get("properties") if isinstance(item, dict) else None
        values = properties if isinstance(properties, dict) else {}
        fallback = str(number) if isinstance(items, list) else path.stem
        yield _row(f"structure {number}", fallback, values, source)


def _extxyz_rows(path: Path, limit: int | None) -> Iterator[Row]:
    import ase.io  # slow to import, and no other format needs it

    number = 0
    try:
        with open(path, encoding="utf-8") as file:
            for atoms in ase.io.iread(file, index=slice(limit), format="extxyz"):
                number += 1
                try:
                    source: Geometry | InvalidCrystal = geometry_of_atoms(atoms)
                except InvalidCrystal as error:
                    source = error
                results = atoms.calc.results if atoms.calc else {}  # ASE puts an energy here
                yield _row(f"frame {number}", str(number), {**atoms.info, **results}, source)
    except (*UNREADABLE, OSError) as error:
        raise UserError(
            f"{path}: not readable as extxyz ({number} frames were): {one_line(error)}"
        ) from error


def is_poscar(path: Path) -> bool:
    """Return whether a file is a POSCAR by its name: `POSCAR*`, `CONTCAR*` or `*.vasp`.

    Args:
        path: of a file that need not exist.

    Returns:
        True for a POSCAR.
    """
    return path.suffix.lower() == ".vasp" or path.name.upper().startswith(("POSCAR", "CONTCAR"))


def _poscar_rows(path: Path) -> Iterator[Row]:
    # Slow to import, and no other format needs it.
    from pymatgen.io.vasp.inputs import BadPoscarWarning, Poscar

    name = path.stem if path.suffix.lower() == ".vasp" else path.name
    source: Geometry | InvalidCrystal
    try:
        with warnings.catch_warnings():
            # Without a line of elements pymatgen invents them and only warns.
            warnings.simplefilter("error", BadPoscarWarning)
            poscar = Poscar.from_str(path.read_text(encoding="utf-8"), read_velocities=False)
        source = geometry_of_structure(poscar.structure)
    except InvalidCrystal as error:
        source = error
    except (*UNREADABLE, BadPoscarWarning, OSError) as error:
        source = InvalidCrystal("unreadable", f"not a readable POSCAR: {one_line(error)}")
    yield Row(place="structure 1", id=name, properties={}, source=source)


def _row(
    place: str,
    fallback_id: str,
    values: dict[str, Any],
    source: str | Geometry | InvalidCrystal,
    column: str = "",
) -> Row:
    """Return a row with its id and properties taken from the other columns of its file."""
    name = next((key for key in ID_COLUMNS if scalar(values.get(key)) is not None), None)
    row_id = fallback_id if name is None else str(scalar(values[name]))
    properties: dict[str, float | int | str] = {}
    try:
        for key, value in values.items():
            value = scalar(value)
            if key == name or value is None:
                continue
            target = FIELD_OF_COLUMN.get(key, key)
            if target in _FIELDS:
                if isinstance(value, str) and value.strip().lower() in _MISSING:
                    continue
                value = _number(key, target, value)
            if properties.setdefault(target, value) != value:
                raise InvalidCrystal("bad_property", f"column {key!r}: contradicts another column")
    except InvalidCrystal as error:
        source = error
    return Row(place=place, id=row_id, properties=properties, source=source, column=column)


def _number(column: str, target: str, value: float | int | str) -> float | int:
    try:
        number = float(value)
    except (ValueError, OverflowError):
        number = math.nan
    if target == "spacegroup":
        if not (number.is_integer() and 1 <= number <= 230):
            raise InvalidCrystal(
                "bad_property", f"column {column!r}: {value!r} is not a space group number (1-230)"
            )
        return int(number)
    if not math.isfinite(number):
        raise InvalidCrystal("bad_property", f"column {column!r}: {value!r} is not a number")
    if target == "band_gap" and number < 0:
        raise InvalidCrystal("bad_property", f"column {column!r}: {value!r} is below 0")
    return number


def geometry_of_dict(item: dict[str, Any]) -> Geometry:
    """Return the crystal of a pymatgen structure dict, read as plain data.

    `Structure.from_dict` would import and build any class that the dict names.

    Args:
        item: as `Structure.as_dict` returns it.

    Returns:
        Cell, elements and positions.

    Raises:
        InvalidCrystal: if a site is disordered or holds no element.
        LookupError, TypeError, ValueError, AttributeError: if it is no structure dict.
    """
    numbers: list[int] = []
    for index, site in enumerate(item["sites"], start=1):
        occupants = site["species"]
        if len(occupants) != 1 or abs(occupants[0]["occu"] - 1) > 1e-6:
            raise InvalidCrystal("disorder", f"site {index} is disordered")
        symbol = occupants[0]["element"]
        if symbol not in ATOMIC_NUMBER:
            raise InvalidCrystal("unknown_element", f"site {index}: there is no element {symbol!r}")
        numbers.append(ATOMIC_NUMBER[symbol])
    lattice = np.array(item["lattice"]["matrix"], dtype=np.float64).reshape(3, 3)
    frac_coords = np.array([site["abc"] for site in item["sites"]], dtype=np.float64).reshape(-1, 3)
    return Geometry(lattice, np.array(numbers, dtype=np.uint8), frac_coords)
