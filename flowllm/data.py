"""Crystals in and out of files: CSV, parquet, CIF (a file or a folder), extxyz, JSON.

Reading: every format becomes `_Row`s, every row's source a `_Geometry` or an `InvalidCrystal` with
its reason; from there on all formats are one. Large files are cached by content.
"""

from __future__ import annotations

import csv
import hashlib
import json
import logging
import math
import os
import re
import shutil
import sys
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import ase.io
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from ase import Atoms
from ase.io.extxyz import key_val_dict_to_str, key_val_str_to_dict
from numpy.typing import NDArray
from pymatgen.core import Element, IStructure, Lattice, Structure
from pymatgen.io.cif import CifParser, CifWriter

from flowllm import cells
from flowllm.errors import InvalidCrystal, UserError
from flowllm.files import publish, sha256_file, write_atomic
from flowllm.workers import for_each

logger = logging.getLogger(__name__)

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
_MISSING = frozenset({"", "nan", "none", "null", "na", "n/a"})
_WORTH_CACHING = 500  # rows; fewer are parsed about as fast as a cache entry is read
_WORTH_WORKERS = 5000  # CIFs for pymatgen; fewer are parsed before the processes have paid off
_CHUNK = 250
# What pymatgen and ASE are seen to raise on damaged input.
_UNREADABLE = (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RuntimeError)


@dataclass(kw_only=True, slots=True)
class Crystal:
    """One crystal.

    Attributes:
        id: unique within its data set.
        structure: ordered, plain elements, no site properties.
        properties: what is known of it; formation_energy_per_atom and e_above_hull in eV/atom,
            band_gap in eV, spacegroup as a number from 1 to 230, anything else as the file has it.
            What is not known is absent.
    """

    id: str
    structure: Structure
    properties: dict[str, float | int | str] = field(default_factory=dict)


class Crystals(list[Crystal]):
    """What `read` returns: a list that also says how many rows were left out, by reason."""

    def __init__(self, crystals: Iterable[Crystal] = (), skipped: Counter[str] | None = None):
        super().__init__(crystals)
        self.skipped: Counter[str] = skipped or Counter()


def read(
    path: str | Path,
    *,
    skip_invalid: bool = False,
    reduce: bool = True,
    max_atoms: int | None = None,
    limit: int | None = None,
    workers: int | None = None,
) -> Crystals:
    """Read crystals from a file or folder; the suffix says which format.

    `.csv`, `.parquet`: a column `cif`, an id in `material_id` or `id` (else the row number, from
    1), and properties. `.cif`, or a folder of them: the id is the file name; one structure a file.
    `.extxyz`, `.xyz`: properties from the comment line. `.json`, `.jsonl`: pymatgen structure
    dicts (one, a list, or one a line), properties from their `properties`.

    CIFs come out as pymatgen's parser gives them: sites sorted by electronegativity, coordinates
    within a ten-thousandth of 1/3 or 2/3 made exact. Deuterium and tritium become hydrogen.
    Missing and non-finite property values are left out, and so are columns without scalars.

    Args:
        path: the file, or a folder with `.cif` files.
        skip_invalid: leave bad rows out and count them, instead of stopping at the first.
        reduce: bring every crystal into its Niggli cell; see `cells.reduce_basis`.
        max_atoms: a crystal with more atoms is a bad row.
        limit: look at the first so many rows only.
        workers: processes for CIFs that need the full parser; default: one a core where there are
            many. They are spawned, so a script needs its `if __name__ == "__main__":`.

    Raises:
        UserError: no such file, unknown suffix, no column `cif`, a file that is damaged as a
            whole, nothing valid in it, or (without `skip_invalid`) a bad row: unreadable, sites
            that do not add up to the CIF's formula, disorder, an unknown element, a cell that is
            not finite or has no volume, too many atoms, a property that is no number, an id that
            occurs twice.
    """
    path = Path(path)
    for name, value in (("max_atoms", max_atoms), ("limit", limit), ("workers", workers)):
        if value is not None and value < 1:
            raise UserError(f"{name} must be at least 1, not {value}")
    files = _files(path)[:limit] if path.is_dir() else _files(path)
    key = _cache_key(files, reduce, limit)
    rows = _load(key)
    if rows is None:
        rows = list(_rows(path, files, limit))
        _resolve(rows, reduce, workers)
        if len(rows) >= _WORTH_CACHING:
            _store(rows, key)
    return _admit(path, rows, skip_invalid, max_atoms)


def write(crystals: Iterable[Crystal], path: str | Path, *, overwrite: bool = False) -> Path:
    """Write crystals to a file in the format of its suffix, or as a folder of CIFs if it has none.

    The file is whole or absent, also after a kill. CIF (and so CSV and parquet) keeps eight
    decimals and, when read, sorts the sites by electronegativity; extxyz keeps eight decimals;
    JSON keeps everything. CSV forgets types: the string `007` comes back as 7. A lone CIF file or a
    folder of them holds no properties. Non-finite property values are left out.

    Raises:
        UserError: the file exists and `overwrite` is not set, unknown suffix, no crystals, one
            that `read` would refuse, ids that occur twice or cannot be file names, several crystals
            for one CIF, or a property the format cannot hold.
    """
    path = Path(path)
    crystals = list(crystals)
    folder = path.is_dir() or not path.suffix
    writer = _write_folder if folder else _WRITERS.get(path.suffix.lower())
    if writer is None:
        raise UserError(f"{path}: cannot write {path.suffix!r} files; {_KNOWN}")
    if not crystals:
        raise UserError(f"{path}: there are no crystals to write")
    for crystal in crystals:
        try:
            _geometry_of_structure(crystal.structure)
        except InvalidCrystal as error:
            raise UserError(f"cannot write crystal {crystal.id}: {error.detail}") from error
        for name in ("material_id", "cif"):
            if name in crystal.properties:
                raise UserError(
                    f"crystal {crystal.id}: rename its property {name!r}, a column of its own"
                )
    repeated = [name for name, count in Counter(c.id for c in crystals).items() if count > 1]
    if repeated:
        raise UserError(f"{path}: the id {repeated[0]!r} occurs twice; give every crystal its own")
    if path.exists() and not overwrite:
        raise UserError(f"{path} exists; choose another name or pass overwrite=True")
    if folder and path.exists() and not _only_cifs(path):
        raise UserError(f"{path} is more than a folder of CIFs and stays; choose another name")

    def make(temporary: Path) -> None:
        writer(crystals, temporary)
        if folder and path.exists():
            shutil.rmtree(path)  # only now that the new one is whole

    path.parent.mkdir(parents=True, exist_ok=True)
    return publish(path, make)


def to_structure(crystal: Structure | Atoms) -> Structure:
    """A crystal from pymatgen or ASE as this house wants it: ordered, plain elements, no extras.

    Raises:
        UserError: neither kind of object; as `InvalidCrystal` with a reason: not periodic, no
            atoms, disorder, an unknown element, a cell that is not finite or has no volume.
    """
    if isinstance(crystal, IStructure):
        return cells.make_structure(*_geometry_of_structure(crystal))
    if isinstance(crystal, Atoms):
        return cells.make_structure(*_geometry_of_atoms(crystal))
    raise UserError(
        f"a crystal must be a pymatgen Structure or ASE Atoms, not {type(crystal).__name__}"
    )


def to_atoms(structure: Structure) -> Atoms:
    """An ordered pymatgen structure as ASE Atoms, periodic in all directions."""
    return Atoms(
        numbers=cells.atomic_numbers(structure),
        cell=structure.lattice.matrix,
        scaled_positions=structure.frac_coords,
        pbc=True,
    )


# --- rows -----------------------------------------------------------------------------------------


class _Geometry(NamedTuple):
    lattice: NDArray[np.float64]  # (3, 3), Angstrom
    atomic_numbers: NDArray[np.uint8]  # (N,)
    frac_coords: NDArray[np.float64]  # (N, 3)


@dataclass(kw_only=True, slots=True)
class _Row:
    place: str  # "row 3", for messages
    id: str
    properties: dict[str, float | int | str]
    source: str | _Geometry | InvalidCrystal  # a string is the text of a CIF
    column: str = ""  # where the source stands, in a table


def _admit(path: Path, rows: list[_Row], skip_invalid: bool, max_atoms: int | None) -> Crystals:
    if not rows:
        raise UserError(f"{path}: holds no crystals")
    crystals = Crystals()
    seen: set[str] = set()
    for row in rows:
        error = _refusal(row, seen, max_atoms)
        if error is not None:
            if not skip_invalid:
                raise InvalidCrystal(
                    error.reason,
                    f"{path}: {row.place} (id {row.id}): {error.detail}; mend it, or leave such "
                    "crystals out with skip_invalid",
                )
            crystals.skipped[error.reason] += 1
            continue
        seen.add(row.id)
        structure = cells.make_structure(*row.source)
        crystals.append(Crystal(id=row.id, structure=structure, properties=row.properties))
    left_out = ", ".join(f"{reason} {count}" for reason, count in crystals.skipped.most_common())
    if not crystals:
        raise UserError(f"{path}: holds no valid crystal ({left_out})")
    if left_out:
        logger.warning("%s: read %d crystals, left out: %s", path, len(crystals), left_out)
    return crystals


def _refusal(row: _Row, seen: set[str], max_atoms: int | None) -> InvalidCrystal | None:
    if isinstance(row.source, InvalidCrystal):
        return row.source
    num_atoms = len(row.source.atomic_numbers)
    if max_atoms is not None and num_atoms > max_atoms:
        return InvalidCrystal("too_many_atoms", f"{num_atoms} atoms, over max_atoms={max_atoms}")
    if row.id in seen:
        return InvalidCrystal("duplicate_id", f"an earlier crystal has the id {row.id!r}")
    return None


def _files(path: Path) -> list[Path]:
    if not path.exists():
        raise UserError(f"{path}: no such file or folder; check the path")
    if path.is_dir():
        files = sorted(p for p in path.iterdir() if p.suffix.lower() == ".cif" and p.is_file())
        if not files:
            raise UserError(f"{path}: the folder holds no .cif files")
        return files
    if path.suffix.lower() not in _WRITERS:
        raise UserError(f"{path}: cannot read {path.suffix!r} files; {_KNOWN}")
    return [path]


def _rows(path: Path, files: list[Path], limit: int | None) -> Iterator[_Row]:
    match files[0].suffix.lower():
        case ".cif":
            return _cif_rows(files)
        case ".csv" | ".parquet":
            return _table_rows(path, limit)
        case ".json" | ".jsonl":
            return _json_rows(path, limit)
        case _:
            return _extxyz_rows(path, limit)


def _cif_rows(files: list[Path]) -> Iterator[_Row]:
    for file in files:
        text = file.read_text(encoding="utf-8", errors="replace")
        yield _Row(place=f"file {file.name}", id=file.stem, properties={}, source=text)


def _table_rows(path: Path, limit: int | None) -> Iterator[_Row]:
    try:
        if path.suffix.lower() == ".parquet":
            records = pq.read_table(path).slice(0, limit).to_pylist()
            columns = pq.read_schema(path).names
        else:
            frame = _read_csv(path, limit)
            records = frame.to_dict("records")
            columns = list(frame.columns)
    except (ValueError, OSError) as error:
        raise UserError(f"{path}: not a readable {path.suffix} file: {_line(error)}") from error
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


def _json_rows(path: Path, limit: int | None) -> Iterator[_Row]:
    try:
        text = path.read_text(encoding="utf-8")
        if path.suffix.lower() == ".jsonl":
            items = [json.loads(line) for line in text.split("\n") if line.strip()]
        else:
            items = json.loads(text)
    except (ValueError, OSError) as error:
        raise UserError(f"{path}: not a readable {path.suffix} file: {_line(error)}") from error
    for number, item in enumerate((items if isinstance(items, list) else [items])[:limit], start=1):
        source: _Geometry | InvalidCrystal
        try:
            source = _geometry_of_dict(item)
        except InvalidCrystal as error:
            source = error
        except _UNREADABLE as error:
            source = InvalidCrystal("unreadable", f"not a pymatgen structure: {_line(error)}")
        properties = item.get("properties") if isinstance(item, dict) else None
        values = properties if isinstance(properties, dict) else {}
        fallback = str(number) if isinstance(items, list) else path.stem
        yield _row(f"structure {number}", fallback, values, source)


def _extxyz_rows(path: Path, limit: int | None) -> Iterator[_Row]:
    number = 0
    try:
        with open(path, encoding="utf-8") as file:
            for atoms in ase.io.iread(file, index=slice(limit), format="extxyz"):
                number += 1
                try:
                    source: _Geometry | InvalidCrystal = _geometry_of_atoms(atoms)
                except InvalidCrystal as error:
                    source = error
                results = atoms.calc.results if atoms.calc else {}  # where ASE puts an energy
                yield _row(f"frame {number}", str(number), {**atoms.info, **results}, source)
    except (*_UNREADABLE, OSError) as error:
        raise UserError(
            f"{path}: not readable as extxyz ({number} frames were): {_line(error)}"
        ) from error


def _row(
    place: str,
    fallback_id: str,
    values: dict[str, Any],
    source: str | _Geometry | InvalidCrystal,
    column: str = "",
) -> _Row:
    """A row from the values beside its crystal: the id, the properties by our names."""
    name = next((key for key in ID_COLUMNS if _scalar(values.get(key)) is not None), None)
    row_id = fallback_id if name is None else str(_scalar(values[name]))
    properties: dict[str, float | int | str] = {}
    try:
        for key, value in values.items():
            value = _scalar(value)
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
    return _Row(place=place, id=row_id, properties=properties, source=source, column=column)


def _scalar(value: Any) -> float | int | str | None:
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if isinstance(value, int | str) else None


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
    return number


def _line(error: BaseException | str) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 200 else text[:197] + "..."


# --- geometry -------------------------------------------------------------------------------------


def _resolve(rows: list[_Row], reduce: bool, workers: int | None) -> None:
    """Turn every row's CIF text into a geometry or an error, and reduce the cells, in place."""
    for row in rows:
        if isinstance(row.source, str):
            row.source = _parse_plain_cif(row.source) or row.source
    rest = [row for row in rows if isinstance(row.source, str)]
    parsed = _parse_cifs([row.source for row in rest], workers)
    for row, (source, notes) in zip(rest, parsed, strict=True):
        row.source = _at(row, source) if isinstance(source, InvalidCrystal) else source
        for note in notes:
            logger.info("%s: %s", row.place, _line(note))
    for row in rows:
        if isinstance(row.source, InvalidCrystal):
            continue
        lattice, numbers, frac_coords = row.source
        try:
            cells.check_geometry(lattice, frac_coords)
            if reduce:
                lattice, frac_coords = cells.reduce_basis(lattice, frac_coords)
                row.source = _Geometry(lattice, numbers, frac_coords)
        except InvalidCrystal as error:
            row.source = _at(row, error)


def _at(row: _Row, error: InvalidCrystal) -> InvalidCrystal:
    where = f"column {row.column!r}: " if row.column else ""
    return InvalidCrystal(error.reason, where + error.detail)


def _geometry_of_structure(structure: IStructure) -> _Geometry:
    geometry = _Geometry(
        structure.lattice.matrix, cells.atomic_numbers(structure), structure.frac_coords
    )
    cells.check_geometry(geometry.lattice, geometry.frac_coords)
    return geometry


def _geometry_of_atoms(atoms: Atoms) -> _Geometry:
    if not atoms.pbc.all():
        raise InvalidCrystal(
            "not_periodic", "not periodic in all three directions; set the cell and pbc=True"
        )
    if not np.isin(atoms.numbers, list(_ATOMIC_NUMBER.values())).all():
        raise InvalidCrystal("unknown_element", "an atom is of no element (ASE's 'X')")
    lattice = np.array(atoms.cell)
    cells.check_geometry(lattice, atoms.positions)
    frac_coords = atoms.get_scaled_positions(wrap=False)
    return _Geometry(lattice, atoms.numbers.astype(np.uint8), frac_coords)


def _geometry_of_dict(item: dict[str, Any]) -> _Geometry:
    # Not Structure.from_dict: it imports and builds whatever classes the file names.
    numbers: list[int] = []
    for index, site in enumerate(item["sites"], start=1):
        occupants = site["species"]
        if len(occupants) != 1 or abs(occupants[0]["occu"] - 1) > 1e-6:
            raise InvalidCrystal("disorder", f"site {index} is disordered")
        symbol = occupants[0]["element"]
        if symbol not in _ATOMIC_NUMBER:
            raise InvalidCrystal("unknown_element", f"site {index}: there is no element {symbol!r}")
        numbers.append(_ATOMIC_NUMBER[symbol])
    lattice = np.array(item["lattice"]["matrix"], dtype=np.float64).reshape(3, 3)
    frac_coords = np.array([site["abc"] for site in item["sites"]], dtype=np.float64).reshape(-1, 3)
    return _Geometry(lattice, np.array(numbers, dtype=np.uint8), frac_coords)


_ATOMIC_NUMBER = {element.symbol: element.Z for element in Element} | {"D": 1, "T": 1}

# By which pymatgen sorts the sites of a CIF; helium, neon and argon have no electronegativity.
_SORT_KEY = {
    element.symbol: (element.X, element.symbol)
    for element in Element
    if element.Z <= 103 and element.symbol not in ("He", "Ne", "Ar")
}
_NOTHING = _Geometry(np.zeros((3, 3)), np.zeros(0, dtype=np.uint8), np.zeros((0, 3)))

_P = r"\d+\.\d+"
_N = rf"-?{_P}"
# The CIF that pymatgen writes for a structure without symmetry, word for word.
_PLAIN_CIF = re.compile(
    r"(?:# generated using pymatgen\n)?"
    r"data_[A-Za-z0-9.()]+\n"
    r"_symmetry_space_group_name_H-M +'P 1'\n"
    rf"_cell_length_a +({_P})\n_cell_length_b +({_P})\n_cell_length_c +({_P})\n"
    rf"_cell_angle_alpha +({_P})\n_cell_angle_beta +({_P})\n_cell_angle_gamma +({_P})\n"
    r"_symmetry_Int_Tables_number +1\n"
    r"_chemical_formula_structural +[A-Za-z0-9.()]+\n"
    r"_chemical_formula_sum +'?([A-Za-z0-9 ]+)'?\n"
    rf"_cell_volume +{_N}\n"
    r"_cell_formula_units_Z +\d+\n"
    r"loop_\n _symmetry_equiv_pos_site_id\n _symmetry_equiv_pos_as_xyz\n  1  'x, y, z'\n"
    r"loop_\n _atom_site_type_symbol\n _atom_site_label\n _atom_site_symmetry_multiplicity\n"
    r" _atom_site_fract_x\n _atom_site_fract_y\n _atom_site_fract_z\n _atom_site_occupancy\n"
    rf"((?: +[A-Z][a-z]? +[A-Za-z0-9]+ +1(?: +{_N}){{3}} +1(?:\.0)?\n)+)"
)


def _parse_plain_cif(text: str) -> _Geometry | None:
    """What pymatgen's parser would give for a plain CIF, 16 times faster; None if not plain.

    Whatever could make that parser do more than read numbers (symmetry, oxidation states,
    occupancies, sites that coincide, a formula that does not match, thin cells, elements without
    an electronegativity to sort by) is left to it.
    """
    match = _PLAIN_CIF.fullmatch(text)
    if match is None:
        return None
    *cell, formula, sites = match.groups()
    words = sites.split()
    symbols = words[0::7]
    if not _SORT_KEY.keys() >= set(symbols):
        return None
    if Counter(symbols) != {s: int(n) for s, n in re.findall(r"([A-Z][a-z]?)(\d+)", formula)}:
        return None
    a, b, c, *angles = map(float, cell)
    if not 1 < min(angles) <= max(angles) < 179:
        return None
    lattice = Lattice.from_parameters(a, b, c, *angles)
    if not lattice.volume > 0.02 * max(a * b, a * c, b * c):
        return None
    frac_coords = np.array([words[3::7], words[4::7], words[5::7]], dtype=np.float64).T
    for third in (1 / 3, 2 / 3):
        frac_coords[np.abs(frac_coords / third - 1) <= 1e-4] = third
    frac_coords -= np.floor(frac_coords)
    apart = frac_coords[:, None] - frac_coords[None]  # (N, N, 3)
    apart = np.abs(apart - np.round(apart)).max(axis=-1)
    if np.count_nonzero(apart < 2e-4) > len(symbols):  # the diagonal is always there
        return None
    order = sorted(range(len(symbols)), key=lambda i: _SORT_KEY[symbols[i]])
    numbers = np.array([_ATOMIC_NUMBER[symbols[i]] for i in order], dtype=np.uint8)
    return _Geometry(lattice.matrix, numbers, frac_coords[order])


def _parse_cifs(
    texts: Sequence[str], workers: int | None
) -> list[tuple[_Geometry | InvalidCrystal, list[str]]]:
    """Geometry or error of each CIF and what pymatgen remarked on it, in the order of `texts`."""
    if workers is None:
        workers = (os.cpu_count() or 1) if len(texts) >= _WORTH_WORKERS else 1
    parsed: dict[int, list[tuple[_Geometry | InvalidCrystal, list[str]]]] = {}

    def save(chunk: tuple[int, Sequence[str]], result: Any) -> None:
        parsed[chunk[0]] = result

    chunks = [(start, texts[start : start + _CHUNK]) for start in range(0, len(texts), _CHUNK)]
    for_each(chunks, _parse_chunk, save, workers=workers)
    return [result for start in sorted(parsed) for result in parsed[start]]


def _parse_chunk(
    _: None, chunk: tuple[int, Sequence[str]]
) -> list[tuple[_Geometry | InvalidCrystal, list[str]]]:
    return [_parse_cif(text) for text in chunk[1]]


def _parse_cif(text: str) -> tuple[_Geometry | InvalidCrystal, list[str]]:
    notes: list[str] = []
    try:
        with _warnings_to(notes):
            parser = CifParser.from_str(text, check_cif=False)
            structures = parser.parse_structures(primitive=False)
            mismatch = parser.check(structures[0]) or ""
        if len(structures) > 1:
            raise InvalidCrystal(
                "unreadable", f"the CIF holds {len(structures)} structures; give each its own"
            )
        if mismatch.startswith(("Missing elements", "Incorrect stoichiometry")):
            raise InvalidCrystal(  # a site line lost on the way, or hydrogen never measured
                "wrong_formula", f"the sites do not give the CIF's own formula: {_line(mismatch)}"
            )
        return _geometry_of_structure(structures[0]), notes
    except InvalidCrystal as error:
        return error, notes
    except _UNREADABLE as error:
        cause = "; ".join(notes) or str(error) or type(error).__name__
        return InvalidCrystal("unreadable", f"not a readable CIF: {_line(cause)}"), []


@contextmanager
def _warnings_to(notes: list[str]) -> Iterator[None]:
    """Collect what pymatgen and numpy remark on the data at hand; let other warnings pass."""
    kinds = (UserWarning, RuntimeWarning)
    with warnings.catch_warnings(record=True) as caught:
        for kind in kinds:
            warnings.simplefilter("always", kind)
        try:
            yield
        finally:
            notes.extend(str(w.message) for w in caught if issubclass(w.category, kinds))
    for w in caught:
        if not issubclass(w.category, kinds):
            warnings.warn_explicit(w.message, w.category, w.filename, w.lineno)


# --- cache ----------------------------------------------------------------------------------------

_CACHE_FORMAT = 1  # raise it when the same file would give other rows


def cache_folder() -> Path:
    """Where parsed files are kept: `$FLOWLLM_CACHE`, else the user's cache folder."""
    if chosen := os.environ.get("FLOWLLM_CACHE"):
        return Path(chosen)
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA", Path.home() / "AppData" / "Local")) / "flowllm"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "flowllm"
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "flowllm"


def _cache_key(files: list[Path], reduce: bool, limit: int | None) -> str:
    """Hash of everything the rows depend on: contents, settings, the versions that read them."""
    contents = [
        # Only for CIFs does the name matter: it becomes the id.
        (file.name if file.suffix.lower() == ".cif" else file.suffix.lower(), sha256_file(file))
        for file in files
    ]
    settings = [_CACHE_FORMAT, reduce, cells.TOLERANCE, limit]
    versions = [version(package) for package in ("pymatgen", "spglib", "ase")]
    return hashlib.sha256(json.dumps([settings, versions, contents]).encode()).hexdigest()


def _store(rows: list[_Row], key: str) -> None:
    """Keep rows as KEY-DIGEST.parquet, where DIGEST is the hash of the file's own bytes."""
    geometries = [row.source if isinstance(row.source, _Geometry) else _NOTHING for row in rows]
    errors = [row.source if isinstance(row.source, InvalidCrystal) else None for row in rows]
    ends = np.cumsum([0] + [len(g.atomic_numbers) for g in geometries], dtype=np.int32)
    lattices = np.concatenate([g.lattice for g in geometries]).ravel()
    numbers = np.concatenate([g.atomic_numbers for g in geometries])
    frac_coords = np.concatenate([g.frac_coords for g in geometries]).ravel()
    table = pa.table(
        {
            "place": [row.place for row in rows],
            "id": [row.id for row in rows],
            "properties": [json.dumps(row.properties) for row in rows],
            "reason": [error.reason if error else None for error in errors],
            "detail": [error.detail if error else None for error in errors],
            "lattice": pa.FixedSizeListArray.from_arrays(lattices, 9),
            "atomic_numbers": pa.ListArray.from_arrays(ends, numbers),
            "frac_coords": pa.ListArray.from_arrays(3 * ends, frac_coords),
        }
    )
    buffer = pa.BufferOutputStream()
    pq.write_table(table, buffer, compression="zstd")
    content = buffer.getvalue().to_pybytes()
    try:
        cache_folder().mkdir(parents=True, exist_ok=True)
        write_atomic(
            cache_folder() / f"{key}-{hashlib.sha256(content).hexdigest()}.parquet", content
        )
    except OSError as error:
        logger.warning("cannot keep parsed crystals in %s: %s", cache_folder(), error)


def _load(key: str) -> list[_Row] | None:
    """The rows kept under a key; None if there are none, or only damaged ones."""
    for path in sorted(cache_folder().glob(f"{key}-*.parquet")):
        try:
            content = path.read_bytes()
        except OSError as error:
            logger.warning("cannot read %s: %s", path, error)
            continue
        if path.stem != f"{key}-{hashlib.sha256(content).hexdigest()}":
            logger.warning("%s is damaged and not used", path)
            continue
        return _rows_of_table(pq.read_table(pa.BufferReader(content)).combine_chunks())
    return None


def _rows_of_table(table: pa.Table) -> list[_Row]:
    lists = {name: table[name].chunk(0) for name in ("lattice", "atomic_numbers", "frac_coords")}
    lattices = lists["lattice"].values.to_numpy().reshape(-1, 3, 3)
    numbers = lists["atomic_numbers"].values.to_numpy()
    frac_coords = lists["frac_coords"].values.to_numpy().reshape(-1, 3)
    ends = lists["atomic_numbers"].offsets.to_numpy()
    rows = []
    columns = [
        table[name].to_pylist() for name in ("place", "id", "properties", "reason", "detail")
    ]
    for i, (place, row_id, properties, reason, detail) in enumerate(zip(*columns, strict=True)):
        atoms = slice(ends[i], ends[i + 1])
        rows.append(
            _Row(
                place=place,
                id=row_id,
                properties=json.loads(properties),
                source=InvalidCrystal(reason, detail)
                if reason
                else _Geometry(lattices[i], numbers[atoms], frac_coords[atoms]),
            )
        )
    return rows


# --- writers --------------------------------------------------------------------------------------


def _records(crystals: list[Crystal]) -> list[dict[str, Any]]:
    return [{"material_id": c.id, **_written(c), "cif": _cif_text(c.structure)} for c in crystals]


def _written(crystal: Crystal) -> dict[str, float | int | str]:
    values = {key: _scalar(value) for key, value in crystal.properties.items()}
    return {key: value for key, value in values.items() if value is not None}


def _cif_text(structure: Structure) -> str:
    notes: list[str] = []
    with _warnings_to(notes):  # on elements without an electronegativity
        return str(CifWriter(structure))


def _only_cifs(path: Path) -> bool:
    return path.is_dir() and all(p.suffix == ".cif" and p.is_file() for p in path.iterdir())


def _write_folder(crystals: list[Crystal], path: Path) -> None:
    path.mkdir()
    for crystal in crystals:
        if not re.fullmatch(r"\w[\w.()+-]*", crystal.id):
            raise UserError(f"the id {crystal.id!r} cannot be a file name; rename it")
        (path / f"{crystal.id}.cif").write_text(_cif_text(crystal.structure), encoding="utf-8")


def _write_cif(crystals: list[Crystal], path: Path) -> None:
    if len(crystals) > 1:
        raise UserError(
            f"{path.name}: a .cif file holds one crystal, not {len(crystals)}; "
            "give a name without a suffix for a folder"
        )
    path.write_text(_cif_text(crystals[0].structure), encoding="utf-8")


def _write_csv(crystals: list[Crystal], path: Path) -> None:
    records = _records(crystals)
    with open(path, "w", encoding="utf-8", newline="") as file:
        table = csv.DictWriter(file, list(dict.fromkeys(key for r in records for key in r)))
        table.writeheader()
        table.writerows(records)


def _write_parquet(crystals: list[Crystal], path: Path) -> None:
    records = _records(crystals)
    columns = {}
    for name in dict.fromkeys(key for record in records for key in record):
        try:
            columns[name] = pa.array([record.get(name) for record in records])
        except pa.ArrowException as error:
            raise UserError(f"the property {name!r} has values of several types") from error
    pq.write_table(pa.table(columns), path, compression="zstd")


_EXTXYZ_KEYS = ("Lattice", "Properties", "pbc")  # the frame's own


def _write_extxyz(crystals: list[Crystal], path: Path) -> None:
    frames = []
    for crystal in crystals:
        atoms = to_atoms(crystal.structure)
        for key, value in {"material_id": crystal.id, **_written(crystal)}.items():
            atoms.info[key] = _extxyz_value(key, value)
        frames.append(atoms)
    ase.io.write(path, frames, format="extxyz")


def _extxyz_value(key: str, value: float | int | str) -> float | int | str:
    """The value, or a string (`007`, `T`, `1 2`) as the JSON that ASE reads back as that string."""
    forms = [value]
    if isinstance(value, str):
        forms.append("_JSON " + json.dumps(value).replace("\\", "\\\\"))  # ASE undoes one escape
    for form in forms:
        with suppress(*_UNREADABLE):
            back = _scalar(key_val_str_to_dict(key_val_dict_to_str({key: form})).get(key))
            if type(back) is type(value) and back == value and key not in _EXTXYZ_KEYS:
                return form
    raise UserError(f"extxyz cannot hold the property {key!r} = {value!r}; rename or drop it")


def _write_json(crystals: list[Crystal], path: Path) -> None:
    path.write_text(json.dumps(_structure_dicts(crystals)), encoding="utf-8")


def _write_jsonl(crystals: list[Crystal], path: Path) -> None:
    lines = [json.dumps(item) + "\n" for item in _structure_dicts(crystals)]
    path.write_text("".join(lines), encoding="utf-8")


def _structure_dicts(crystals: list[Crystal]) -> list[dict[str, Any]]:
    return [
        c.structure.as_dict() | {"properties": {"material_id": c.id, **_written(c)}}
        for c in crystals
    ]


_WRITERS = {
    ".cif": _write_cif,
    ".csv": _write_csv,
    ".parquet": _write_parquet,
    ".extxyz": _write_extxyz,
    ".xyz": _write_extxyz,
    ".json": _write_json,
    ".jsonl": _write_jsonl,
}
_KNOWN = f"known are {', '.join(_WRITERS)} and a folder of CIFs"
