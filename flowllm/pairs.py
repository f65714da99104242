"""Pairs of a prior's sample and its target on disk: one parquet file, a row a pair."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from flowllm.data import Crystal
from flowllm.errors import UserError
from rfm import PairedCrystal

_ARRAYS = ("base_frac_coords", "base_lattice", "target_frac_coords", "target_lattice")
_COLUMNS = ("id", "atomic_numbers", *_ARRAYS)


def write_pairs(pairs: Iterable[PairedCrystal], path: Path) -> None:
    """Write pairs; arrays go flat into list columns, in Angstrom and fractions as they are."""
    pairs = list(pairs)
    columns: dict[str, list] = {
        "id": [pair.id for pair in pairs],
        "atomic_numbers": [pair.atomic_numbers.tolist() for pair in pairs],
    }
    for name in _ARRAYS:
        columns[name] = [getattr(pair, name).ravel().tolist() for pair in pairs]
    pq.write_table(pa.table(columns), path, compression="zstd")


def read_pairs(path: str | Path) -> list[PairedCrystal]:
    """Read what `write_pairs` wrote.

    Raises:
        UserError: no such file, no parquet file, a missing column, or no pair in it.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"there is no file {path}; make it with `flowllm pair`")
    try:
        table = pq.read_table(path)
    except (pa.ArrowInvalid, OSError) as error:
        raise UserError(f"{path} is no parquet file of pairs ({error})") from error
    if missing := [name for name in _COLUMNS if name not in table.column_names]:
        raise UserError(
            f"{path} has no column {missing[0]}; it was not made by `flowllm pair` "
            f"(its columns: {', '.join(table.column_names)})"
        )
    if not table.num_rows:
        raise UserError(f"{path} holds no pair; see the counts of what was dropped beside it")
    columns = {name: table[name].to_pylist() for name in _COLUMNS}
    return [
        PairedCrystal(
            id=columns["id"][row],
            atomic_numbers=np.array(columns["atomic_numbers"][row], dtype=np.int64),
            **{name: np.array(columns[name][row]).reshape(-1, 3) for name in _ARRAYS},
        )
        for row in range(table.num_rows)
    ]


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
