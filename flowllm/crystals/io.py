"""Reading and writing crystals: CSV, parquet, CIF (a file or folder), extxyz, JSON, POSCAR, ...

Compressed files, archives, run folders and standard input are read only.

`readers` turns every format into `Row`s, `cif` parses those that are CIFs, and `_admit` decides
which rows become crystals. From there on all formats are alike. Large files are cached by content.
"""

from __future__ import annotations

import logging
import shutil
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import replace
from os import PathLike
from pathlib import Path

from ase import Atoms
from pymatgen.core import IStructure, Structure

from flowllm.crystals import cells
from flowllm.crystals.cache import cache_folder, cache_key, load, store
from flowllm.crystals.cif import CifCrystal, parse_cifs, parse_plain_cif
from flowllm.crystals.crystal import (
    Crystal,
    Geometry,
    geometry_of_structure,
    to_atoms,
    to_structure,
)
from flowllm.crystals.readers import DEAD_LINK, FAILED, Input, Row, Rows, read_run_rows
from flowllm.crystals.rules import check_crystal
from flowllm.crystals.run_folders import input_hash, run_table
from flowllm.crystals.writers import KNOWN, write_folder, writer_for
from flowllm.errors import InvalidCrystal, UserError, one_line
from flowllm.system.files import publish

__all__ = [
    "Crystal",
    "Crystals",
    "cache_folder",
    "check_input",
    "input_hash",
    "read",
    "read_all",
    "run_table",
    "to_atoms",
    "to_structure",
    "write",
]

logger = logging.getLogger(__name__)

_WORTH_CACHING = 500  # rows; parsing fewer takes about as long as reading a cache entry
_NO_ERRORS = (FAILED, DEAD_LINK)  # reasons of rows that are counted and do not stop a command
_SHOWN_NOTES = 10  # warnings of one file


class Crystals(list[Crystal]):
    """A list of crystals with the number of rows that were left out.

    Attributes:
        skipped: number of rows left out, by reason; see `flowllm.errors.InvalidCrystal`.
    """

    def __init__(
        self, crystals: Iterable[Crystal] = (), skipped: Counter[str] | None = None
    ) -> None:
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
    """Return the crystals of a file or folder; the suffix tells the format.

    - `.csv`, `.tsv`, `.parquet`: crystals in a column `cif` (or `structure`), an id in
      `material_id` or another of `columns.ID_COLUMNS` (else the number of the row, from 1), and
      properties under the names of `columns.FIELD_OF_COLUMN`.
    - `.cif`, `.mcif`: a crystal for each data block; the id is the file name, followed by the name
      of the data block if a file has several crystals. A crystal that a file gives in two settings
      is read once.
    - `.vasp`, `.poscar`, or a name that begins with `POSCAR` or `CONTCAR`: one crystal.
    - `.extxyz`, `.xyz`: frames, with properties from the comment line.
    - `.json`, `.jsonl`: structures or documents with one, such as those of Materials Project or
      OPTIMADE; see `documents`.
    - `.db`: a database of ASE in SQLite.
    - Each of them compressed by gzip, bzip2 or xz (`.gz`, `.bz2`, `.xz`).
    - A folder with its subfolders, `.zip` or `.tar` (also compressed): their files of crystals; the
      ids are file names, with folders where two are the same.
    - `-`: standard input, whose content tells the format.
    - The folder of a finished run of sample, refine, mutate or relax, or of an evaluation (its
      relaxed crystals if it has some): ids and properties as the run has them. Crystals that the
      run lists as failed are counted and left out.

    A CIF is checked against itself: its symmetry operations, space group, formula, Z,
    multiplicities, cell and volume must agree. What has to be assumed is a warning that names file
    and block. Sites are sorted by electronegativity; coordinates within a ten-thousandth of 1/3 or
    2/3 are made exact, and positions that were rounded are moved onto symmetry elements.

    Texts are UTF-8, or UTF-16 or UTF-32 with a byte-order mark. Deuterium and tritium become
    hydrogen. Properties never decide whether a crystal is read: those without meaning are counted
    in a warning and left out, like missing and non-finite ones and those that are no scalars. A
    link in a folder that points to nothing is named, counted and left out.

    Args:
        path: of the file or folder, or `-`.
        skip_invalid: leave out and count bad rows, instead of stopping at the first.
        reduce: bring every crystal into its Niggli cell; see `cells.reduce_basis`.
        max_atoms: a crystal with more atoms is a bad row.
        limit: read at most this many rows.
        workers: number of processes for CIFs other than those that pymatgen writes without
            symmetry; None: one per core if there are many. Processes are spawned, so a script
            needs `if __name__ == "__main__":`.

    Returns:
        The crystals, in the order of the file.

    Raises:
        UserError: if there is no such file, its suffix is unknown, it is damaged as a whole, holds
            no valid crystal or has no column `cif`, or a run is not finished.
        InvalidCrystal: if a row is bad and `skip_invalid` is not set: unreadable, a CIF that
            contradicts itself, disorder, an unknown element, a cell that is not finite or has no
            volume, two atoms at one place, not periodic in three directions, too many atoms, an id
            that occurs twice.
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
) -> Rows:
    """Return every row of a file or folder, including bad rows, for callers that count them.

    Args:
        path: see `read`.
        reduce: see `read`.
        limit: see `read`.
        workers: see `read`.

    Returns:
        The rows. The source of each is a `Geometry`, or an `InvalidCrystal` with its reason, which
        is `failed` for a crystal that a run lists as failed.

    Raises:
        UserError: if there is no such file, its suffix is unknown, it is damaged as a whole or has
            no column `cif`, or a run is not finished.
    """
    path = Path(path)
    for name, value in (("limit", limit), ("workers", workers)):
        if value is not None and value < 1:
            raise UserError(f"{name} must be at least 1, not {value}")
    table = run_table(path)
    source = Input(table or path)
    key = cache_key(source.identity(), reduce, limit, is_run=table is not None)
    rows = load(key)
    if rows is None:
        rows = read_run_rows(table, limit) if table else source.rows(limit)
        rows = Rows(_resolve(rows, reduce, workers)[:limit], rows.notes)
        if len(rows) >= _WORTH_CACHING:
            store(rows, key)
    if not rows:
        raise UserError(f"{path}: holds no crystals; give another file")
    _report(path, rows)
    return rows


def usable(path: str | Path, rows: Iterable[Row]) -> list[tuple[Row, Geometry]]:
    """Return the rows that are crystals, with a warning that counts the others by reason.

    Args:
        path: of the file or folder, for messages.
        rows: from `read_all`.

    Returns:
        The rows with their geometries, in order.

    Raises:
        UserError: if there is none.
    """
    skipped = _Skipped()
    good = []
    for row in rows:
        if isinstance(row.source, InvalidCrystal):
            skipped.add(row, row.source)
        elif isinstance(row.source, Geometry):
            good.append((row, row.source))
    skipped.report(path, len(good))
    return good


def check_input(path: str | Path) -> None:
    """Check that `read` knows the format of a file or folder, without reading it.

    Args:
        path: see `read`.

    Raises:
        UserError: if there is no such file, its suffix is unknown, a folder holds no CIFs, or a
            run is not finished.
    """
    if not isinstance(path, str | PathLike):
        raise UserError(f"a file or folder of crystals is needed, not a {type(path).__name__}")
    path = Path(path)
    if run_table(path) is None:
        Input(path)


def write(
    crystals: Crystal | Structure | Atoms | Iterable[Crystal | Structure | Atoms],
    path: str | Path,
    *,
    overwrite: bool = False,
) -> Path:
    """Write crystals to a file in the format of its suffix, or to a folder of CIFs if it has none.

    A name that begins with `POSCAR` or `CONTCAR` is a POSCAR. `.db` is a database of ASE,
    `.optimade.json` the structures of an OPTIMADE provider, `.entries.json` a list of pymatgen's
    `ComputedStructureEntry` (the crystals need `energy_per_atom` or `energy`), and `.html` a page
    to look at, which cannot be read again. The file is whole or absent, even after a kill.

    CIF (and so CSV and parquet) and extxyz keep eight decimals, POSCAR sixteen, JSON and
    databases all. A CIF is
    read with its sites sorted by electronegativity; a POSCAR has its sites grouped by element. CIF
    files and POSCAR hold no properties. CSV forgets types: the string `007` comes back as 7.
    Non-finite property values are left out.

    Args:
        crystals: one or more; pymatgen Structures and ASE Atoms get the ids 1, 2 and so on.
        path: of the file or folder.
        overwrite: replace a file, or a folder that holds only CIFs.

    Returns:
        `path`.

    Raises:
        UserError: if the file exists and `overwrite` is not set, its suffix is unknown, there are
            no crystals, `read` would refuse one of them, ids occur twice or cannot be file names,
            there are several crystals for a CIF file or POSCAR, or the format cannot hold a
            property.
    """
    path = Path(path)
    if isinstance(crystals, Crystal | IStructure | Atoms):  # the last two are sequences
        crystals = [crystals]
    named = [
        item if isinstance(item, Crystal) else Crystal(id=str(number), structure=to_structure(item))
        for number, item in enumerate(crystals, start=1)
    ]
    writer = writer_for(path)
    if writer is None:
        raise UserError(f"{path}: cannot write {path.suffix!r} files; {KNOWN}")
    if not named:
        raise UserError(f"{path}: there are no crystals to write; give at least one")
    for crystal in named:
        try:
            geometry_of_structure(crystal.structure)
        except InvalidCrystal as error:
            raise UserError(f"cannot write crystal {crystal.id}: {error.detail}") from error
        for name in ("material_id", "cif"):
            if name in crystal.properties:
                raise UserError(
                    f"crystal {crystal.id}: rename its property {name!r}, a column of its own"
                )
    repeated = [name for name, count in Counter(c.id for c in named).items() if count > 1]
    if repeated:
        raise UserError(f"{path}: the id {repeated[0]!r} occurs twice; give every crystal its own")
    if path.exists() and not overwrite:
        raise UserError(
            f"{path} exists; choose another name, or replace it with overwrite=True (--overwrite)"
        )
    if writer is write_folder and path.exists() and not _only_cifs(path):
        raise UserError(f"{path} is more than a folder of CIFs and stays; choose another name")
    path.parent.mkdir(parents=True, exist_ok=True)
    return publish(path, lambda temporary: _replace(writer, named, temporary, path))


def _replace(
    writer: Callable[[list[Crystal], Path], None],
    crystals: list[Crystal],
    temporary: Path,
    path: Path,
) -> None:
    writer(crystals, temporary)
    if path.is_dir():
        shutil.rmtree(path)  # only now that the new folder is whole


def _resolve(rows: list[Row], reduce: bool, workers: int | None) -> list[Row]:
    """Return the rows with a geometry or an error for every CIF text, with reduced cells.

    A file with several crystals becomes several rows; a column of a table holds one crystal.
    """
    for row in rows:
        if isinstance(row.source, str):
            row.source = parse_plain_cif(row.source) or row.source
    rest = [(row, row.source) for row in rows if isinstance(row.source, str)]
    parsed = parse_cifs([text for _, text in rest], workers)
    several: dict[int, list[Row]] = {}
    for (row, _), crystals in zip(rest, parsed, strict=True):
        if len(crystals) == 1:
            row.source, row.notes = crystals[0].source, crystals[0].notes
        elif row.column:
            row.source = _one_of(crystals)
        else:
            several[id(row)] = _rows_of_blocks(row, crystals)
        if isinstance(row.source, InvalidCrystal):
            row.source = _in_column(row, row.source)
    if several:
        rows = [one for row in rows for one in several.get(id(row), [row])]
    for row in rows:
        if not isinstance(row.source, Geometry):
            continue
        lattice, numbers, frac_coords = row.source
        try:
            check_crystal(lattice, numbers, frac_coords)
            if reduce:
                lattice, frac_coords = cells.reduce_basis(lattice, frac_coords)
                row.source = Geometry(lattice, numbers, frac_coords)
        except InvalidCrystal as error:
            row.source = _in_column(row, error)
    return rows


def _one_of(crystals: list[CifCrystal]) -> InvalidCrystal:
    """Return why several crystals in one place of a table are no crystal."""
    for crystal in crystals:
        if isinstance(crystal.source, InvalidCrystal):
            return crystal.source
    return InvalidCrystal(
        "unreadable", f"the CIF holds {len(crystals)} structures; give each its own row"
    )


def _rows_of_blocks(row: Row, crystals: list[CifCrystal]) -> list[Row]:
    """Return a row for each data block of a file; its id is that of the file and the block."""
    names: Counter[str] = Counter()
    rows = []
    for crystal in crystals:
        names[crystal.block] += 1
        count = names[crystal.block]
        parts = (row.id, crystal.block, str(count) if count > 1 or not crystal.block else "")
        rows.append(
            replace(
                row,
                id="-".join(part for part in parts if part),
                source=crystal.source,
                notes=crystal.notes,
            )
        )
    return rows


def _in_column(row: Row, error: InvalidCrystal) -> InvalidCrystal:
    where = f"column {row.column!r}: " if row.column else ""
    return InvalidCrystal(error.reason, where + error.detail)


def _admit(path: Path, rows: list[Row], skip_invalid: bool, max_atoms: int | None) -> Crystals:
    crystals = Crystals()
    skipped = _Skipped()
    seen: set[str] = set()
    for row in rows:
        found = _checked(row, seen, max_atoms)
        if isinstance(found, InvalidCrystal):
            if not skip_invalid and found.reason not in _NO_ERRORS:
                raise InvalidCrystal(
                    found.reason,
                    f"{path}: {row.place} (id {row.id}): {found.detail}; fix it, or leave such "
                    "crystals out with skip_invalid (--skip-invalid)",
                )
            skipped.add(row, found)
            continue
        seen.add(row.id)
        structure = cells.make_structure(*found)
        crystals.append(
            Crystal(id=row.id, structure=structure, properties=row.properties, ignored=row.ignored)
        )
    skipped.report(path, len(crystals))
    crystals.skipped = skipped.counts
    return crystals


class _Skipped:
    """The rows of a file that are left out."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.first = ""  # the first of them

    def add(self, row: Row, error: InvalidCrystal) -> None:
        self.first = self.first or f"{row.place}: {error.detail}"
        self.counts[error.reason] += 1

    def report(self, path: str | Path, num_crystals: int) -> None:
        """Warn of the rows by reason, or raise a `UserError` if no crystal is left."""
        words = ", ".join(f"{reason} {count}" for reason, count in self.counts.most_common())
        if not num_crystals:
            raise UserError(
                f"{path}: holds no valid crystal ({words}; {self.first}); give another file"
            )
        if words:
            logger.warning("%s: read %d crystals, left out: %s", path, num_crystals, words)


def _report(path: Path, rows: Rows) -> None:
    """Warn of what was assumed, of files and values that are not used, and of dead links."""
    assumed = [f"{row.place}: {one_line(note)}" for row in rows for note in row.notes]
    for note in (*rows.notes, *assumed[:_SHOWN_NOTES]):
        logger.warning("%s: %s", path, note)
    if len(assumed) > _SHOWN_NOTES:
        logger.warning("%s: and %d more warnings like these", path, len(assumed) - _SHOWN_NOTES)
    first: dict[str, tuple[Row, str]] = {}
    counts: Counter[str] = Counter()
    for row in rows:
        if isinstance(row.source, InvalidCrystal) and row.source.reason == DEAD_LINK:
            logger.warning("%s: %s: %s", path, row.place, row.source)
        for name, problem in row.ignored.items():
            counts[name] += 1
            first.setdefault(name, (row, problem))
    for name, count in counts.items():
        row, problem = first[name]
        logger.warning(
            "%s: %s is not used in %d of %d rows: %s: %s",
            *(path, name, count, len(rows), row.place, problem),
        )


def _checked(row: Row, seen: set[str], max_atoms: int | None) -> Geometry | InvalidCrystal:
    """Return the geometry of a row, or the reason to leave it out."""
    assert not isinstance(row.source, str)  # `_resolve` has parsed every CIF
    if isinstance(row.source, InvalidCrystal):
        return row.source
    num_atoms = len(row.source.atomic_numbers)
    if max_atoms is not None and num_atoms > max_atoms:
        return InvalidCrystal("too_many_atoms", f"{num_atoms} atoms, over max_atoms={max_atoms}")
    if row.id in seen:
        return InvalidCrystal("duplicate_id", f"an earlier crystal has the id {row.id!r}")
    return row.source


def _only_cifs(path: Path) -> bool:
    return path.is_dir() and all(p.suffix == ".cif" and p.is_file() for p in path.iterdir())
