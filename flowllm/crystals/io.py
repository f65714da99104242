"""Crystals in and out of files: CSV, parquet, CIF (a file or a folder), extxyz, JSON.

Zip archives of CIFs and POSCAR are read only.

Reading: `rows` makes `Row`s of every format, `cif` parses those that are CIFs, `_admit` decides
which become crystals; from there on all formats are one. Large files are cached by content.
"""

from __future__ import annotations

import logging
import shutil
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from flowllm.crystals import cells
from flowllm.crystals.cache import cache_folder, cache_key, load, store
from flowllm.crystals.cif import parse_cifs, parse_plain_cif
from flowllm.crystals.crystal import (
    Crystal,
    Geometry,
    geometry_of_structure,
    to_atoms,
    to_structure,
)
from flowllm.crystals.readers import Row, is_poscar, read_rows
from flowllm.crystals.writers import KNOWN, WRITERS, write_folder
from flowllm.errors import InvalidCrystal, UserError, one_line
from flowllm.system.files import publish

__all__ = [
    "Crystal",
    "Crystals",
    "cache_folder",
    "read",
    "read_all",
    "to_atoms",
    "to_structure",
    "write",
]

logger = logging.getLogger(__name__)

_WORTH_CACHING = 500  # rows; fewer are parsed about as fast as a cache entry is read


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
    1), and properties. `.cif`, or a folder or `.zip` of them: the id is the file name; one
    structure a file.
    `.extxyz`, `.xyz`: properties from the comment line. `.json`, `.jsonl`: pymatgen structure
    dicts (one, a list, or one a line), properties from their `properties`. `.vasp`, or a name that
    begins with `POSCAR` or `CONTCAR`: one structure, with its elements named.

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
    if max_atoms is not None and max_atoms < 1:
        raise UserError(f"max_atoms must be at least 1, not {max_atoms}")
    rows = read_all(path, reduce=reduce, limit=limit, workers=workers)
    return _admit(path, rows, skip_invalid, max_atoms)


def read_all(
    path: str | Path,
    *,
    reduce: bool = True,
    limit: int | None = None,
    workers: int | None = None,
) -> list[Row]:
    """Every row of a file or folder, each with a `Geometry` or the `InvalidCrystal` that it is.

    For those who count the bad ones; arguments and formats as for `read`.

    Raises:
        UserError: no such file, unknown suffix, no column `cif`, or a file that is damaged as a
            whole.
    """
    path = Path(path)
    for name, value in (("limit", limit), ("workers", workers)):
        if value is not None and value < 1:
            raise UserError(f"{name} must be at least 1, not {value}")
    files = _files(path)[:limit] if path.is_dir() else _files(path)
    key = cache_key(files, reduce, limit)
    rows = load(key)
    if rows is None:
        rows = list(read_rows(path, files, limit))
        _resolve(rows, reduce, workers)
        if len(rows) >= _WORTH_CACHING:
            store(rows, key)
    return rows


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
    writer = write_folder if folder else WRITERS.get(path.suffix.lower())
    if writer is None:
        raise UserError(f"{path}: cannot write {path.suffix!r} files; {KNOWN}")
    if not crystals:
        raise UserError(f"{path}: there are no crystals to write")
    for crystal in crystals:
        try:
            geometry_of_structure(crystal.structure)
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
        raise UserError(
            f"{path} exists; choose another name, or replace it with overwrite=True (--overwrite)"
        )
    if folder and path.exists() and not _only_cifs(path):
        raise UserError(f"{path} is more than a folder of CIFs and stays; choose another name")

    def make(temporary: Path) -> None:
        writer(crystals, temporary)
        if folder and path.exists():
            shutil.rmtree(path)  # only now that the new one is whole

    path.parent.mkdir(parents=True, exist_ok=True)
    return publish(path, make)


def _files(path: Path) -> list[Path]:
    if not path.exists():
        raise UserError(f"{path}: no such file or folder; check the path")
    if path.is_dir():
        files = sorted(p for p in path.iterdir() if p.suffix.lower() == ".cif" and p.is_file())
        if not files:
            run = (path / "cif").is_dir()  # of `flowllm sample` or `refine`
            hint = f"; it is a run folder, give {path / 'cif'}" if run else ""
            raise UserError(f"{path}: the folder holds no .cif files{hint}")
        return files
    if path.suffix.lower() not in (*WRITERS, ".zip") and not is_poscar(path):
        raise UserError(
            f"{path}: cannot read {path.suffix!r} files; {KNOWN}, a .zip of CIFs, and POSCAR"
        )
    return [path]


def _resolve(rows: list[Row], reduce: bool, workers: int | None) -> None:
    """Turn every row's CIF text into a geometry or an error, and reduce the cells, in place."""
    for row in rows:
        if isinstance(row.source, str):
            row.source = parse_plain_cif(row.source) or row.source
    rest = [row for row in rows if isinstance(row.source, str)]
    parsed = parse_cifs([row.source for row in rest], workers)
    for row, (source, notes) in zip(rest, parsed, strict=True):
        row.source = _at(row, source) if isinstance(source, InvalidCrystal) else source
        for note in notes:
            logger.info("%s: %s", row.place, one_line(note))
    for row in rows:
        if isinstance(row.source, InvalidCrystal):
            continue
        lattice, numbers, frac_coords = row.source
        try:
            cells.check_geometry(lattice, frac_coords)
            if reduce:
                lattice, frac_coords = cells.reduce_basis(lattice, frac_coords)
                row.source = Geometry(lattice, numbers, frac_coords)
        except InvalidCrystal as error:
            row.source = _at(row, error)


def _at(row: Row, error: InvalidCrystal) -> InvalidCrystal:
    where = f"column {row.column!r}: " if row.column else ""
    return InvalidCrystal(error.reason, where + error.detail)


def _admit(path: Path, rows: list[Row], skip_invalid: bool, max_atoms: int | None) -> Crystals:
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
                    "crystals out with skip_invalid (--skip-invalid)",
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


def _refusal(row: Row, seen: set[str], max_atoms: int | None) -> InvalidCrystal | None:
    if isinstance(row.source, InvalidCrystal):
        return row.source
    num_atoms = len(row.source.atomic_numbers)
    if max_atoms is not None and num_atoms > max_atoms:
        return InvalidCrystal("too_many_atoms", f"{num_atoms} atoms, over max_atoms={max_atoms}")
    if row.id in seen:
        return InvalidCrystal("duplicate_id", f"an earlier crystal has the id {row.id!r}")
    return None


def _only_cifs(path: Path) -> bool:
    return path.is_dir() and all(p.suffix == ".cif" and p.is_file() for p in path.iterdir())
