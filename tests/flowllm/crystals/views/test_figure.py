"""Figures of crystals, and their forms in notebooks."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from ase.build import bulk

import flowllm
from flowllm import Crystal, InvalidCrystal, Sample, UserError
from flowllm.crystals.views.figure import ball_figure
from support import CSCL, SALT, disordered

JSON_OF_PLOTLY = "application/vnd.plotly.v1+json"


def test_atoms_are_balls_at_their_positions_and_on_opposite_faces():
    edges, chlorine, caesium = ball_figure(CSCL).data
    points = np.stack([caesium.x, caesium.y, caesium.z], axis=1).reshape(8, -1, 3)
    centres = points.mean(axis=1)  # of each ball: the corners of the cube
    assert sorted(map(tuple, (centres / 4.12).round(3).tolist())) == [
        (x, y, z) for x in (0, 1) for y in (0, 1) for z in (0, 1)
    ]
    radii = np.linalg.norm(points - centres[:, None], axis=-1)
    assert np.allclose(radii, radii[0, 0], atol=1e-4)
    assert np.allclose([np.mean(chlorine.x), np.mean(chlorine.z)], 2.06, atol=1e-4)
    corners = np.stack([chlorine.x, chlorine.y, chlorine.z], axis=1)
    a, b, c = (corners[np.asarray(i)] - 2.06 for i in (chlorine.i, chlorine.j, chlorine.k))
    assert (np.einsum("fd,fd->f", np.cross(b - a, c - a), a) > 0).all()  # all seen from outside
    ends = np.array([[x, y, z] for x, y, z in zip(edges.x, edges.y, edges.z, strict=True) if x])
    assert len(edges.x) == 36 and ends.max() == pytest.approx(4.12)


def test_a_view_names_the_crystal() -> None:
    figure = flowllm.view(Crystal(id="<b>1", structure=CSCL))
    assert figure.layout.title.text == "CsCl · Pm-3m · &lt;b&gt;1"
    assert {trace.name for trace in figure.data} == {None, "Cs", "Cl"}
    assert flowllm.view(CSCL).layout.title.text == "CsCl · Pm-3m"
    assert flowllm.view(bulk("Cu")).layout.title.text == "Cu · Fm-3m"
    with pytest.raises(InvalidCrystal):
        flowllm.view(disordered())
    with pytest.raises(UserError, match="must be a pymatgen Structure or ASE Atoms, not str"):
        flowllm.view("NaCl")  # type: ignore[arg-type]


def test_a_notebook_shows_a_crystal_in_each_form_that_plotly_has(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import plotly.io

    crystal = Crystal(id="salt", structure=SALT)
    monkeypatch.setattr(plotly.io.renderers, "default", "plotly_mimetype+colab")
    bundle = crystal._repr_mimebundle_()
    assert bundle.keys() == {JSON_OF_PLOTLY, "text/html"}
    assert bundle[JSON_OF_PLOTLY]["layout"]["title"]["text"] == "NaCl · Fm-3m · salt"
    assert "Plotly.newPlot" in bundle["text/html"]
    assert crystal._repr_mimebundle_(include=["text/html"]).keys() == {"text/html"}
    assert crystal._repr_mimebundle_(exclude=["text/html"]).keys() == {JSON_OF_PLOTLY}
    made = Sample(id="sample-00003", prompt="", text="", structure=SALT)
    title = made._repr_mimebundle_()[JSON_OF_PLOTLY]["layout"]["title"]["text"]
    assert title == "NaCl · Fm-3m · sample-00003"
    failed = Sample(id="sample-00004", prompt="", text="", failure="prior: unreadable")
    assert failed._repr_mimebundle_() == {}


def test_without_plotly_a_notebook_shows_text(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "plotly", None)
    with pytest.raises(UserError, match=r"needs plotly, .* 'flowllm-crystal\[show\]'"):
        flowllm.view(SALT)
    with pytest.raises(UserError, match=r"needs plotly, .* 'flowllm-crystal\[show\]'"):
        flowllm.write(SALT, tmp_path / "salt.html")
    assert Crystal(id="salt", structure=SALT)._repr_mimebundle_() == {}
