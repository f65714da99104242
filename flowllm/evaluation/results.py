"""A finished evaluation: what it writes and the table that it shows."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pymatgen.core import Structure

from flowllm.crystals.cif import cif_text
from flowllm.crystals.crystal import Crystal
from flowllm.evaluation.measured import Measured
from flowllm.system.files import publish, write_atomic

METRICS = "metrics.json"
STRUCTURES = "structures.parquet"
RELAXED = "relaxed.parquet"
REPORT = "report.html"
REFERENCE = "reference.parquet"
E_ABOVE_HULL = "e_above_hull"


@dataclass(frozen=True)
class Evaluation:
    """A finished evaluation: its folder, and a result for each set in the order given."""

    folder: Path
    sets: list[Measured]


def write_metrics(result: Evaluation, settings: Mapping[str, Any]) -> None:
    """Write `metrics.json`: the settings, and for each set its metrics, failures and notes."""
    content = {
        "settings": settings,
        "sets": [
            {
                "name": measured.name,
                "num_generated": measured.num_generated,
                "failures": dict(measured.failures),
                "notes": measured.notes,
                "composition_scale": measured.composition_scale,
                "metrics": {name: asdict(value) for name, value in measured.metrics.items()},
            }
            for measured in result.sets
        ],
    }
    write_atomic(result.folder / METRICS, json.dumps(content, indent=2, allow_nan=False) + "\n")


def write_structures(
    result: Evaluation, name: str, structures: Sequence[Sequence[Structure | None]]
) -> None:
    """Write a table with the row of each crystal and a CIF of it, which is a data set again.

    Args:
        result: whose rows.
        name: of the file.
        structures: for each set the crystals of its rows; None for one that is missing.
    """
    rows = [
        {**row, "cif": None if structure is None else cif_text(structure)}
        for measured, of_set in zip(result.sets, structures, strict=True)
        for row, structure in zip(measured.rows, of_set, strict=True)
    ]
    columns = dict.fromkeys(column for row in rows for column in row)
    table = pa.table({column: [row.get(column) for row in rows] for column in columns})
    publish(result.folder / name, functools.partial(pq.write_table, table, compression="zstd"))


def write_reference(
    folder: Path, crystals: Sequence[Crystal], values: Mapping[str, NDArray[np.float64]]
) -> None:
    """Write `reference.parquet`: what the distributions of generated crystals are drawn beside.

    Args:
        folder: of the evaluation.
        crystals: M of the reference set.
        values: property -> (M,); see `flowllm.metrics.distances.properties`.
    """
    columns = {
        "id": [crystal.id for crystal in crystals],
        "formula": [crystal.structure.composition.reduced_formula for crystal in crystals],
        "num_atoms": [len(crystal.structure) for crystal in crystals],
        **values,
    }
    if any(E_ABOVE_HULL in crystal.properties for crystal in crystals):
        columns[E_ABOVE_HULL] = [crystal.properties.get(E_ABOVE_HULL) for crystal in crystals]
    table = pa.table(columns)
    publish(folder / REFERENCE, functools.partial(pq.write_table, table, compression="zstd"))


def metrics_table(sets: Sequence[Measured]) -> str:
    """A line a metric and a column a set, each value with its 95% interval."""
    names = dict.fromkeys(name for measured in sets for name in measured.metrics)
    lines = [["", *(measured.name for measured in sets)]]
    lines.append(["crystals", *(str(measured.num_generated) for measured in sets)])
    for name in names:
        lines.append([name, *(_cell(measured, name) for measured in sets)])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def _cell(measured: Measured, name: str) -> str:
    estimate = measured.metrics.get(name)
    if estimate is None or estimate.value is None:
        return "-"
    text = f"{estimate.value:.4g}"
    if estimate.low is not None:
        text += f" [{estimate.low:.4g}, {estimate.high:.4g}]"
    return text
