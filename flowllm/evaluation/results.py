"""Results of an evaluation, their files and their table."""

from __future__ import annotations

import functools
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pymatgen.core import Structure

from flowllm.crystals.cif import cif_text
from flowllm.crystals.crystal import Crystal
from flowllm.metrics.intervals import Estimate
from flowllm.metrics.prototypes import Prototype
from flowllm.system.files import publish, write_atomic
from flowllm.system.parquet import write_parquet

METRICS = "metrics.json"
STRUCTURES = "structures.parquet"
RELAXED = "relaxed.parquet"
REPORT = "report.html"
REFERENCE = "reference.parquet"
E_ABOVE_HULL = "e_above_hull"


@dataclass(kw_only=True)
class SetResult:
    """Result for one set of generated crystals.

    Attributes:
        name: name of the set.
        num_generated: number of requested crystals.
        failures: number of missing crystals by reason.
        metrics: estimates by name, in the order of the report.
        rows: one dict per crystal, in the order of the set.
        notes: remarks for the reader.
        composition_scale: source of the scale of compositions; None if no features were compared.
    """

    name: str
    num_generated: int
    failures: Counter[str]
    metrics: dict[str, Estimate] = field(default_factory=dict)
    rows: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    composition_scale: str | None = None


@dataclass(frozen=True)
class Evaluation:
    """A finished evaluation.

    Attributes:
        folder: folder with its files.
        sets: one result per set, in the given order.
    """

    folder: Path
    sets: list[SetResult]


def write_metrics(result: Evaluation, settings: Mapping[str, Any]) -> None:
    """Write `metrics.json`: the settings, and metrics, failures and notes of each set.

    Args:
        result: the evaluation.
        settings: its identity.
    """
    content = {
        "settings": settings,
        "sets": [
            {
                "name": one.name,
                "num_generated": one.num_generated,
                "failures": dict(one.failures),
                "notes": one.notes,
                "composition_scale": one.composition_scale,
                "metrics": {name: asdict(value) for name, value in one.metrics.items()},
            }
            for one in result.sets
        ],
    }
    write_atomic(result.folder / METRICS, json.dumps(content, indent=2, allow_nan=False) + "\n")


def write_structures(
    result: Evaluation, name: str, structures: Sequence[Sequence[Structure | None]]
) -> None:
    """Write a table with the row and the CIF of each crystal, readable as a data set.

    Args:
        result: the evaluation.
        name: name of the file.
        structures: for each set the crystals of its rows; None for a missing one.
    """
    rows = [
        {**row, "cif": None if structure is None else cif_text(structure)}
        for one, of_set in zip(result.sets, structures, strict=True)
        for row, structure in zip(one.rows, of_set, strict=True)
    ]
    columns = dict.fromkeys(column for row in rows for column in row)
    table = pa.table({column: [row.get(column) for row in rows] for column in columns})
    publish(result.folder / name, functools.partial(write_parquet, table))


def write_reference(
    folder: Path,
    crystals: Sequence[Crystal],
    values: Mapping[str, NDArray[np.float64]],
    prototypes: Sequence[Prototype | None],
) -> None:
    """Write `reference.parquet`, the data for the reference distributions of the report.

    Args:
        folder: folder of the evaluation.
        crystals: M reference crystals.
        values: property -> (M,); see `flowllm.metrics.distances.properties`.
        prototypes: (M,); None where the symmetry search failed.
    """
    symmetry = [symmetry_columns(found) for found in prototypes]
    columns: dict[str, Any] = {
        "id": [crystal.id for crystal in crystals],
        "formula": [crystal.structure.composition.reduced_formula for crystal in crystals],
        "num_atoms": [len(crystal.structure) for crystal in crystals],
        **values,
        **{name: [row[name] for row in symmetry] for name in Prototype._fields},
    }
    if any(E_ABOVE_HULL in crystal.properties for crystal in crystals):
        columns[E_ABOVE_HULL] = [crystal.properties.get(E_ABOVE_HULL) for crystal in crystals]
    table = pa.table(columns)
    publish(folder / REFERENCE, functools.partial(write_parquet, table))


def symmetry_columns(found: Prototype | None) -> dict[str, int | str | None]:
    """Return the columns that describe the symmetry of a crystal: the fields of `Prototype`.

    Args:
        found: prototype; None if the symmetry search failed.
    """
    return dict.fromkeys(Prototype._fields) if found is None else found._asdict()


def metrics_table(sets: Sequence[SetResult]) -> str:
    """Return a text table: one line per metric, one column per set, values with 95% intervals.

    Args:
        sets: results of one evaluation.

    Returns:
        The lines, aligned.
    """
    names = dict.fromkeys(name for one in sets for name in one.metrics)
    lines = [["", *(one.name for one in sets)]]
    lines.append(["crystals", *(str(one.num_generated) for one in sets)])
    for name in names:
        lines.append([name, *(_cell(one.metrics.get(name)) for one in sets)])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def _cell(estimate: Estimate | None) -> str:
    if estimate is None or estimate.value is None:
        return "-"
    text = f"{estimate.value:.4g}"
    if estimate.low is not None:
        text += f" [{estimate.low:.4g}, {estimate.high:.4g}]"
    return text
