"""Parquet files of pairs, one row for each pair.

The metadata of a file names the origin of the base crystals: `llm` (samples of a prior), `file` or
`templates`. Older files do not name it; they hold samples of a prior. Templates are taken for
`base.kind` `llm` and `file`, so that a refiner is trained on them and on other crystals alike.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from flowllm.crystals.io import Crystal
from flowllm.errors import UserError
from flowllm.system.files import publish
from flowllm.system.parquet import read_parquet, write_parquet
from rfm import PairedCrystal

ARRAYS = ("base_frac_coords", "base_lattice", "target_frac_coords", "target_lattice")
TEMPLATES = "templates"
_BASE_KEY = b"base"
_SCHEMA = pa.schema(
    {
        "id": pa.string(),
        "atomic_numbers": pa.list_(pa.int64()),
        **{name: pa.list_(pa.float64()) for name in ARRAYS},
    }
)


def write_pairs(pairs: Iterable[PairedCrystal], path: Path, *, base: str = "llm") -> None:
    """Write pairs to a file.

    Arrays are stored flat in list columns: fractional coordinates, and lattice vectors in Angstrom.

    Args:
        pairs: pairs with a base.
        path: the file; an existing one is replaced.
        base: origin of the base crystals, `llm`, `file` or `templates`.
    """
    pairs = list(pairs)
    columns: dict[str, list[Any]] = {
        "id": [pair.id for pair in pairs],
        "atomic_numbers": [pair.atomic_numbers.tolist() for pair in pairs],
    }
    for name in ARRAYS:
        columns[name] = [getattr(pair, name).ravel().tolist() for pair in pairs]
    table = pa.table(columns, schema=_SCHEMA.with_metadata({_BASE_KEY: base}))
    publish(path, functools.partial(write_parquet, table))


def read_pairs(path: str | Path, *, base: str | None = None) -> list[PairedCrystal]:
    """Read a file of pairs.

    Args:
        path: a file that `write_pairs` wrote.
        base: origin that the base crystals must have, `llm` or `file`, unless they are templates;
            None accepts all.

    Returns:
        The pairs, in the order of the file.

    Raises:
        UserError: if there is no such file, it is no parquet file or holds no pair, a column is
            missing or has another type, a row is damaged, or the base crystals have another origin.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"there is no file {path}; make it with `flowllm pair`")
    try:
        table = read_parquet(path)
    except (pa.ArrowInvalid, OSError) as error:
        raise UserError(f"{path} is no parquet file of pairs ({error})") from error
    if missing := [name for name in _SCHEMA.names if name not in table.column_names]:
        raise UserError(
            f"{path} has no column {missing[0]}; it was not made by `flowllm pair` "
            f"(its columns: {', '.join(table.column_names)})"
        )
    if not table.num_rows:
        raise UserError(
            f"{path} holds no pair; summary.json beside it counts the refused samples by reason"
        )
    found = (table.schema.metadata or {}).get(_BASE_KEY, b"llm").decode()
    if base is not None and found not in (base, TEMPLATES):
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
    """Return crystals as pairs without a base crystal, for `base.kind: uniform`.

    Args:
        crystals: the targets.

    Returns:
        One pair for each crystal, in order.
    """
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
