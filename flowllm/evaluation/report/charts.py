"""Charts: distributions of generated and reference crystals, and relaxation."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from numpy.typing import NDArray
from pymatgen.core import Composition, Element
from pymatgen.symmetry.groups import sg_symbol_from_int_number

# Okabe and Ito's colours, distinct for colour-blind readers; the reference is grey.
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
_GREY = "#8c8c8c"
_NUM_BINS = 40
_NUM_QUANTILES = 101
_NUM_SPACEGROUPS = 20
_NUM_POINTS = 3000  # per set in a scatter plot; more slow the page down
# First space group of each crystal system (International Tables A).
_SYSTEMS = {
    "triclinic": 1,
    "monoclinic": 3,
    "orthorhombic": 16,
    "tetragonal": 75,
    "trigonal": 143,
    "hexagonal": 168,
    "cubic": 195,
}
_CONTINUOUS = {
    "e_above_hull": "energy above hull (eV/atom)",
    "relaxed_rmsd": "RMSD to the relaxed crystal, over (V/N)^(1/3)",
    "density": "density (g/cm³)",
    "volume_per_atom": "volume per atom (Å³)",
}
_COUNTED = {
    "num_elements": "number of elements",
    "num_atoms": "atoms in the cell",
    "free_parameters": "free parameters",
}
_RELAXED = {"energy": "energy (eV/atom)", "volume_per_atom": "volume per atom (Å³)"}
_OF_RELAXED = ("e_above_hull", "relaxed_rmsd")  # shown for invalid crystals as well


@dataclass(frozen=True, kw_only=True)
class ChartGroup:
    """Crystals that are drawn in one colour.

    Attributes:
        name: name of the set.
        rows: one row per crystal; any column may be missing or have gaps.
        is_reference: whether the other groups are compared with this one.
    """

    name: str
    rows: pd.DataFrame
    is_reference: bool = False

    def valid(self) -> pd.DataFrame:
        """Return the rows of the distributions: valid crystals, or all of a reference set."""
        if self.is_reference or "valid" not in self.rows:
            return self.rows
        return self.rows[self.rows["valid"].eq(True)]

    def values(self, name: str) -> NDArray[np.float64]:
        """Return the finite values of a column; none if it is missing."""
        rows = self.rows if name in _OF_RELAXED else self.valid()
        if name not in rows:
            return np.zeros(0)
        values = pd.to_numeric(rows[name], errors="coerce").to_numpy(dtype=np.float64)
        return values[np.isfinite(values)]


@dataclass(frozen=True, kw_only=True)
class Panel:
    """A figure with its title; a wide one takes a whole line of the page."""

    title: str
    figure: go.Figure
    is_wide: bool = False


def histograms(groups: Sequence[ChartGroup]) -> list[Panel]:
    """Return a histogram of each property that any generated set has.

    Args:
        groups: generated sets and at most one reference set.

    Returns:
        The panels.
    """
    sets = [group for group in groups if not group.is_reference]
    panels = []
    for name, title in _CONTINUOUS.items():
        if any(len(group.values(name)) for group in sets):
            panels.append(Panel(title=title, figure=_continuous(groups, name, title)))
    for name, title in _COUNTED.items():
        if any(len(group.values(name)) for group in sets):
            panels.append(Panel(title=title, figure=_counted(groups, name, title)))
    panels += _spacegroups(groups)
    if (figure := _elements(groups)) is not None:
        panels.append(Panel(title="elements", figure=figure, is_wide=True))
    return panels


def relaxation_plots(groups: Sequence[ChartGroup]) -> list[Panel]:
    """Return scatter plots of relaxed crystals (y) against generated ones (x).

    Args:
        groups: generated sets and at most one reference set.

    Returns:
        The panels; none without relaxed crystals.
    """
    panels = []
    for name, title in _RELAXED.items():
        figure = _figure(f"as generated: {title}", "relaxed")
        ends: list[float] = []
        for group, colour in _coloured(groups):
            if not {name, f"relaxed_{name}"} <= set(group.rows):
                continue
            pairs = group.rows[["id", name, f"relaxed_{name}"]].dropna()
            if len(pairs) > _NUM_POINTS:
                pairs = pairs.iloc[:: -(-len(pairs) // _NUM_POINTS)]
            figure.add_trace(
                go.Scatter(
                    x=pairs[name].to_numpy(),
                    y=pairs[f"relaxed_{name}"].to_numpy(),
                    text=[_label(str(one)) for one in pairs["id"]],
                    name=_label(group.name),
                    mode="markers",
                    marker={"color": colour, "size": 5, "opacity": 0.7},
                )
            )
            ends += pairs[f"relaxed_{name}"].tolist()
        if ends:
            figure.add_trace(_diagonal(min(ends), max(ends)))
            panels.append(Panel(title=title, figure=figure))
    return panels


def parity_plots(groups: Sequence[ChartGroup]) -> list[Panel]:
    """Return plots of the quantiles of each set against the reference.

    Equal distributions lie on the diagonal.

    Args:
        groups: generated sets and at most one reference set.

    Returns:
        The panels; none without a reference set.
    """
    reference = next((group for group in groups if group.is_reference), None)
    panels = []
    for name, title in _CONTINUOUS.items():
        known = np.zeros(0) if reference is None else reference.values(name)
        found = [
            (group.name, colour, group.values(name))
            for group, colour in _coloured(groups)
            if not group.is_reference and len(group.values(name))
        ]
        if len(known) and found:
            panels.append(Panel(title=title, figure=_quantiles(known, found, title)))
    return panels


def _continuous(groups: Sequence[ChartGroup], name: str, title: str) -> go.Figure:
    values = [group.values(name) for group in groups]
    # Quantiles of each group, as sizes differ; a few absurd crystals must not set the range.
    ends = np.array(
        [
            np.quantile(found, (0.005, 0.995) if group.is_reference else (0.05, 0.95))
            for group, found in zip(groups, values, strict=True)
            if len(found)
        ]
    )
    low, high = float(ends[:, 0].min()), float(ends[:, 1].max())
    if high - low < 1e-9 * max(abs(low), abs(high), 1.0):
        low, high = low - 0.5, high + 0.5
    edges = np.linspace(low, high, _NUM_BINS + 1)
    figure = _figure(title, "share of crystals")
    for (group, colour), found in zip(_coloured(groups), values, strict=True):
        if not len(found):
            continue
        shares = np.histogram(np.clip(found, low, high), edges)[0] / len(found)
        figure.add_trace(
            go.Scatter(
                x=edges,
                y=np.append(shares, shares[-1]),
                name=_label(group.name),
                mode="lines",
                line={"shape": "hv", "color": colour, "width": 1.5},
                fill="tozeroy" if group.is_reference else None,
            )
        )
    return figure


def _counted(groups: Sequence[ChartGroup], name: str, title: str) -> go.Figure:
    figure = _figure(title, "share of crystals")
    for group, colour in _coloured(groups):
        numbers, counts = np.unique(group.values(name), return_counts=True)
        if len(numbers):
            figure.add_trace(_bars(group, colour, numbers, counts / counts.sum()))
    return figure


def _spacegroups(groups: Sequence[ChartGroup]) -> list[Panel]:
    numbers = [group.values("spacegroup").astype(int) for group in groups]
    if not any(
        len(found) for group, found in zip(groups, numbers, strict=True) if not group.is_reference
    ):
        return []
    systems = _figure("crystal system", "share of crystals")
    common = _figure("space group", "share of crystals")
    starts = np.array(list(_SYSTEMS.values()))
    shares = [np.bincount(found, minlength=231)[:231] / max(len(found), 1) for found in numbers]
    most = np.argsort(-np.sum(shares, axis=0), kind="stable")[:_NUM_SPACEGROUPS]
    shown = sorted(int(n) for n in most if any(share[n] for share in shares))
    for (group, colour), found, share in zip(_coloured(groups), numbers, shares, strict=True):
        systems_found = np.searchsorted(starts, found, side="right") - 1
        by_system = np.bincount(systems_found, minlength=len(starts)) / max(len(found), 1)
        systems.add_trace(_bars(group, colour, list(_SYSTEMS), by_system))
        labels = [f"{sg_symbol_from_int_number(n)} ({n})" for n in shown]
        common.add_trace(_bars(group, colour, labels, share[shown]))
    return [
        Panel(title="crystal systems", figure=systems),
        Panel(title=f"space groups, the {len(shown)} most common", figure=common, is_wide=True),
    ]


def _elements(groups: Sequence[ChartGroup]) -> go.Figure | None:
    shares: list[dict[str, float]] = []
    for group in groups:
        rows = group.valid()
        formulas = rows["formula"].dropna() if "formula" in rows else []
        held = [{element.symbol for element in Composition(f).elements} for f in formulas]
        symbols, counts = np.unique([s for one in held for s in one], return_counts=True)
        shares.append(dict(zip(symbols.tolist(), (counts / max(len(held), 1)), strict=True)))
    if not any(share for group, share in zip(groups, shares, strict=True)
               if not group.is_reference):  # fmt: skip
        return None
    every = sorted({symbol for share in shares for symbol in share}, key=lambda s: Element(s).Z)
    figure = _figure("element", "share of crystals that hold it")
    for (group, colour), share in zip(_coloured(groups), shares, strict=True):
        figure.add_trace(_bars(group, colour, every, [share.get(s, 0.0) for s in every]))
    return figure


def _quantiles(
    reference: NDArray[np.float64],
    found: Sequence[tuple[str, str, NDArray[np.float64]]],
    title: str,
) -> go.Figure:
    levels = np.linspace(0, 1, _NUM_QUANTILES)[1:-1]  # the extremes are single crystals
    known = np.quantile(reference, levels)
    figure = _figure(f"reference: {title}", "generated")
    figure.add_trace(_diagonal(known[0], known[-1]))
    for name, colour, values in found:
        figure.add_trace(
            go.Scatter(
                x=known,
                y=np.quantile(values, levels),
                name=_label(name),
                mode="markers",
                marker={"color": colour, "size": 5},
                customdata=levels,
                hovertemplate="%{customdata:.0%} lie below: %{x:.4g} and %{y:.4g}",
            )
        )
    return figure


def _diagonal(low: float, high: float) -> go.Scatter:
    return go.Scatter(
        x=[low, high],
        y=[low, high],
        name="equal",
        mode="lines",
        line={"color": _GREY, "dash": "dash", "width": 1},
        hoverinfo="skip",
    )


def _bars(
    group: ChartGroup,
    colour: str,
    x: Sequence[Any] | NDArray[Any],
    y: Sequence[float] | NDArray[Any],
) -> go.Bar:
    return go.Bar(x=x, y=y, name=_label(group.name), marker={"color": colour})


def _coloured(groups: Sequence[ChartGroup]) -> list[tuple[ChartGroup, str]]:
    sets = [group for group in groups if not group.is_reference]
    colours = {id(g): _COLOURS[i % len(_COLOURS)] for i, g in enumerate(sets)}
    return [(group, colours.get(id(group), _GREY)) for group in groups]


def _figure(x: str, y: str) -> go.Figure:
    return go.Figure(
        layout={
            "template": "plotly_white",
            "xaxis": {"title": {"text": x}},
            "yaxis": {"title": {"text": y}, "rangemode": "tozero"},
            "legend": {"orientation": "h", "y": 1.02, "yanchor": "bottom"},
            "margin": {"l": 60, "r": 10, "t": 10, "b": 50},
            "showlegend": True,
        }
    )


def _label(name: str) -> str:
    """Escape text of the user, as plotly interprets some HTML."""
    return html.escape(name)
