"""Page `report.html` of a run: tables, energies, powder patterns and the structures to look at."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import plotly.graph_objects as go
from markupsafe import Markup
from numpy.typing import NDArray
from plotly.offline import get_plotlyjs
from pymatgen.analysis.diffraction.xrd import XRDCalculator
from pymatgen.core import Structure

from flowllm.crystals.crystal import ignore_missing_electronegativity
from flowllm.crystals.views.figure import ball_figure
from flowllm.crystals.views.page import Card, environment
from flowllm.evaluation.report.charts import Panel
from flowllm.prediction.prediction import FormulaOutcome, Prediction
from flowllm.prediction.summary import NAMES, heads, table_rows

if TYPE_CHECKING:
    from flowllm.prediction.outputs import PredictionRun

_SHOWN = 30  # formulas; a page of more is slow
_CARDS = 6  # structures of a formula
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
_ANGLES = np.arange(10.0, 90.0, 0.05)  # 2 theta, degrees
_WIDTH = 0.1  # half width of a peak at half height, degrees


@dataclass(frozen=True, kw_only=True)
class _Section:
    """What the page shows of a formula."""

    formula: str
    heads: list[str]
    rows: list[list[str]]
    panels: list[Panel]
    cards: list[Card]


def report_page(run: PredictionRun) -> str:
    """Return the page of a run.

    It contains all its data and plotly.js (MIT, about 5 MB), and its content policy forbids the
    network. The same predictions give the same page.

    Args:
        run: with its predictions.
    """
    found = [outcome for outcome in run.outcomes if outcome.predictions]
    problems = [o.problem for o in run.outcomes if o.problem is not None]
    problems += [f"{o.formula}: {o.warning}" for o in run.outcomes if o.warning is not None]
    about = (
        "Relaxed and ranked by energy and the likelihood of the sources."
        if run.has_potential
        else "Ranked by the likelihood of the sources, without energies; not relaxed."
    )
    names = [outcome.formula for outcome in run.outcomes]
    title = ", ".join(names[:5]) + (" and more" if len(names) > 5 else "")
    page = environment("flowllm.prediction").get_template("prediction.html")
    return page.render(
        title=title,
        about=about,
        problems=problems,
        sections=[_section(outcome) for outcome in found[:_SHOWN]],
        left_out=max(len(found) - _SHOWN, 0),
        plotly=Markup(get_plotlyjs()),
    )


def powder_pattern(structure: Structure) -> NDArray[np.float64] | None:
    """Return the powder pattern of a crystal at `_ANGLES`, at most 100.

    None if pymatgen has no scattering factors of an element.

    Kinematic intensities for Cu K alpha without thermal motion (pymatgen's `XRDCalculator`), each
    peak a Lorentzian.

    Args:
        structure: an ordered crystal.
    """
    try:
        with ignore_missing_electronegativity():
            peaks = XRDCalculator().get_pattern(structure, two_theta_range=(5, 95))
    except ValueError:
        return None
    steps = (_ANGLES[:, None] - np.asarray(peaks.x)) / _WIDTH
    pattern: NDArray[np.float64] = (np.asarray(peaks.y) / (1 + steps**2)).sum(1)
    return 100 * pattern / max(float(pattern.max(initial=0.0)), 1e-9)


def _section(outcome: FormulaOutcome) -> _Section:
    rows = table_rows(outcome.predictions)
    names = heads(rows)
    panels = []
    if any(prediction.energy_per_atom is not None for prediction in outcome.predictions):
        panels.append(_energies(outcome.predictions))
    if (patterns := _patterns(outcome.predictions)) is not None:
        panels.append(patterns)
    return _Section(
        formula=outcome.formula,
        heads=[NAMES[name] for name in names],
        rows=[[row.get(name, "-") for name in names] for row in rows],
        panels=panels,
        cards=[_card(prediction) for prediction in outcome.predictions[:_CARDS]],
    )


def _card(prediction: Prediction) -> Card:
    (row,) = table_rows([prediction])
    facts = [
        (NAMES[name], row[name])
        for name in ("group", "prototype", "source", "energy", "above_hull")
        if row.get(name, "-") != "-"
    ]
    lattice = prediction.structure.lattice
    facts.append(("a b c of the drawn cell", " ".join(f"{length:.3f}" for length in lattice.abc)))
    facts.append(("angles", " ".join(f"{angle:.2f}" for angle in lattice.angles)))
    return Card(
        id=prediction.id,
        formula=prediction.formula,
        facts=facts,
        figure=ball_figure(prediction.structure),
    )


def _energies(predictions: Sequence[Prediction]) -> Panel:
    """Return the energies in the order of the ranks, above the lowest one."""
    known = [p for p in predictions if p.energy_per_atom is not None]
    values = np.array([p.energy_per_atom for p in known], dtype=np.float64)
    figure = _figure("rank", "energy above the lowest (meV/atom)")
    figure.add_trace(
        go.Scatter(
            x=[p.rank for p in known],
            y=1000 * (values - values.min()),
            text=[f"{p.symbol} {p.prototype or ''}" for p in known],
            mode="markers+lines",
            line={"color": "#cccccc"},
            marker={"color": _COLOURS[0], "size": 9},
            showlegend=False,
        )
    )
    figure.update_xaxes(dtick=1)
    return Panel(title="energies", figure=figure)


def _patterns(predictions: Sequence[Prediction]) -> Panel | None:
    """Return the powder patterns, one above the other, the best structure at the bottom."""
    figure = _figure("2θ (degrees), Cu Kα", "intensity, one above the other")
    for place, prediction in enumerate(predictions[: len(_COLOURS)]):
        pattern = powder_pattern(prediction.structure)
        if pattern is None:
            return None
        figure.add_trace(
            go.Scatter(
                x=_ANGLES.round(2),
                y=(pattern + 105 * place).round(1),
                name=f"{prediction.rank}: {prediction.symbol}",
                mode="lines",
                line={"color": _COLOURS[place], "width": 1.2},
            )
        )
    figure.update_yaxes(showticklabels=False)
    return Panel(title="simulated powder patterns", figure=figure, is_wide=True)


def _figure(x: str, y: str) -> go.Figure:
    return go.Figure(
        layout={
            "template": "plotly_white",
            "xaxis": {"title": {"text": x}},
            "yaxis": {"title": {"text": y}},
            "legend": {"orientation": "h", "y": 1.02, "yanchor": "bottom"},
            "margin": {"l": 60, "r": 10, "t": 10, "b": 50},
        }
    )
