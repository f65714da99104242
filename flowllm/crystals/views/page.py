"""Pages of crystals that work in a browser without a network."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import jinja2
import plotly.graph_objects as go
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from flowllm.crystals.cif import cif_text
from flowllm.crystals.columns import WORD_COLUMNS
from flowllm.crystals.crystal import Crystal, ignore_missing_electronegativity
from flowllm.crystals.symmetrized_cif import symmetrized_cif
from flowllm.crystals.symmetry import symmetry_of
from flowllm.crystals.views.figure import ball_figure
from flowllm.system.files import file_names

_LONGEST = 60  # characters of a property that a card shows
# Properties that say what the facts of every crystal say.
_KNOWN = WORD_COLUMNS | {"spacegroup", "wyckoff", "num_atoms"}


@dataclass(frozen=True, kw_only=True)
class Card:
    """Picture and facts of one crystal.

    Attributes:
        id: id of the crystal.
        formula: reduced formula.
        facts: label and value.
        figure: the drawn crystal.
        cif: its CIF, to be downloaded; empty: none.
        file_name: of the CIF.
    """

    id: str
    formula: str
    facts: list[tuple[str, str]]
    figure: go.Figure
    cif: str = ""
    file_name: str = ""


def page_text(crystals: Sequence[Crystal], title: str, note: str = "") -> str:
    """Return a page with a card for each crystal: a view, facts, and its CIF.

    The page holds all that it needs, about 4.7 MB for plotly and 0.15 MB for each crystal of 10
    atoms, and is not allowed to fetch anything.

    Args:
        crystals: in the order of the page.
        title: of the page.
        note: a sentence below the title.

    Returns:
        The HTML.
    """
    names = file_names([crystal.id for crystal in crystals])
    return (
        environment("flowllm.crystals.views")
        .get_template("page.html")
        .render(
            title=title,
            note=note,
            crystals=[card(c, f"{name}.cif") for c, name in zip(crystals, names, strict=True)],
            plotly=Markup(get_plotlyjs()),
        )
    )


def write_page(crystals: list[Crystal], path: Path) -> None:
    """Write the page of crystals, with the stem of the file as its title.

    Args:
        crystals: in the order of the page.
        path: the file; an existing one is replaced.
    """
    plural = "crystals" if len(crystals) > 1 else "crystal"
    path.write_text(page_text(crystals, path.stem, f"{len(crystals)} {plural}."), encoding="utf-8")


def card(crystal: Crystal, file_name: str) -> Card:
    """Return the card of a crystal: formula, space group, cell and properties.

    Args:
        crystal: with its properties.
        file_name: of the CIF.
    """
    structure = crystal.structure
    symmetry = symmetry_of(structure)
    with ignore_missing_electronegativity():
        formula = structure.composition.reduced_formula
        cif = cif_text(structure) if symmetry is None else symmetrized_cif(structure, symmetry)
    facts = [
        ("atoms", str(len(structure))),
        ("a, b, c (Å)", " ".join(f"{length:.3f}" for length in structure.lattice.abc)),
        ("α, β, γ (°)", " ".join(f"{angle:.2f}" for angle in structure.lattice.angles)),
        ("density (g/cm³)", f"{structure.density:.4g}"),
    ]
    if symmetry is not None:
        facts.insert(0, ("space group", f"{symmetry.crystal.group.symbol} ({symmetry.spacegroup})"))
        facts.append(("Wyckoff letters", symmetry.wyckoff))
    facts += [
        (name, f"{value:.4g}" if isinstance(value, float) else str(value))
        for name, value in crystal.properties.items()
        if name not in _KNOWN and len(str(value)) <= _LONGEST
    ]
    return Card(
        id=crystal.id,
        formula=formula,
        facts=facts,
        figure=ball_figure(structure),
        cif=cif,
        file_name=file_name,
    )


def environment(package: str) -> jinja2.Environment:
    """Return the templates of a package and of this one.

    Args:
        package: with its templates beside its modules.
    """
    found = jinja2.Environment(
        loader=jinja2.ChoiceLoader(
            [jinja2.PackageLoader(name, ".") for name in (package, "flowllm.crystals.views")]
        ),
        autoescape=True,  # names, formulas and ids are text of the user
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    found.filters |= {"json": figure_json, "data_url": _data_url}
    return found


def figure_json(figure: go.Figure) -> Markup:
    """Return a figure as JSON for a page; plotly escapes what could end a script element.

    Args:
        figure: of plotly.
    """
    return Markup(figure.to_json(engine="json"))


def _data_url(text: str) -> str:
    return "data:chemical/x-cif;base64," + base64.b64encode(text.encode()).decode()
