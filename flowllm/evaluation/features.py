"""Features of many crystals: computed in processes, cached on disk; and their scale in a file."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np
import spglib
from numpy.typing import NDArray
from pymatgen.core import Composition, Structure

from flowllm.crystals.cache import cache_folder, structure_key
from flowllm.crystals.crystal import ignore_missing_electronegativity
from flowllm.errors import UserError
from flowllm.metrics.composition_scale import CompositionScale
from flowllm.metrics.fingerprints import (
    NUM_COMPOSITION,
    NUM_STRUCTURE,
    Fingerprints,
    composition_fingerprint,
    structure_fingerprint,
)
from flowllm.metrics.prototypes import SYMPREC, Prototype, prototype
from flowllm.system.documents import parse_json
from flowllm.system.executors import for_each
from flowllm.system.extras import require
from flowllm.system.key_value import KeyValueStore
from flowllm.system.progress import progress_bar

Item = TypeVar("Item")
Feature = TypeVar("Feature")
Vector = NDArray[np.float64]

_FILE = "fingerprints-2.sqlite"  # raise the number when equal keys would mean other features
# Crystals per task: about a second.
_FINGERPRINTS_AT_ONCE = 8
_PROTOTYPES_AT_ONCE = 100


class _Format(NamedTuple, Generic[Feature]):
    """How a feature is stored as bytes."""

    encode: Callable[[Feature], bytes]
    decode: Callable[[bytes], Feature]


def _encode_vector(vector: Vector) -> bytes:
    return vector.astype("<f8").tobytes()


def _decode_vector(content: bytes) -> Vector:
    return np.frombuffer(content, dtype="<f8")


def _encode_prototype(found: Prototype | None) -> bytes:
    return json.dumps(found).encode()


def _decode_prototype(content: bytes) -> Prototype | None:
    values = json.loads(content)
    return None if values is None else Prototype(*values)


_VECTOR = _Format(_encode_vector, _decode_vector)
_SYMMETRY = _Format(_encode_prototype, _decode_prototype)


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
    of_structures = _cached(
        structures,
        [structure_key(f"CrystalNN ops 2 {_versions()}", s) for s in structures],
        structure_fingerprint,
        _VECTOR,
        workers=workers,
        progress=progress,
        description=description,
    )
    of_compositions = _cached(
        compositions,
        [_composition_key(c) for c in compositions],
        composition_fingerprint,
        _VECTOR,
    )
    return Fingerprints(
        structure=np.array(of_structures).reshape(-1, NUM_STRUCTURE),
        composition=np.array(of_compositions).reshape(-1, NUM_COMPOSITION),
    )


def cached_prototypes(
    structures: Sequence[Structure],
    *,
    workers: int = 1,
    progress: bool = False,
    description: str = "symmetry",
) -> list[Prototype | None]:
    """Return the prototypes of crystals, from the cache where they were computed before.

    New ones are stored at once, so that a killed run goes on.

    Args:
        structures: N ordered crystals.
        workers: number of processes.
        progress: show a bar on a terminal.
        description: label of the bar.

    Returns:
        (N,); None where the symmetry search fails.

    Raises:
        UserError: if a worker process was killed.
    """
    name = f"prototype 1 {SYMPREC} {spglib.__version__}"
    return _cached(
        structures,
        [structure_key(name, structure) for structure in structures],
        prototype,
        _SYMMETRY,
        workers=workers,
        progress=progress,
        description=description,
        at_once=_PROTOTYPES_AT_ONCE,
    )


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
    compute: Callable[[Item], Feature],
    stored: _Format[Feature],
    *,
    workers: int = 1,
    progress: bool = False,
    description: str = "",
    at_once: int = _FINGERPRINTS_AT_ONCE,
) -> list[Feature]:
    """Return a feature for each item, computed once for equal keys."""
    with KeyValueStore(cache_folder() / _FILE) as store:
        known = {key: stored.decode(content) for key, content in store.load(keys).items()}
        missing = list({k: i for k, i in zip(keys, items, strict=True) if k not in known}.items())
        chunks = [missing[start : start + at_once] for start in range(0, len(missing), at_once)]
        with progress_bar(
            total=len(missing),
            description=description,
            unit="crystals",
            show=progress and bool(missing),
        ) as bar:

            def save(chunk: list[tuple[bytes, Item]], features: list[Feature]) -> None:
                new = {key: feature for (key, _), feature in zip(chunk, features, strict=True)}
                store.save({key: stored.encode(feature) for key, feature in new.items()})
                known.update(new)
                bar.update(len(chunk))

            work = functools.partial(_features, compute)
            for_each(chunks, work, save, workers=min(workers, max(len(chunks), 1)))
    return [known[key] for key in keys]


def _features(
    compute: Callable[[Item], Feature], _: None, chunk: list[tuple[bytes, Item]]
) -> list[Feature]:
    return [compute(item) for _, item in chunk]


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
