"""What stands in a file, before anything is judged: every format becomes `Row`s.

A row's source is the text of a CIF, a `Geometry`, or an `InvalidCrystal` with its reason.
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
from typing import Any

import ase.io
import numpy as np
import pandas as pd
import pyarrow.parquet as pq

from flowllm.crystals.crystal import (
    ATOMIC_NUMBER,
    UNREADABLE,
    Geometry,
    geometry_of_atoms,
    geometry_of_structure,
    scalar,
)
from flowllm.errors import InvalidCrystal, UserError, one_line

# Names under which public data sets keep what this house calls by the name on the right.
FIELD_OF_COLUMN = {
    "formation_energy_per_atom": "formation_energy_per_atom",
    "band_gap": "band_gap",
    "e_above_hull": "e_above_hull",
    "energy_above_hull": "e_above_hull",
    "spacegroup": "spacegroup",
    "spacegroup.number": "spacegroup",
}
ID_COLUMNS = ("material_id", "id")

_FIELDS = frozenset(FIELD_OF_COLUMN.values())
_LARGEST_CIF = 10_000_000  # bytes, in an archive
_MISSING = frozenset({"", "nan", "none", "null", "na", "n/a"})


@dataclass(kw_only=True, slots=True)
class Row:
    """One crystal of a file and what stands beside it."""

    place: str  # "row 3", for messages
    id: str
    properties: dict[str, float | int | str]
    source: str | Geometry | InvalidCrystal  # a string is the text of a CIF
    column: str = ""  # where the source stands, in a table


def read_rows(path: Path, files: list[Path], limit: int | None) -> Iterator[Row]:
    """The rows of a file, or of a folder's CIF `files`, bad ones included.

    Raises:
        UserError: the file is damaged as a whole, or is a table without a column `cif`.
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


def _cif_rows(files: list[Path]) -> Iterator[Row]:
    for file in files:
        text = file.read_text(encoding="utf-8", errors="replace")
        yield Row(place=f"file {file.name}", id=file.stem, properties={}, source=text)


def _zip_rows(path: Path, limit: int | None) -> Iterator[Row]:
    """CIFs anywhere in an archive, in the order of their names; the id is the file name, with its
    folders where that alone occurs twice. Nothing is unpacked to the disk."""
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
                    source = InvalidCrystal("unreadable", f"{member.file_size} bytes are no CIF")
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
    # macOS adds a shadow, `__MACOSX/._NAME`, of every file.
    return name.suffix.lower() == ".cif" and not name.name.startswith("._")


def _table_rows(path: Path, limit: int | None) -> Iterator[Row]:
    try:
        if path.suffix.lower() == ".parquet":
            records = pq.read_table(path).slice(0, limit).to_pylist()
            columns = pq.read_schema(path).names
        else:
            frame = _read_csv(path, limit)
            records = frame.to_dict("records")
            columns = list(frame.columns)
    except (ValueError, OSError) as error:
        raise UserError(f"{path}: not a readable {path.suffix} file: {one_line(error)}") from error
    if "cif" not in columns:
        raise UserError(f"{path}: there is no column 'cif'; the columns are {', '.join(columns)}")
    for number, record in enumerate(records, start=1):
        cif = record.pop("cif")
        source = (
            cif if isinstance(cif, str) else InvalidCrystal("unreadable", "column 'cif': empty")
        )
        yield _row(f"row {number}", str(number), record, source, column="cif")


def _read_csv(path: Path, limit: int | None) -> pd.DataFrame:
    # "NaN" is sodium nitride, not a missing formula: pandas' list of missing values is left aside.
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
            source = _geometry_of_dict(item)
        except InvalidCrystal as error:
            source = error
        except UNREADABLE as error:
            source = InvalidCrystal("unreadable", f"not a pymatgen structure: {one_line(error)}")
        properties = item.get("properties") if isinstance(item, dict) else None
        values = properties if isinstance(properties, dict) else {}
        fallback = str(number) if isinstance(items, list) else path.stem
        yield _row(f"structure {number}", fallback, values, source)


def _extxyz_rows(path: Path, limit: int | None) -> Iterator[Row]:
    number = 0
    try:
        with open(path, encoding="utf-8") as file:
            for atoms in ase.io.iread(file, index=slice(limit), format="extxyz"):
                number += 1
                try:
                    source: Geometry | InvalidCrystal = geometry_of_atoms(atoms)
                except InvalidCrystal as error:
                    source = error
                results = atoms.calc.results if atoms.calc else {}  # where ASE puts an energy
                yield _row(f"frame {number}", str(number), {**atoms.info, **results}, source)
    except (*UNREADABLE, OSError) as error:
        raise UserError(
            f"{path}: not readable as extxyz ({number} frames were): {one_line(error)}"
        ) from error


def is_poscar(path: Path) -> bool:
    """Whether a file is VASP's by its name: `POSCAR`, `CONTCAR` (and anything after), `.vasp`."""
    return path.suffix.lower() == ".vasp" or path.name.upper().startswith(("POSCAR", "CONTCAR"))


def _poscar_rows(path: Path) -> Iterator[Row]:
    # Slow to import, and no other format needs it.
    from pymatgen.io.vasp.inputs import BadPoscarWarning, Poscar

    name = path.stem if path.suffix.lower() == ".vasp" else path.name
    source: Geometry | InvalidCrystal
    try:
        with warnings.catch_warnings():
            # Without a line of elements pymatgen would make them up and only warn.
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
    """A row from the values beside its crystal: the id, the properties by our names."""
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


def _geometry_of_dict(item: dict[str, Any]) -> Geometry:
    # Not Structure.from_dict: it imports and builds whatever classes the file names.
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
