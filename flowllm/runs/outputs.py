"""The files that a run of crystals ends with: a table, an extxyz file, CIFs and trajectories."""

from __future__ import annotations

import bisect
import contextlib
import functools
import itertools
import json
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO, overload

import orjson
import pyarrow as pa
import pyarrow.parquet as pq
from pymatgen.core import Structure

from flowllm.crystals.cif import cif_text
from flowllm.crystals.crystal import ignore_missing_electronegativity
from flowllm.crystals.documents import structure_dict
from flowllm.crystals.io import Crystal
from flowllm.crystals.symmetry import SYMPREC
from flowllm.crystals.writers import extxyz_frame
from flowllm.runs.cif_form import CifForm
from flowllm.runs.records import CrystalRecord, Description, Frame, read_records
from flowllm.runs.sharded import Batch, Record, RunFolder
from flowllm.system.files import FileNames

if TYPE_CHECKING:
    from ase import Atoms

# The columns of every `samples.parquet`: structures as pymatgen JSON, `rejects` as JSON. `formula`
# and `num_atoms` describe the final crystal, or the initial one if there is no final one. `cif` has
# the cell and the sites of `structure`, whatever the form of the files in `cif/`. `spacegroup` and
# `wyckoff` (see `Symmetry`) are those of the final crystal at `SYMPREC`, which is in the metadata
# of the two fields; they are null where spglib finds no symmetry.
CORE_COLUMNS = {
    "id": pa.string(),
    "formula": pa.string(),
    "num_atoms": pa.int64(),
    "spacegroup": pa.int64(),
    "wyckoff": pa.string(),
    "cif": pa.string(),
    "structure": pa.string(),
    "initial_structure": pa.string(),
    "failure": pa.string(),
    "rejects": pa.string(),
}
_AT_SYMPREC = ("spacegroup", "wyckoff")
_ROWS = 1000  # of the table that are in memory at a time


class RunCrystals(Sequence[Crystal]):
    """The crystals that a run made, read from its shards when they are used.

    The records of the last shard are kept, so that one crystal after the other does not parse a
    shard each time.

    Args:
        folder: the run, which must stay as long as they are used.
        numbers: of the crystals in each shard.
        properties: names of the properties that they have.
    """

    def __init__(self, folder: RunFolder, numbers: Sequence[int], properties: Sequence[str]):
        self._folder = folder
        self._batches = folder.batches
        self._ends = list(itertools.accumulate(numbers))
        self._properties = properties
        self._last: tuple[int, list[Record]] | None = None  # index of the shard, its crystals

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __iter__(self) -> Iterator[Crystal]:
        return self._since(0)

    @overload
    def __getitem__(self, index: int) -> Crystal: ...

    @overload
    def __getitem__(self, index: slice) -> list[Crystal]: ...

    def __getitem__(self, index: int | slice) -> Crystal | list[Crystal]:
        if isinstance(index, slice):
            start, stop, step = index.indices(len(self))
            if step == 1:
                return list(itertools.islice(self._since(start), max(0, stop - start)))
            return [self[k] for k in range(start, stop, step)]
        place = range(len(self))[index]  # raises for an index without a crystal
        return next(self._since(place))

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, Sequence)
            and len(self) == len(other)
            and all(mine == theirs for mine, theirs in zip(self, other, strict=True))
        )

    def __repr__(self) -> str:
        return f"<{len(self)} crystals of {self._folder.path}>"

    def _since(self, place: int) -> Iterator[Crystal]:
        """Yield the crystals from the one at a place on."""
        first = bisect.bisect_right(self._ends, place)
        skipped = place - (self._ends[first - 1] if first else 0)
        for batch in self._batches[first:]:
            for record in self._of_shard(batch)[skipped:]:
                crystal = crystal_of(CrystalRecord.from_json(record), self._properties)
                assert crystal is not None
                yield crystal
            skipped = 0

    def _of_shard(self, batch: Batch) -> list[Record]:
        """Return the records with a crystal; plain JSON, as callers may change the crystals."""
        last = self._last
        if last is None or last[0] != batch.index:
            records = self._folder.read_shard(batch)
            last = batch.index, [r for r in records if r["structure"] is not None]
            self._last = last
        return last[1]


@dataclass(frozen=True)
class Outcome:
    """A finished run of crystals.

    Attributes:
        folder: the run folder.
        crystals: those that were made, in the order of their records, with their properties. They
            are read from the folder when they are used.
        failures: the others, by reason.
        rejects: answers of the prior that were refused, by reason; those given before a crystal
            was made included.
    """

    folder: Path
    crystals: Sequence[Crystal]
    failures: Counter[str]
    rejects: Counter[str] = field(default_factory=Counter)


def publish_crystals(
    folder: RunFolder,
    columns: Mapping[str, pa.DataType],
    *,
    cif: CifForm,
    table_only: Collection[str] = (),
) -> Outcome:
    """Write `samples.parquet`, `samples.extxyz`, `cif/` and `trajectories/` of a complete run.

    Each appears whole or not at all, and only if it is absent. The table has a row for every
    record: `CORE_COLUMNS`, then the command's own. The other files hold the crystals that were
    made, and an extxyz file for each record with a trajectory; without any they are not written.
    The records are read one after the other, so memory does not grow with the run.

    Args:
        folder: the run; its shards hold `CrystalRecord`s.
        columns: names and types of the command's own columns, the `properties` of the records.
        cif: form of the files in `cif/`: `symmetrized` (see `symmetrized_cif`), or `p1`, each
            crystal in its own cell with all its sites.
        table_only: columns that the extxyz file and `Outcome.crystals` do not have.

    Returns:
        The crystals and the counts of failures.

    Raises:
        UserError: if shards are missing or damaged, or another process works in the folder.
    """
    properties = [column for column in columns if column not in table_only]
    counts = _publish(folder, lambda: read_records(folder), columns, properties, cif, "samples")
    crystals = RunCrystals(folder, counts.of_shards(folder.run["batch_size"]), properties)
    return Outcome(folder.path, crystals, counts.failures, counts.rejects)


def publish_records(
    folder: RunFolder,
    records: Sequence[CrystalRecord],
    columns: Mapping[str, pa.DataType],
    *,
    cif: CifForm,
    table_only: Collection[str] = (),
    name: str = "samples",
) -> Outcome:
    """Write `NAME.parquet`, `NAME.extxyz` and `cif/` for the crystals of a complete run.

    See `publish_crystals`.

    Args:
        folder: the run.
        records: the crystals, whatever its shards hold.
        columns: as for `publish_crystals`.
        cif: as for `publish_crystals`.
        table_only: as for `publish_crystals`.
        name: of the table and the extxyz file.

    Returns:
        The crystals and the counts of failures.

    Raises:
        UserError: if shards are missing, or another process works in the folder.
    """
    properties = [column for column in columns if column not in table_only]
    counts = _publish(folder, lambda: iter(records), columns, properties, cif, name)
    crystals = [crystal_of(record, properties) for record in records]
    return Outcome(folder.path, [c for c in crystals if c], counts.failures, counts.rejects)


def crystal_of(record: CrystalRecord, properties: Sequence[str]) -> Crystal | None:
    """Return the crystal of a record; None if there is none.

    Args:
        record: of a run.
        properties: names of the properties that it keeps, where it has them.
    """
    if record.structure is None:
        return None
    kept = {name: record.properties[name] for name in properties if name in record.properties}
    return Crystal(id=record.id, structure=record.structure, properties=kept)


class _Counts:
    """What a run made, counted record by record."""

    def __init__(self) -> None:
        self.made = bytearray()  # for each record: 1 if there is a crystal
        self.failures: Counter[str] = Counter()
        self.rejects: Counter[str] = Counter()

    def add(self, record: CrystalRecord) -> None:
        self.made.append(record.structure is not None)
        if record.failure is not None:
            self.failures[record.failure] += 1
        self.rejects.update(record.rejects)

    def of_shards(self, size: int) -> list[int]:
        """Return the numbers of crystals of shards of so many records."""
        return [sum(self.made[start : start + size]) for start in range(0, len(self.made), size)]


class _Described:
    """A record with its name in folders; what several outputs need of it is made once."""

    def __init__(self, record: CrystalRecord, name: str) -> None:
        self.record = record
        self.name = name

    @functools.cached_property
    def cif(self) -> str | None:
        structure = self.record.structure
        return None if structure is None else cif_text(structure)

    @functools.cached_property
    def description(self) -> Description | None:
        return self.record.described().description


def _publish(
    folder: RunFolder,
    read: Callable[[], Iterable[CrystalRecord]],
    columns: Mapping[str, pa.DataType],
    properties: Sequence[str],
    cif: CifForm,
    name: str,
) -> _Counts:
    """Write the outputs that are absent in one pass over the records, and count these."""
    table, frames = f"{name}.parquet", f"{name}.extxyz"
    counts = _Counts()

    def write(path: Path, absent: Collection[str]) -> None:
        names = FileNames()
        with contextlib.ExitStack() as stack:
            writers: list[Callable[[_Described], None]] = []
            if table in absent:
                writers.append(stack.enter_context(_table(path / table, columns)))
            if frames in absent:
                writers.append(stack.enter_context(_frames(path / frames, properties)))
            if "cif" in absent:
                writers.append(functools.partial(_write_cif, _Folder(path / "cif"), cif))
            if "trajectories" in absent:
                trajectories = _Folder(path / "trajectories")
                writers.append(functools.partial(_write_trajectory, trajectories))
            for record in read():
                counts.add(record)
                described = _Described(record, names.next(record.id))
                for add in writers:
                    add(described)

    folder.publish_together([table, frames, "cif", "trajectories"], write)
    return counts


@contextlib.contextmanager
def _table(
    path: Path, columns: Mapping[str, pa.DataType]
) -> Iterator[Callable[[_Described], None]]:
    """Give a function that adds a row to a new table."""
    symprec = {"symprec": f"{SYMPREC:g}"}
    schema = pa.schema(
        pa.field(name, kind, metadata=symprec if name in _AT_SYMPREC else None)
        for name, kind in {**CORE_COLUMNS, **columns}.items()
    )
    rows: list[dict[str, Any]] = []
    with open(path, "wb") as file, pq.ParquetWriter(file, schema, compression="zstd") as table:

        def flush() -> None:
            table.write_table(pa.Table.from_pylist(rows, schema=schema))
            rows.clear()

        def add(described: _Described) -> None:
            rows.append(_row(described.record, described.cif, described.description))
            if len(rows) == _ROWS:
                flush()

        yield add
        if rows:
            flush()


@contextlib.contextmanager
def _frames(path: Path, properties: Sequence[str]) -> Iterator[Callable[[_Described], None]]:
    """Give a function that adds a crystal to an extxyz file, which is made for the first one."""
    import ase.io  # slow to import

    with contextlib.ExitStack() as stack:
        file: TextIO | None = None

        def add(described: _Described) -> None:
            nonlocal file
            crystal = crystal_of(described.record, properties)
            if crystal is None:
                return
            if file is None:
                file = stack.enter_context(open(path, "w"))
            ase.io.write(file, extxyz_frame(crystal), format="extxyz")

        yield add


class _Folder:
    """A folder that is made for its first file: a call on each file costs a large run."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._made = False

    def file(self, name: str) -> Path:
        """Return the path of a file in the folder."""
        if not self._made:
            self._path.mkdir()
            self._made = True
        return self._path / name


def _write_cif(folder: _Folder, form: CifForm, described: _Described) -> None:
    description = described.description
    text = described.cif if form == "p1" or description is None else description.cif
    if text is None:
        return
    folder.file(f"{described.name}.cif").write_text(text, encoding="utf-8")


def _write_trajectory(folder: _Folder, described: _Described) -> None:
    record = described.record
    if record.trajectory is None or record.initial_structure is None:
        return
    import ase.io

    numbers = record.initial_structure.atomic_numbers
    frames = [_atoms(numbers, frame) for frame in record.trajectory]
    ase.io.write(folder.file(f"{described.name}.extxyz"), frames, format="extxyz")


def _row(record: CrystalRecord, cif: str | None, description: Description | None) -> dict[str, Any]:
    named = record.structure if record.structure is not None else record.initial_structure
    row = {
        **record.properties,
        "id": record.id,
        "cif": cif,
        "structure": _json(record.structure),
        "initial_structure": _json(record.initial_structure),
        "failure": record.failure,
        "rejects": json.dumps(record.rejects),
    }
    if description is not None:
        row |= {"spacegroup": description.spacegroup, "wyckoff": description.wyckoff}
    if named is not None:
        with ignore_missing_electronegativity():
            row["formula"] = named.composition.reduced_formula
        row["num_atoms"] = len(named)
    return row


def _json(structure: Structure | None) -> str | None:
    return None if structure is None else orjson.dumps(structure_dict(structure)).decode()


def _atoms(numbers: Sequence[int], frame: Frame) -> Atoms:
    from ase import Atoms
    from ase.calculators.singlepoint import SinglePointCalculator

    atoms = Atoms(numbers=numbers, scaled_positions=frame.frac_coords, cell=frame.lattice, pbc=True)
    info = dict(frame.info)
    if "energy" in info:  # where ASE looks for it
        atoms.calc = SinglePointCalculator(atoms, energy=info.pop("energy"))
    atoms.info.update(info)
    return atoms
