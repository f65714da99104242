"""The files that a run of crystals ends with: a table, an extxyz file, CIFs and trajectories."""

from __future__ import annotations

import functools
import json
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq
from pymatgen.core import Structure

from flowllm.crystals.cif import cif_text
from flowllm.crystals.crystal import ignore_missing_electronegativity
from flowllm.crystals.io import Crystal
from flowllm.crystals.symmetrized_cif import symmetrized_cif
from flowllm.crystals.symmetry import SYMPREC, Symmetry, symmetry_of
from flowllm.crystals.writers import write_extxyz
from flowllm.runs.cif_form import CifForm
from flowllm.runs.records import CrystalRecord, Frame, read_records
from flowllm.runs.sharded import RunFolder
from flowllm.system.files import file_names

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


@dataclass(frozen=True)
class Outcome:
    """A finished run of crystals.

    Attributes:
        folder: the run folder.
        crystals: those that were made, in the order of their records, with their properties.
        failures: the others, by reason.
        rejects: answers of the prior that were refused, by reason; those given before a crystal
            was made included.
    """

    folder: Path
    crystals: list[Crystal]
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
    records = list(read_records(folder, trajectories=False))
    outcome = publish_records(folder, records, columns, cif=cif, table_only=table_only)
    if any(record.trajectory is not None for record in records):
        names = file_names([record.id for record in records])
        folder.publish(
            "trajectories", lambda path: _write_trajectories(names, read_records(folder), path)
        )
    return outcome


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
    names = file_names([record.id for record in records])
    properties = [column for column in columns if column not in table_only]
    crystals = [
        Crystal(
            id=record.id,
            structure=record.structure,
            properties={n: record.properties[n] for n in properties if n in record.properties},
        )
        for record in records
        if record.structure is not None
    ]

    @functools.cache
    def symmetries() -> list[Symmetry | None]:  # for the table and for the folder
        return [None if r.structure is None else symmetry_of(r.structure) for r in records]

    @functools.cache
    def cifs() -> list[str | None]:
        return [None if r.structure is None else cif_text(r.structure) for r in records]

    def cif_files() -> list[str | None]:
        if cif == "p1":
            return cifs()
        return [
            None if r.structure is None else symmetrized_cif(r.structure, symmetry)
            for r, symmetry in zip(records, symmetries(), strict=True)
        ]

    folder.publish(
        f"{name}.parquet",
        lambda path: _write_table(records, cifs(), symmetries(), columns, path),
    )
    if crystals:
        folder.publish(f"{name}.extxyz", lambda path: write_extxyz(crystals, path))
        folder.publish("cif", lambda path: _write_cifs(names, cif_files(), path))
    failures = Counter(record.failure for record in records if record.failure is not None)
    rejects = sum((Counter(record.rejects) for record in records), Counter[str]())
    return Outcome(folder.path, crystals, failures, rejects)


def _write_table(
    records: Sequence[CrystalRecord],
    cifs: Sequence[str | None],
    symmetries: Sequence[Symmetry | None],
    columns: Mapping[str, pa.DataType],
    path: Path,
) -> None:
    symprec = {"symprec": f"{SYMPREC:g}"}
    schema = pa.schema(
        pa.field(name, kind, metadata=symprec if name in _AT_SYMPREC else None)
        for name, kind in {**CORE_COLUMNS, **columns}.items()
    )
    with open(path, "wb") as file, pq.ParquetWriter(file, schema, compression="zstd") as table:
        for start in range(0, len(records), _ROWS):
            part = slice(start, start + _ROWS)
            rows = [
                _row(*of_one)
                for of_one in zip(records[part], cifs[part], symmetries[part], strict=True)
            ]
            table.write_table(pa.Table.from_pylist(rows, schema=schema))


def _row(record: CrystalRecord, cif: str | None, symmetry: Symmetry | None) -> dict[str, Any]:
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
    if symmetry is not None:
        row |= {"spacegroup": symmetry.spacegroup, "wyckoff": symmetry.wyckoff}
    if named is not None:
        with ignore_missing_electronegativity():
            row["formula"] = named.composition.reduced_formula
        row["num_atoms"] = len(named)
    return row


def _json(structure: Structure | None) -> str | None:
    return None if structure is None else structure.to(fmt="json")


def _write_cifs(names: Sequence[str], cifs: Sequence[str | None], path: Path) -> None:
    path.mkdir()
    for name, text in zip(names, cifs, strict=True):
        if text is not None:
            (path / f"{name}.cif").write_text(text, encoding="utf-8")


def _write_trajectories(names: Sequence[str], records: Iterable[CrystalRecord], path: Path) -> None:
    import ase.io  # slow to import

    path.mkdir()
    for name, record in zip(names, records, strict=True):
        if record.trajectory is None or record.initial_structure is None:
            continue
        numbers = record.initial_structure.atomic_numbers
        frames = [_atoms(numbers, frame) for frame in record.trajectory]
        ase.io.write(path / f"{name}.extxyz", frames, format="extxyz")


def _atoms(numbers: Sequence[int], frame: Frame) -> Atoms:
    from ase import Atoms
    from ase.calculators.singlepoint import SinglePointCalculator

    atoms = Atoms(numbers=numbers, scaled_positions=frame.frac_coords, cell=frame.lattice, pbc=True)
    info = dict(frame.info)
    if "energy" in info:  # where ASE looks for it
        atoms.calc = SinglePointCalculator(atoms, energy=info.pop("energy"))
    atoms.info.update(info)
    return atoms
