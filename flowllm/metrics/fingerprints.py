"""Fingerprints of crystals: local order of the sites, and statistics over the elements.

Structure: the mean over sites of matminer's CrystalNN fingerprint, preset `ops` (Zimmermann & Jain
2020, RSC Adv. 10, 6063), 61 numbers. Composition: matminer's magpie statistics (Ward et al. 2016,
npj Comput. Mater. 2, 16028), 132 numbers, which `CompositionScale` brings to one scale. Distances
are Euclidean in both.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pymatgen.core import Composition, Structure

from flowllm.crystals.crystal import UNREADABLE
from flowllm.metrics.coordination import coordinations
from flowllm.metrics.order_parameters import Angles, order_parameter
from flowllm.system.extras import require

# Angstrom^3; in denser cells some distance is below 0.5 Angstrom and Voronoi cells are expensive.
MIN_VOLUME_PER_ATOM = 0.1
NUM_STRUCTURE = 61
NUM_COMPOSITION = 132


@dataclass(frozen=True, kw_only=True)
class Fingerprints:
    """Features of N crystals, in their order.

    Attributes:
        structure: (N, 61); a row of NaN for a crystal without a structure fingerprint.
        composition: (N, 132); before scaling NaN where magpie has no value for an element.
    """

    structure: NDArray[np.float64]
    composition: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.structure)

    def __getitem__(self, rows: NDArray[Any]) -> Fingerprints:
        return Fingerprints(structure=self.structure[rows], composition=self.composition[rows])

    @property
    def usable(self) -> NDArray[np.bool_]:
        """(N,), whether a crystal has a structure fingerprint."""
        return np.asarray(~np.isnan(self.structure).any(axis=1))


def structure_fingerprint(structure: Structure) -> NDArray[np.float64]:
    """Return the mean fingerprint of the sites of a crystal.

    Args:
        structure: an ordered crystal without oxidation states.

    Returns:
        (61,); NaN if no Voronoi cell closes, an element has no radius, or an atom has less than
        0.1 Angstrom^3.

    Raises:
        UserError: if matminer is not installed.
    """
    none = np.full(NUM_STRUCTURE, np.nan)
    featurizer = _structure_featurizer()
    if structure.volume < MIN_VOLUME_PER_ATOM * len(structure):
        return none
    try:
        with _quiet():
            return _site_fingerprints(structure, featurizer).mean(axis=0)
    except UNREADABLE:  # raised by pymatgen and SciPy for open Voronoi cells
        return none


def site_fingerprints(structure: Structure) -> NDArray[np.float64]:
    """Return the fingerprint of each site, equal to matminer's `CrystalNNFingerprint`.

    For each coordination number its probability, and the probability times the order parameter of
    each motif (preset `ops`).

    Args:
        structure: an ordered crystal without oxidation states.

    Returns:
        (sites, 61).

    Raises:
        UserError: if matminer is not installed.
        RuntimeError: if a Voronoi cell does not close.
        ValueError: if a Voronoi cell does not close.
        TypeError: if an element has no radius.
    """
    return _site_fingerprints(structure, _structure_featurizer())


def composition_fingerprint(composition: Composition) -> NDArray[np.float64]:
    """Return the magpie statistics over the elements of a composition.

    Args:
        composition: of plain elements.

    Returns:
        (132,), not scaled; NaN where magpie has no value for an element.

    Raises:
        UserError: if matminer is not installed.
    """
    featurizer = _composition_featurizer()
    with _quiet():
        return np.array(featurizer.featurize(composition), dtype=np.float64)


def _site_fingerprints(structure: Structure, featurizer: Any) -> NDArray[np.float64]:
    found = coordinations(structure)
    columns = []
    for number, motifs in sorted(featurizer.ops.items()):
        weights = np.array([site.probabilities.get(number, 0.0) for site in found])  # (N,)
        (own,) = np.nonzero(weights)
        directions = np.array([found[i].directions[:number] for i in own]).reshape(-1, number, 3)
        shapes = [motif for motif in motifs if motif != "wt"]
        angles = Angles.between(directions) if shapes else None
        for motif in motifs:
            columns.append(weights.copy())
            if motif != "wt" and angles is not None:
                values = order_parameter(motif.get_type(0), motif.get_parameters(0), angles)
                columns[-1][own] *= values
    return np.stack(columns, axis=1)


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
    """Silence CrystalNN about missing oxidation states and magpie about missing values."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
