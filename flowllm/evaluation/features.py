"""Features of many crystals: computed in processes, cached on disk; and their scale in a file."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import spglib
from numpy.typing import NDArray
from pymatgen.core import Composition, Structure

from flowllm.crystals.crystal import ignore_missing_electronegativity
from flowllm.errors import UserError
from flowllm.evaluation.vector_store import VectorStore
from flowllm.metrics.composition_scale import CompositionScale
from flowllm.metrics.distances import SYMPREC, comparable_spacegroup, properties
from flowllm.metrics.fingerprints import (
    NUM_COMPOSITION,
    NUM_STRUCTURE,
    Fingerprints,
    composition_fingerprint,
    structure_fingerprint,
)
from flowllm.system.documents import parse_json
from flowllm.system.executors import for_each
from flowllm.system.extras import require
from flowllm.system.progress import progress_bar

Item = TypeVar("Item")
Vector = NDArray[np.float64]

_CHUNK = 8  # crystals per task, about a second


@ignore_missing_electronegativity()
def cached_fingerprints(
    structures: Sequence[Structure],
    *,
    workers: int = 1,
    progress: bool = False,
    description: str = "fingerprints",
) -> Fingerprints:
    """Return the fingerprints of crystals, from the cache where they were computed before.

    New ones are stored at once, so that a killed run goes on.

    Args:
        structures: N ordered crystals.
        workers: number of processes.
        progress: show a bar on a terminal.
        description: label of the bar.

    Returns:
        Unscaled fingerprints of the N crystals.

    Raises:
        UserError: if matminer is not installed, or a worker process was killed.
    """
    require("matminer.featurizers.site.fingerprint")
    compositions = [structure.composition for structure in structures]
    return Fingerprints(
        structure=_cached(
            structures,
            [_structure_key(f"CrystalNN ops 2 {_versions()}", s) for s in structures],
            structure_fingerprint,
            NUM_STRUCTURE,
            workers=workers,
            progress=progress,
            description=description,
        ),
        composition=_cached(
            compositions,
            [_composition_key(c) for c in compositions],
            composition_fingerprint,
            NUM_COMPOSITION,
        ),
    )


def cached_properties(structures: Sequence[Structure]) -> dict[str, Vector]:
    """Return the properties of `metrics.distances.properties`, space groups from the cache.

    Args:
        structures: M ordered crystals.

    Returns:
        Property -> (M,).
    """
    name = f"spacegroup {SYMPREC} {spglib.__version__}"
    keys = [_structure_key(name, structure) for structure in structures]
    numbers = _cached(structures, keys, _spacegroup_vector, 1)  # (M, 1)
    return properties(structures, spacegroups=numbers[:, 0])


def read_scale(path: str | Path) -> CompositionScale:
    """Read a composition scale from a file.

    Args:
        path: JSON file with `means` and `stds`, 132 numbers each in matminer's order.

    Returns:
        The scale.

    Raises:
        UserError: if there is no such file, or it has other content.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such file; check the path")
    try:
        content = parse_json(path.read_bytes())
        means, stds = (_numbers(content[name]) for name in ("means", "stds"))
    except (ValueError, KeyError, TypeError):
        raise UserError(
            f"{path} is no composition scale; give a JSON object with means and stds, "
            f"{NUM_COMPOSITION} numbers each"
        ) from None
    if not (stds > 0).all():
        raise UserError(f"{path}: a standard deviation is not above 0; correct the file")
    return CompositionScale(means=means, stds=stds, source=path.name)


def _cached(
    items: Sequence[Item],
    keys: Sequence[bytes],
    compute: Callable[[Item], Vector],
    width: int,
    *,
    workers: int = 1,
    progress: bool = False,
    description: str = "",
) -> Vector:
    """Return a vector for each item, (N, width), computed once for equal keys."""
    with VectorStore(width) as store:
        known = store.load(keys)
        missing = list({k: i for k, i in zip(keys, items, strict=True) if k not in known}.items())
        chunks = [missing[start : start + _CHUNK] for start in range(0, len(missing), _CHUNK)]
        with progress_bar(
            total=len(missing),
            description=description,
            unit="crystals",
            show=progress and bool(missing),
        ) as bar:

            def save(chunk: list[tuple[bytes, Item]], vectors: list[Vector]) -> None:
                new = {key: vector for (key, _), vector in zip(chunk, vectors, strict=True)}
                store.save(new)
                known.update(new)
                bar.update(len(chunk))

            work = functools.partial(_vectors, compute)
            for_each(chunks, work, save, workers=min(workers, max(len(chunks), 1)))
    return np.array([known[key] for key in keys]).reshape(len(keys), width)


def _vectors(
    compute: Callable[[Item], Vector], _: None, chunk: list[tuple[bytes, Item]]
) -> list[Vector]:
    return [compute(item) for _, item in chunk]


def _spacegroup_vector(structure: Structure) -> Vector:
    return np.array([comparable_spacegroup(structure)])


def _structure_key(name: str, structure: Structure) -> bytes:
    """Return the hash of a crystal and of the computation, with the versions that compute it."""
    digest = hashlib.sha256(name.encode())
    digest.update(structure.lattice.matrix.tobytes())
    digest.update(structure.frac_coords.tobytes())
    digest.update(np.array(structure.atomic_numbers, dtype=np.int64).tobytes())
    return digest.digest()


def _composition_key(composition: Composition) -> bytes:
    return hashlib.sha256(f"magpie {_versions()} {composition.formula}".encode()).digest()


@functools.cache
def _versions() -> str:
    return " ".join(version(package) for package in ("matminer", "pymatgen-core", "scipy"))


def _numbers(values: Any) -> Vector:
    numbers = np.array(values, dtype=np.float64)
    if numbers.shape != (NUM_COMPOSITION,) or not np.isfinite(numbers).all():
        raise ValueError
    return numbers
