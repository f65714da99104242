"""A cache of parsed files, by a hash of their content and of all settings that affect the rows."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from importlib.metadata import version
from pathlib import Path

import numpy as np
import platformdirs
import pyarrow as pa
import pyarrow.parquet as pq
from pymatgen.core import Structure

from flowllm.crystals import cells
from flowllm.crystals.crystal import Geometry
from flowllm.crystals.readers import Row, Rows
from flowllm.errors import InvalidCrystal
from flowllm.system.files import write_atomic

logger = logging.getLogger(__name__)

_CACHE_FORMAT = 3  # raise it when the same file would give other rows
_NOTES = b"notes"  # key of the metadata that holds `Rows.notes`
# The columns of a row without a geometry.
_NOTHING = Geometry(np.zeros((3, 3)), np.zeros(0, dtype=np.uint8), np.zeros((0, 3)))


def cache_folder() -> Path:
    """Return the folder of cached files: `$FLOWLLM_CACHE`, else the user's cache folder.

    Returns:
        The path; the folder may not exist yet.
    """
    if chosen := os.environ.get("FLOWLLM_CACHE"):
        return Path(chosen)
    return platformdirs.user_cache_path("flowllm", appauthor=False, opinion=False)


def cache_key(
    identity: list[tuple[str, str]], reduce: bool, limit: int | None, *, is_run: bool = False
) -> str:
    """Return a hash of everything that the rows depend on.

    Args:
        identity: of the input; see `flowllm.crystals.readers.Input.identity`.
        reduce: whether cells are reduced.
        limit: number of rows at most.
        is_run: whether the file is the table of a run folder.

    Returns:
        SHA-256 of the contents, the settings, and the versions of the parsers.
    """
    settings = [_CACHE_FORMAT, reduce, cells.NIGGLI_TOLERANCE, limit, is_run]
    versions = [version(package) for package in ("pymatgen", "gemmi", "spglib", "ase")]
    return hashlib.sha256(json.dumps([settings, versions, identity]).encode()).hexdigest()


def structure_key(name: str, structure: Structure) -> bytes:
    """Return the hash of a crystal and of a computation, as a key of its result.

    Args:
        name: of the computation, with its settings and the versions that compute it.
        structure: a crystal.

    Returns:
        32 bytes; the last bits of cell and coordinates count.
    """
    digest = hashlib.sha256(name.encode())
    digest.update(structure.lattice.matrix.tobytes())
    digest.update(structure.frac_coords.tobytes())
    digest.update(" ".join(site.species_string for site in structure).encode())
    return digest.digest()


def store(rows: Rows, key: str) -> None:
    """Store rows as KEY-DIGEST.parquet, where DIGEST is the hash of the file's own bytes.

    A folder that cannot be written is logged, and nothing is stored.

    Args:
        rows: parsed.
        key: their `cache_key`.
    """
    geometries = [row.source if isinstance(row.source, Geometry) else _NOTHING for row in rows]
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
            "ignored": [json.dumps(row.ignored) if row.ignored else None for row in rows],
            "reason": [error.reason if error else None for error in errors],
            "detail": [error.detail if error else None for error in errors],
            "assumed": [json.dumps(row.notes) if row.notes else None for row in rows],
            "lattice": pa.FixedSizeListArray.from_arrays(lattices, 9),
            "atomic_numbers": pa.ListArray.from_arrays(ends, numbers),
            "frac_coords": pa.ListArray.from_arrays(3 * ends, frac_coords),
        }
    ).replace_schema_metadata({_NOTES: json.dumps(rows.notes)})
    buffer = pa.BufferOutputStream()
    pq.write_table(table, buffer, compression="zstd")
    content = buffer.getvalue().to_pybytes()
    try:
        cache_folder().mkdir(parents=True, exist_ok=True)
        write_atomic(
            cache_folder() / f"{key}-{hashlib.sha256(content).hexdigest()}.parquet", content
        )
    except OSError as error:
        logger.warning("cannot cache parsed crystals in %s: %s", cache_folder(), error)


def load(key: str) -> Rows | None:
    """Return the rows stored under a key.

    Args:
        key: see `cache_key`.

    Returns:
        The rows; None if there are none, or the file is damaged.
    """
    for path in sorted(cache_folder().glob(f"{key}-*.parquet")):
        try:
            content = path.read_bytes()
        except OSError as error:
            logger.warning("cannot read %s: %s", path, error)
            continue
        if path.stem != f"{key}-{hashlib.sha256(content).hexdigest()}":
            logger.warning("%s is damaged and is not used", path)
            continue
        return _rows_of_table(pq.read_table(pa.BufferReader(content)).combine_chunks())
    return None


def _rows_of_table(table: pa.Table) -> Rows:
    lists = {name: table[name].chunk(0) for name in ("lattice", "atomic_numbers", "frac_coords")}
    lattices = lists["lattice"].values.to_numpy().reshape(-1, 3, 3)
    numbers = lists["atomic_numbers"].values.to_numpy()
    frac_coords = lists["frac_coords"].values.to_numpy().reshape(-1, 3)
    ends = lists["atomic_numbers"].offsets.to_numpy()
    rows = Rows(notes=json.loads(table.schema.metadata[_NOTES]))
    names = ("place", "id", "properties", "ignored", "reason", "detail", "assumed")
    columns = zip(*(table[name].to_pylist() for name in names), strict=True)
    for i, (place, row_id, properties, ignored, reason, detail, notes) in enumerate(columns):
        atoms = slice(ends[i], ends[i + 1])
        rows.append(
            Row(
                place=place,
                id=row_id,
                properties=json.loads(properties),
                ignored=json.loads(ignored) if ignored else {},
                notes=tuple(json.loads(notes)) if notes else (),
                source=InvalidCrystal(reason, detail)
                if reason
                else Geometry(lattices[i], numbers[atoms], frac_coords[atoms]),
            )
        )
    return rows
