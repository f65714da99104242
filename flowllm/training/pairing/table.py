"""Pairs of a base crystal and its target on disk: one parquet file, a row a pair.

The file says in its metadata what the base crystals are, `llm` (a prior's samples) or `file`; one
from before it did holds a prior's samples.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from flowllm.crystals.io import Crystal
from flowllm.errors import UserError
from flowllm.system.files import publish
from rfm import PairedCrystal

ARRAYS = ("base_frac_coords", "base_lattice", "target_frac_coords", "target_lattice")
_BASE_KEY = b"base"
_SCHEMA = pa.schema(
    {
        "id": pa.string(),
        "atomic_numbers": pa.list_(pa.int64()),
        **{name: pa.list_(pa.float64()) for name in ARRAYS},
    }
)


def write_pairs(pairs: Iterable[PairedCrystal], path: Path, *, base: str = "llm") -> None:
    """Write pairs; arrays go flat into list columns, in Angstrom and fractions as they are.

    Args:
        pairs: what to write.
        path: the file, replaced if it is there.
        base: what the base crystals are, `llm` or `file`.
    """
    pairs = list(pairs)
    columns: dict[str, list] = {
        "id": [pair.id for pair in pairs],
        "atomic_numbers": [pair.atomic_numbers.tolist() for pair in pairs],
    }
    for name in ARRAYS:
        columns[name] = [getattr(pair, name).ravel().tolist() for pair in pairs]
    table = pa.table(columns, schema=_SCHEMA.with_metadata({_BASE_KEY: base}))
    publish(path, lambda file: pq.write_table(table, file, compression="zstd"))


def read_pairs(path: str | Path, *, base: str | None = None) -> list[PairedCrystal]:
    """Read what `write_pairs` wrote.

    Args:
        path: the file.
        base: what the base crystals must be, `llm` or `file`; None takes both.

    Raises:
        UserError: no such file, no parquet file, a column that is missing or of another type, a
            damaged row, no pair in it, or another base.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"there is no file {path}; make it with `flowllm pair`")
    try:
        table = pq.read_table(path)
    except (pa.ArrowInvalid, OSError) as error:
        raise UserError(f"{path} is no parquet file of pairs ({error})") from error
    if missing := [name for name in _SCHEMA.names if name not in table.column_names]:
        raise UserError(
            f"{path} has no column {missing[0]}; it was not made by `flowllm pair` "
            f"(its columns: {', '.join(table.column_names)})"
        )
    if not table.num_rows:
        raise UserError(f"{path} holds no pair; summary.json beside it counts what was dropped")
    found = (table.schema.metadata or {}).get(_BASE_KEY, b"llm").decode()
    if base is not None and found != base:
        raise UserError(
            f"{path} holds pairs of base.kind {found}, not {base}; set base.kind={found}"
        )
    try:
        rows = table.select(_SCHEMA.names).cast(_SCHEMA).to_pylist()
    except pa.ArrowException as error:
        raise UserError(f"{path} was not made by `flowllm pair` ({error})") from error
    return [_pair(path, number, row) for number, row in enumerate(rows, start=1)]


def _pair(path: Path, number: int, row: dict[str, Any]) -> PairedCrystal:
    try:
        return PairedCrystal(
            id=row["id"],
            atomic_numbers=np.array(row["atomic_numbers"], dtype=np.int64),
            **{name: np.array(row[name], dtype=float).reshape(-1, 3) for name in ARRAYS},
        )
    except (ValueError, TypeError) as error:
        raise UserError(f"{path}: row {number} is damaged ({error}); make it again") from error


def targets_only(crystals: Iterable[Crystal]) -> list[PairedCrystal]:
    """Crystals as pairs without a base, for `base: uniform`."""
    return [
        PairedCrystal(
            id=crystal.id,
            atomic_numbers=np.array(crystal.structure.atomic_numbers, dtype=np.int64),
            base_frac_coords=None,
            base_lattice=None,
            target_frac_coords=crystal.structure.frac_coords,
            target_lattice=np.array(crystal.structure.lattice.matrix),
        )
        for crystal in crystals
    ]
