"""Crystals in notebooks: one that is the last value of a cell is shown as a figure."""

from __future__ import annotations

import html
from collections.abc import Collection
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from flowllm.crystals.crystal import Crystal, ignore_missing_electronegativity, to_structure
from flowllm.crystals.symmetry import symmetry_of
from flowllm.system.extras import require

if TYPE_CHECKING:
    import plotly.graph_objects as go
    from ase import Atoms
    from pymatgen.core import Structure

_TITLE = 30  # pixels


def view(crystal: Crystal | Structure | Atoms) -> go.Figure:
    """Return a figure of a crystal, which a notebook shows and the mouse turns.

    Atoms are balls in Jmol's colours, of 0.55 of their covalent radius; those on a face of the cell
    are drawn on the opposite one too.

    Args:
        crystal: is drawn in its own cell.

    Returns:
        A figure of plotly: `figure.show()` opens it in a browser, `figure.write_html(path)` saves
        it.

    Raises:
        UserError: if it is none of the three, or plotly is not installed.
        InvalidCrystal: if it is disordered, or not periodic.
    """
    require("plotly", "show")
    from flowllm.crystals.views.figure import ball_figure

    structure = to_structure(crystal.structure if isinstance(crystal, Crystal) else crystal)
    symmetry = symmetry_of(structure)
    with ignore_missing_electronegativity():
        words = [structure.composition.reduced_formula]
    if symmetry is not None:
        words.append(symmetry.crystal.group.symbol)
    if isinstance(crystal, Crystal):
        words.append(crystal.id)
    figure = ball_figure(structure)
    title = html.escape(" · ".join(words))  # plotly reads some HTML in texts
    figure.update_layout(title={"text": title, "font": {"size": 14}}, margin={"t": _TITLE})
    return figure


def mimebundle(
    crystal: Crystal, include: Collection[str] | None, exclude: Collection[str] | None
) -> dict[str, Any]:
    """Return the figure of a crystal in the forms that the front end of a notebook may show.

    Plotly tells Jupyter, VS Code and Colab apart and loads its JavaScript once in a notebook.

    Args:
        crystal: the crystal.
        include: media types that are wanted; None: all.
        exclude: media types that are not wanted.

    Returns:
        Media type -> content; empty without plotly, and outside of notebooks.
    """
    if find_spec("plotly") is None:
        return {}
    bundle: dict[str, Any] = view(crystal)._repr_mimebundle_()
    return {
        kind: content
        for kind, content in bundle.items()
        if (include is None or kind in include) and kind not in (exclude or ())
    }
