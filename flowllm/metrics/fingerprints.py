"""Crystals as vectors: local order of the sites, and statistics over the elements.

Structure: the mean over sites of matminer's CrystalNN fingerprint, preset `ops` (Zimmermann & Jain
2020, RSC Adv. 10, 6063), 61 numbers. Composition: matminer's magpie statistics (Ward et al. 2016,
npj Comput. Mater. 2, 16028), 132 numbers, which `composition_scale` brings to one scale. Distances
are Euclidean in both.
"""

from __future__ import annotations

import functools
import hashlib
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pymatgen.core import Composition, Structure
from tqdm import tqdm

from flowllm.crystals.crystal import UNREADABLE, ignore_missing_electronegativity
from flowllm.evaluation.feature_store import VectorStore, structure_key
from flowllm.metrics.coordination import coordinations
from flowllm.metrics.order_parameters import Angles, order_parameter
from flowllm.system.executors import for_each
from flowllm.system.extras import require

MIN_VOLUME_PER_ATOM = 0.1  # Angstrom^3; below, some distance is under 0.5, and Voronoi cells cost
_CHUNK = 8  # structures, a second or so
_NUM_STRUCTURE = 61
NUM_COMPOSITION = 132


@dataclass(frozen=True, kw_only=True)
class Fingerprints:
    """Features of N crystals, in their order.

    Attributes:
        structure: (N, 61); a row of NaN where there is none: no Voronoi cell closes, or less than
            0.1 Angstrom^3 an atom.
        composition: (N, 132); NaN where magpie knows no value for an element, until scaled.
    """

    structure: NDArray[np.float64]
    composition: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.structure)

    def __getitem__(self, rows: NDArray[Any]) -> Fingerprints:
        return Fingerprints(structure=self.structure[rows], composition=self.composition[rows])

    @property
    def usable(self) -> NDArray[np.bool_]:
        """(N,), whether a crystal has both."""
        return ~np.isnan(self.structure).any(axis=1)


@ignore_missing_electronegativity()
def fingerprints(
    structures: Sequence[Structure],
    *,
    workers: int = 1,
    progress: bool = False,
    description: str = "fingerprints",
) -> Fingerprints:
    """Features of `structures`, from the disk where they have been computed before.

    What is new is kept at once, so a killed run goes on.

    Raises:
        UserError: matminer is not installed, or a worker process was killed.
    """
    require("matminer.featurizers.site.fingerprint")
    return Fingerprints(
        structure=_computed(
            structures, _structure_key, _structure_vectors, _NUM_STRUCTURE,
            workers=workers, progress=progress, description=description,
        ),
        composition=_computed(
            [s.composition for s in structures], _composition_key, _composition_vectors,
            NUM_COMPOSITION, workers=1, progress=False, description=description,
        ),
    )  # fmt: skip


def structure_fingerprint(structure: Structure) -> NDArray[np.float64]:
    """(61,), unscaled; NaN where there is none."""
    nothing = np.full(_NUM_STRUCTURE, np.nan)
    if structure.volume < MIN_VOLUME_PER_ATOM * len(structure):
        return nothing
    try:
        with _quiet():
            return site_fingerprints(structure).mean(axis=0)
    except UNREADABLE:  # what Voronoi cells without end make pymatgen and SciPy raise
        return nothing


def site_fingerprints(structure: Structure) -> NDArray[np.float64]:
    """(sites, 61), as matminer's `CrystalNNFingerprint.from_preset("ops")` gives them.

    For each coordination number its probability, and that times the order parameters of its motifs.

    Raises:
        RuntimeError, ValueError: a Voronoi cell does not close.
        TypeError: an element without a radius.
    """
    found = coordinations(structure)
    columns = []
    for number, motifs in sorted(_structure_featurizer().ops.items()):
        weights = np.array([site.probabilities.get(number, 0.0) for site in found])  # (N,)
        (own,) = np.nonzero(weights)
        directions = np.array([found[i].directions[:number] for i in own]).reshape(-1, number, 3)
        angles = Angles.between(directions) if len(motifs) > 1 else None
        for motif in motifs:
            columns.append(weights.copy())
            if motif != "wt":
                values = order_parameter(motif.get_type(0), motif.get_parameters(0), angles)
                columns[-1][own] *= values
    return np.stack(columns, axis=1)


def composition_fingerprint(composition: Composition) -> NDArray[np.float64]:
    """(132,), unscaled; NaN where magpie knows no value for an element."""
    with _quiet():
        return np.array(_composition_featurizer().featurize(composition), dtype=np.float64)


def _computed(
    items: Sequence[Any], key_of: Any, work: Any, width: int, *,
    workers: int, progress: bool, description: str,
) -> NDArray[np.float64]:  # fmt: skip
    """A vector (N, width) for each item, computed once for equal keys."""
    keys = [key_of(item) for item in items]
    with VectorStore(width) as store:
        known = store.load(keys)
        missing = {key: item for key, item in zip(keys, items, strict=True) if key not in known}
        chunks = list(_chunks(list(missing.items())))
        with tqdm(
            total=len(missing),
            desc=description,
            unit="crystal",
            disable=not progress or not missing,
        ) as bar:

            def save(chunk: list[tuple[bytes, Any]], vectors: list[NDArray[np.float64]]) -> None:
                new = {key: vector for (key, _), vector in zip(chunk, vectors, strict=True)}
                store.save(new)
                known.update(new)
                bar.update(len(chunk))

            for_each(chunks, work, save, workers=min(workers, max(len(chunks), 1)))
    return np.array([known[key] for key in keys]).reshape(len(keys), width)


def _chunks(items: list[Any]) -> Iterator[list[Any]]:
    return (items[start : start + _CHUNK] for start in range(0, len(items), _CHUNK))


def _structure_vectors(
    _: None, chunk: Iterable[tuple[bytes, Structure]]
) -> list[NDArray[np.float64]]:
    return [structure_fingerprint(structure) for _, structure in chunk]


def _composition_vectors(
    _: None, chunk: Iterable[tuple[bytes, Composition]]
) -> list[NDArray[np.float64]]:
    return [composition_fingerprint(composition) for _, composition in chunk]


def _structure_key(structure: Structure) -> bytes:
    return structure_key(f"CrystalNN ops 2 {_versions()}", structure)


def _composition_key(composition: Composition) -> bytes:
    return hashlib.sha256(f"magpie {_versions()} {composition.formula}".encode()).digest()


@functools.cache
def _versions() -> str:
    return " ".join(version(package) for package in ("matminer", "pymatgen-core", "scipy"))


@functools.cache
def _structure_featurizer() -> Any:
    module = require("matminer.featurizers.site.fingerprint")
    with _quiet():
        return module.CrystalNNFingerprint.from_preset("ops")


@functools.cache
def _composition_featurizer() -> Any:
    module = require("matminer.featurizers.composition.composite")
    with _quiet():
        return module.ElementProperty.from_preset("magpie")


@contextmanager
def _quiet() -> Iterator[None]:
    """CrystalNN warns at every site that oxidation states would help; magpie of missing values."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
