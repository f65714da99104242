"""Sets of crystals in an evaluation: generated ones, a reference set and training sets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pymatgen.core import Structure

from flowllm.crystals import cells
from flowllm.crystals.crystal import Crystal, Geometry
from flowllm.crystals.formulas import Ratios, formula_ratios
from flowllm.crystals.io import read, read_all, usable
from flowllm.errors import InvalidCrystal, UserError
from flowllm.evaluation.definitions import Definitions
from flowllm.evaluation.features import cached_fingerprints, cached_prototypes
from flowllm.metrics.distances import properties
from flowllm.metrics.fingerprints import Fingerprints
from flowllm.metrics.prototypes import Prototype
from flowllm.runs.identity import read_identity
from flowllm.runs.sharded import MANIFEST
from flowllm.system.names import printable

_LONGEST_REASON = 60


@dataclass(frozen=True, kw_only=True)
class GeneratedCrystal:
    """One requested crystal.

    Attributes:
        id: id in its file.
        structure: the crystal in the cell of its file; None for a failed one.
        failure: reason of the failure; None if there is a structure.
        properties: other columns of its file.
    """

    id: str
    structure: Structure | None
    failure: str | None = None
    properties: dict[str, float | int | str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class GeneratedSet:
    """Crystals of one generator.

    Attributes:
        name: name of the file or folder.
        crystals: all requested crystals, failed ones included, in the order of the file.
        conditions: requested conditions by the names of `llm_prior.prompts.ATTRIBUTES`.
    """

    name: str
    crystals: Sequence[GeneratedCrystal]
    conditions: dict[str, Any] = field(default_factory=dict)

    @property
    def structures(self) -> list[Structure | None]:
        """The structures of all crystals."""
        return [crystal.structure for crystal in self.crystals]

    @property
    def existing(self) -> dict[int, Structure]:
        """The structures that exist, by index."""
        return {i: s for i, s in enumerate(self.structures) if s is not None}


@dataclass(frozen=True, kw_only=True)
class ReferenceSet:
    """Crystals that distributions and coverage are compared with.

    Attributes:
        name: name of its file.
        crystals: M crystals.
        prints: unscaled fingerprints of the crystals that take part in the coverage.
        values: property -> (M,).
        prototypes: (M,); None where the symmetry search failed.
    """

    name: str
    crystals: Sequence[Crystal]
    prints: Fingerprints
    values: Mapping[str, NDArray[np.float64]]
    prototypes: Sequence[Prototype | None]


@dataclass(frozen=True, kw_only=True)
class TrainingSet:
    """Crystals that novelty is counted against.

    Attributes:
        name: name of its file.
        crystals: those that share a formula with a generated crystal.
        genes: their genes, see `flowllm.metrics.prototypes`.
        prints: unscaled fingerprints of all crystals, for the feature novelty; else None.
    """

    name: str
    crystals: Sequence[Crystal]
    genes: frozenset[str]
    prints: Fingerprints | None = None


def read_generated(path: str | Path) -> GeneratedSet:
    """Read a set from a run folder of `flowllm`, or from any file or folder of crystals.

    Cells stay as they are in the file. A crystal that cannot be read (damaged, disordered, without
    volume) counts as failed, like those that a run folder lists as failed.

    Args:
        path: the run folder, or anything that `flowllm.crystals.io.read` reads.

    Returns:
        The set.

    Raises:
        UserError: if there is nothing, the run is not finished, the format is unknown, the file is
            damaged as a whole, or it has no rows.
    """
    path = Path(path)
    conditions: dict[str, Any] = {}
    if (path / MANIFEST).is_file():
        conditions = read_identity(path, MANIFEST)[0].get("conditions") or {}
    crystals = []
    for row in read_all(path, reduce=False):
        if isinstance(row.source, Geometry):
            structure = cells.make_structure(*row.source)
            crystals.append(
                GeneratedCrystal(id=row.id, structure=structure, properties=row.properties)
            )
        else:
            crystals.append(_failed(row.id, row.source, row.properties))
    if not crystals:
        raise UserError(f"{path}: holds no crystals")
    return GeneratedSet(name=printable(path.name), crystals=crystals, conditions=conditions)


def read_reference(
    path: Path, definitions: Definitions, *, workers: int, progress: bool
) -> ReferenceSet:
    """Read a reference set and compute its features.

    Args:
        path: anything that `flowllm.crystals.io.read` reads; bad rows are left out.
        definitions: with `valid_coverage`, only valid crystals get fingerprints.
        workers: number of processes for the features.
        progress: show a bar on a terminal.

    Returns:
        The set.

    Raises:
        UserError: if there is no such file, or no valid crystal in it.
    """
    crystals = read(path, skip_invalid=True, reduce=False)
    return reference_set(
        printable(path.name), crystals, definitions, workers=workers, progress=progress
    )


def reference_set(
    name: str,
    crystals: Sequence[Crystal],
    definitions: Definitions,
    *,
    workers: int = 1,
    progress: bool = False,
) -> ReferenceSet:
    """Return a reference set of given crystals, with its features.

    Args:
        name: name of the set.
        crystals: M crystals.
        definitions: see `read_reference`.
        workers: number of processes for the features.
        progress: show a bar on a terminal.

    Returns:
        The set.
    """
    structures = [crystal.structure for crystal in crystals]
    prints = _prints(name, structures, definitions, workers=workers, progress=progress)
    return ReferenceSet(
        name=name,
        crystals=crystals,
        prints=prints,
        values=properties(structures),
        prototypes=cached_prototypes(
            structures, workers=workers, progress=progress, description=f"symmetry of {name}"
        ),
    )


def read_training(
    path: Path,
    formulas: set[Ratios],
    definitions: Definitions,
    *,
    with_features: bool,
    workers: int,
    progress: bool,
) -> TrainingSet:
    """Read those crystals of a training set that can equal a generated one.

    Other crystals never become structures, as training sets have tens of thousands of crystals.

    Args:
        path: anything that `flowllm.crystals.io.read` reads.
        formulas: formulas of the generated crystals.
        definitions: with `valid_coverage`, only valid crystals get fingerprints.
        with_features: compute fingerprints of all crystals as well.
        workers: number of processes for the features.
        progress: show a bar on a terminal.

    Returns:
        The set.

    Raises:
        UserError: if there is no valid crystal.
    """
    rows = usable(path, read_all(path))
    prints = None
    if with_features:
        # In the cells of the file, as for samples and reference: fingerprints depend on the last
        # bits of the coordinates.
        unreduced = usable(path, read_all(path, reduce=False))
        structures = [cells.make_structure(*geometry) for _, geometry in unreduced]
        prints = _prints(path.name, structures, definitions, workers=workers, progress=progress)
    crystals = [
        Crystal(id=row.id, structure=cells.make_structure(*geometry))
        for row, geometry in rows
        if formula_ratios(geometry.atomic_numbers) in formulas
    ]
    prototypes = cached_prototypes(
        [crystal.structure for crystal in crystals],
        workers=workers,
        progress=progress,
        description=f"symmetry of {path.name}",
    )
    return TrainingSet(
        name=printable(path.name),
        crystals=crystals,
        genes=frozenset(found.gene for found in prototypes if found is not None),
        prints=prints,
    )


def _prints(
    name: str,
    structures: Sequence[Structure],
    definitions: Definitions,
    *,
    workers: int,
    progress: bool,
) -> Fingerprints:
    if definitions.valid_coverage:
        structures = [structure for structure in structures if definitions.is_valid(structure)]
    return cached_fingerprints(
        structures, workers=workers, progress=progress, description=f"features of {name}"
    )


def _failed(
    name: str, source: str | InvalidCrystal, properties: dict[str, Any]
) -> GeneratedCrystal:
    reason = source.reason if isinstance(source, InvalidCrystal) else "unreadable"
    reason = str(properties.get("failure") or reason)
    return GeneratedCrystal(
        id=name, structure=None, failure=reason[:_LONGEST_REASON], properties=properties
    )
