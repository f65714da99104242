"""A crystal as balls in a cell that the mouse turns."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from functools import cache

import numpy as np
import plotly.graph_objects as go
from ase.data import covalent_radii
from ase.data.colors import jmol_colors
from numpy.typing import NDArray
from pymatgen.core import Element, Structure

from flowllm.crystals import cells

_BALL = 0.55  # fraction of the covalent radius; atoms stay distinct
_ON_FACE = 0.02  # in units of the cell: an atom this close to a face is drawn on both sides


def ball_figure(structure: Structure) -> go.Figure:
    """Return a figure of a crystal: balls in Jmol's colours and the edges of the cell.

    Args:
        structure: an ordered crystal.

    Returns:
        The figure, with one trace for the edges and one per element.
    """
    lattice = structure.lattice.matrix
    numbers = np.asarray(structure.atomic_numbers)
    figure = go.Figure(_edges(lattice))
    for number in np.unique(numbers).tolist():
        frac_coords = np.concatenate(
            [list(_images(site)) for site in structure.frac_coords[numbers == number]]
        )
        figure.add_trace(_balls(number, frac_coords @ lattice))
    hidden = {"visible": False}
    figure.update_layout(
        scene={
            "xaxis": hidden,
            "yaxis": hidden,
            "zaxis": hidden,
            "aspectmode": "data",
            "dragmode": "orbit",
            "camera": {
                "projection": {"type": "orthographic"},
                "eye": {"x": 1.2, "y": 1.6, "z": 0.6},
            },
        },
        margin={"l": 0, "r": 0, "t": 0, "b": 0},
        legend={"orientation": "h", "y": 0, "yanchor": "bottom", "itemsizing": "constant"},
    )
    return figure


def _images(frac_coords: NDArray[np.float64]) -> Iterator[NDArray[np.float64]]:
    """Yield an atom (3,) in the cell, and on the opposite faces if it lies on a face."""
    inside = cells.wrap(frac_coords[None])[0]
    shifts = [[0, 1] if x < _ON_FACE else [0, -1] if x > 1 - _ON_FACE else [0] for x in inside]
    for shift in itertools.product(*shifts):
        yield inside + np.array(shift)


def _edges(lattice: NDArray[np.float64]) -> go.Scatter3d:
    points: list[list[float] | list[None]] = []
    for axis in range(3):
        for corner in itertools.product((0, 1), repeat=2):
            start = np.insert(np.array(corner, dtype=float), axis, 0.0)
            points += [(start @ lattice).tolist(), ((start + np.eye(3)[axis]) @ lattice).tolist()]
            points.append([None] * 3)  # ends the line
    x, y, z = zip(*points, strict=True)
    return go.Scatter3d(
        x=x, y=y, z=z, mode="lines", line={"color": "#555555", "width": 2},
        hoverinfo="skip", showlegend=False,
    )  # fmt: skip


def _balls(number: int, centres: NDArray[np.float64]) -> go.Mesh3d:
    vertices, faces = _sphere()
    points = centres[:, None] + _BALL * covalent_radii[number] * vertices  # (N, V, 3)
    starts = len(vertices) * np.arange(len(centres))
    x, y, z = points.reshape(-1, 3).T.astype(np.float32)
    i, j, k = (starts[:, None, None] + faces).reshape(-1, 3).T.astype(np.uint32)
    symbol = Element.from_Z(number).symbol
    red, green, blue = (int(round(255 * part)) for part in jmol_colors[number])
    return go.Mesh3d(
        x=x, y=y, z=z, i=i, j=j, k=k, name=symbol, color=f"rgb({red},{green},{blue})",
        showlegend=True, hoverinfo="name", flatshading=False,
        lighting={"ambient": 0.55, "diffuse": 0.7, "specular": 0.25, "roughness": 0.5},
    )  # fmt: skip


@cache
def _sphere() -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Return the unit sphere as vertices (162, 3) and faces (320, 3).

    Each face of an icosahedron is cut into 16.
    """
    golden = (1 + 5**0.5) / 2
    signs = itertools.product((-1, 1), (-golden, golden))
    vertices = np.array([np.roll((0, s, g), turn) for s, g in signs for turn in range(3)])
    apart = np.linalg.norm(vertices[:, None] - vertices[None], axis=-1)
    faces = np.array(
        [t for t in itertools.combinations(range(12), 3)
         if all(apart[a, b] < 2.1 for a, b in itertools.combinations(t, 2))]
    )  # fmt: skip
    inward = np.linalg.det(vertices[faces]) < 0  # light needs every face seen from outside
    faces[inward] = faces[inward][:, ::-1]
    for _ in range(2):
        triangles = vertices[faces]  # (F, 3 corners, 3)
        a, b, c = (triangles[:, n] for n in range(3))
        ab, bc, ca = a + b, b + c, c + a  # middles, put on the sphere below
        split = np.stack([[a, ab, ca], [ab, b, bc], [ca, bc, c], [ab, bc, ca]])  # (4, 3, F, 3)
        points = split.transpose(0, 2, 1, 3).reshape(-1, 3)
        points /= np.linalg.norm(points, axis=1, keepdims=True)
        _, first, back = np.unique(points.round(6), axis=0, return_index=True, return_inverse=True)
        vertices, faces = points[first], back.reshape(-1, 3)
    return vertices, faces
