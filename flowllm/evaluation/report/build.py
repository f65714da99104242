"""Page `report.html` from the files of an evaluation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from flowllm.crystals.cif import parse_cif
from flowllm.crystals.crystal import Geometry
from flowllm.crystals.views.page import environment, figure_json
from flowllm.errors import UserError
from flowllm.evaluation.report.charts import (
    ChartGroup,
    Panel,
    histograms,
    parity_plots,
    relaxation_plots,
)
from flowllm.evaluation.report.gallery import best_crystals
from flowllm.evaluation.report.glossary import meaning
from flowllm.evaluation.results import METRICS, REFERENCE, RELAXED, REPORT, STRUCTURES
from flowllm.system.documents import parse_json
from flowllm.system.files import write_atomic
from flowllm.system.parquet import read_parquet


@dataclass(frozen=True, kw_only=True)
class _Line:
    """Line of the table: a metric, its meaning, and a value for each set."""

    name: str
    meaning: str
    cells: list[tuple[str, str, str]]  # value, interval, count


def write_report(folder: str | Path) -> Path:
    """Write `report.html` into the folder of an evaluation, from its files.

    It reads `metrics.json` and `structures.parquet`, and, if they exist, `reference.parquet` for
    the comparison and `relaxed.parquet`. The page contains all its data and plotly.js (MIT, about
    5 MB), and its content policy forbids the network. Charts of missing columns (such as energies
    without a potential) are left out. The same files give the same page.

    Args:
        folder: folder that `flowllm evaluate` wrote.

    Returns:
        Path of the page.

    Raises:
        UserError: if the folder holds no evaluation, or a damaged one.
    """
    folder = Path(folder)
    content = _metrics(folder / METRICS)
    table = _with_relaxed(folder)
    reference = (folder / REFERENCE).is_file()
    groups = [
        ChartGroup(name=one["name"], rows=table[table["set"] == one["name"]])
        for one in content["sets"]
    ]
    if reference:
        name = content["settings"]["reference"]["name"]
        groups.insert(0, ChartGroup(name=name, rows=_table(folder / REFERENCE), is_reference=True))
    sets = [group for group in groups if not group.is_reference]
    galleries = [best_crystals(group.name, group.rows) for group in sets]
    page = environment("flowllm.evaluation.report").get_template("page.html")
    return write_atomic(
        folder / REPORT,
        page.render(
            title=" · ".join(group.name for group in sets),
            settings=_settings(content["settings"]),
            sets=content["sets"],
            lines=_lines(content["sets"]),
            histograms=_with_json(histograms(groups)),
            parity_plots=_with_json(parity_plots(groups)),
            relaxation_plots=_with_json(relaxation_plots(groups)),
            relaxed="relaxed_cif" in table,
            galleries=galleries,
            reference=groups[0].name if reference else None,
            plotly=Markup(get_plotlyjs()),
        ),
    )


def _lines(sets: Sequence[Mapping[str, Any]]) -> list[_Line]:
    names = dict.fromkeys(name for one in sets for name in one["metrics"])
    return [
        _Line(
            name=name,
            meaning=meaning(name),
            cells=[_cell(one["metrics"].get(name)) for one in sets],
        )
        for name in names
    ]


def _cell(estimate: Mapping[str, Any] | None) -> tuple[str, str, str]:
    if estimate is None:
        return "–", "", ""
    if estimate["value"] is None:
        return "–", "", "nothing to measure it on"
    interval = ""
    if estimate["low"] is not None:
        interval = f"[{estimate['low']:.4g}, {estimate['high']:.4g}]"
    counted = f"n = {estimate['count']}"
    if estimate["successes"] is not None:
        counted = f"{estimate['successes']} of {estimate['count']}"
    return f"{estimate['value']:.4g}", interval, counted


def _settings(settings: Mapping[str, Any]) -> list[tuple[str, str]]:
    return [(name, _shown(value)) for name, value in settings.items() if value not in (None, [])]


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(_shown, value))
    if isinstance(value, Mapping):
        if value.keys() == {"name", "sha256"}:
            return f"{value['name']} ({value['sha256'][:12]})"
        return ", ".join(f"{key} {_shown(v)}" for key, v in value.items())
    return str(value)


def _with_json(panels: Sequence[Panel]) -> list[tuple[Panel, Markup]]:
    return [(panel, figure_json(panel.figure)) for panel in panels]


def _metrics(path: Path) -> dict[str, Any]:
    _require_file(path)
    try:
        return dict(parse_json(path.read_bytes()))
    except (ValueError, TypeError) as error:
        raise UserError(f"{path} is damaged ({error}); evaluate again") from error


def _table(path: Path) -> pd.DataFrame:
    _require_file(path)
    try:
        return read_parquet(path).to_pandas()
    except pa.ArrowException as error:
        raise UserError(f"{path} is damaged ({error}); evaluate again") from error


def _with_relaxed(folder: Path) -> pd.DataFrame:
    """Return a row per crystal, extended by the values of its relaxed one if there is one."""
    table = _table(folder / STRUCTURES)
    if not (folder / RELAXED).is_file():
        return table
    relaxed = _table(folder / RELAXED)  # the same rows, with the relaxed crystals
    if not table[["set", "id"]].equals(relaxed[["set", "id"]]):
        raise UserError(f"{folder / RELAXED} is not of {STRUCTURES} beside it; evaluate again")
    return table.assign(
        energy=_numbers(table["energy_per_atom"]) + _numbers(table["energy_drop"]),
        relaxed_energy=_numbers(table["energy_per_atom"]),
        relaxed_cif=relaxed["cif"],
        relaxed_volume_per_atom=relaxed["cif"].map(_volume_per_atom, na_action="ignore"),
    )


def _numbers(column: pd.Series) -> pd.Series:
    """Return a column as numbers; it holds None only if every relaxation failed."""
    return pd.to_numeric(column, errors="coerce")


def _volume_per_atom(cif: str) -> float:
    geometry = parse_cif(cif)[0].source
    if not isinstance(geometry, Geometry):
        return float("nan")
    return float(abs(np.linalg.det(geometry.lattice))) / len(geometry.atomic_numbers)


def _require_file(path: Path) -> None:
    if not path.is_file():
        raise UserError(
            f"{path}: no such file; give a folder that `flowllm evaluate ... --out` wrote"
        )
