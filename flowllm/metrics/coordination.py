"""Neighbours of each site and their probabilities: CrystalNN.

Source: Pan et al. 2021, Inorg. Chem. 60, 1590, with pymatgen's defaults. This is own code because
pymatgen builds the Voronoi cell of each site from Python objects, which dominated the evaluation
time; here all neighbours are found at once and the facets of a cell are one batch of arrays. The
tests compare both.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pymatgen.analysis.local_env import CrystalNN
from pymatgen.analysis.molecule_structure_comparator import CovalentRadius
from pymatgen.core import Element, Structure
from scipy.spatial import QhullError, Voronoi

Array = NDArray[np.float64]

_CUTOFF = 7.0  # Angstrom; atoms farther away do not shape a Voronoi cell
_NEAREST = 40  # atoms that are tried first
_X_WEIGHT = 3.0  # weight of the difference in electronegativity
_MAX_X = 3.3  # largest difference in electronegativity of two elements
_FULL, _NONE = 0.5, 1.0  # Angstrom beyond the covalent radii: weight 1 up to 0.5, 0 from 1.0


@dataclass(frozen=True)
class Coordination:
    """Neighbours of a site.

    Attributes:
        directions: (K, 3), unit vectors to the neighbours, the likeliest first.
        probabilities: coordination number n, from 1 on -> probability that the first n of
            `directions` are the neighbours.
    """

    directions: Array
    probabilities: dict[int, float]


def coordinations(structure: Structure) -> list[Coordination]:
    """Return the coordination of each site of a crystal.

    Args:
        structure: an ordered crystal without oxidation states.

    Returns:
        One coordination per site, in the order of the sites.

    Raises:
        RuntimeError: if a Voronoi cell does not close.
        ValueError: if a Voronoi cell does not close.
        TypeError: if an element has no radius.
    """
    centres, others, images, distances = structure.get_neighbor_list(_CUTOFF)
    lattice, frac = structure.lattice.matrix, structure.frac_coords
    vectors = (frac[others] + images - frac[centres]) @ lattice  # (P, 3)
    elements = [Element.from_Z(number) for number in structure.atomic_numbers]
    x = np.array([element.X for element in elements])
    radii = np.array([_radius(element) for element in elements], dtype=np.float64)
    order = np.lexsort((distances, centres))
    starts = np.searchsorted(centres[order], np.arange(len(structure) + 1))
    found = []
    for site, (start, end) in enumerate(itertools.pairwise(starts)):
        near = order[start:end]
        cell = _facets(vectors[near])
        if cell is None:
            found.append(_by_pymatgen(structure, site))
            continue
        facets, angles, areas = cell
        near = near[facets]
        neighbours = others[near]
        chemical = 1 + _X_WEIGHT * np.sqrt(np.abs(x[site] - x[neighbours]) / _MAX_X)
        # Solid angle over area: open structures have large facets without a bond.
        weights = angles * angles / areas * np.where(np.isnan(chemical), 1, chemical)
        excess = distances[near] - radii[site] - radii[neighbours]
        fall = 0.5 * (1 + np.cos(np.pi * np.clip((excess - _FULL) / (_NONE - _FULL), 0, 1)))
        found.append(_coordination(vectors[near], weights / weights.max(), fall))
    return found


def _coordination(vectors: Array, weights: Array, fall: Array) -> Coordination:
    first = np.argsort(-weights, kind="stable")
    ranked = first[np.argsort(-(weights * fall)[first], kind="stable")]
    rounded = [round(float(weight), 3) for weight in (weights * fall)[ranked]]
    rounded = [weight for weight in rounded if weight > 0]
    vectors = vectors[ranked[: len(rounded)]]
    distinct = [*dict.fromkeys(rounded), 0.0]
    return Coordination(
        directions=vectors / np.linalg.norm(vectors, axis=1, keepdims=True),
        probabilities={
            sum(weight >= upper for weight in rounded): _quarter_disc(upper) - _quarter_disc(lower)
            for upper, lower in itertools.pairwise(distinct)
        },
    )


def _quarter_disc(x: float) -> float:
    """Return the share of a quarter of the unit disc that lies left of x, 0 <= x <= 1."""
    return (x * math.sqrt(1 - x * x) + math.asin(x)) * 2 / math.pi


def _facets(vectors: Array) -> tuple[NDArray[np.intp], Array, Array] | None:
    """Return the facets of the Voronoi cell around the origin.

    Args:
        vectors: (P, 3), the other points, the nearest first.

    Returns:
        Points (F,) as rows of `vectors`, solid angles (F,) and areas (F,) of the facets; None if
        the cell is open or degenerate.
    """
    for count in (_NEAREST, len(vectors)):
        points = np.vstack([np.zeros(3), vectors[:count]])
        try:
            voronoi = Voronoi(points)
        except (QhullError, ValueError):
            continue
        (own,) = np.nonzero((voronoi.ridge_points == 0).any(axis=1))
        ridges = [voronoi.ridge_vertices[i] for i in own]
        if any(-1 in ridge for ridge in ridges):
            continue
        reach = 2 * np.linalg.norm(voronoi.vertices[list(set().union(*ridges))], axis=1).max()
        # A point farther away than twice the farthest corner cuts nothing off.
        if count < len(vectors) and reach >= np.linalg.norm(vectors[count]):
            continue
        facets = np.asarray(voronoi.ridge_points[own].max(axis=1) - 1)  # (F,)
        fans = [(f, r[0], j, k) for f, r in enumerate(ridges) for j, k in itertools.pairwise(r[1:])]
        owner, *corners = np.array(fans).T
        a, b, c = (voronoi.vertices[corner] for corner in corners)  # (T, 3) each
        volume = np.abs(np.einsum("ij,ij->i", a, np.cross(b, c)))  # six times a tetrahedron's
        la, lb, lc = (np.linalg.norm(corner, axis=1) for corner in (a, b, c))
        # Van Oosterom & Strackee 1983, IEEE Trans. Biomed. Eng. 30, 125.
        below = la * lb * lc + lc * (a * b).sum(1) + lb * (a * c).sum(1) + la * (b * c).sum(1)
        angles = np.bincount(owner, 2 * np.arctan2(volume, below), len(facets)).astype(np.float64)
        heights = np.linalg.norm(vectors[facets], axis=1) / 2
        areas = np.asarray(np.bincount(owner, volume, len(facets)) / 2 / heights, dtype=np.float64)
        return (facets, angles, areas) if (areas > 0).all() else None
    return None


def _by_pymatgen(structure: Structure, site: int) -> Coordination:
    data = CrystalNN().get_nn_data(structure, site)
    most = max(data.cn_nninfo)
    vectors = [n["site"].coords - structure[site].coords for n in data.cn_nninfo[most]]
    directions = np.array(vectors).reshape(-1, 3)
    return Coordination(
        directions=directions / np.linalg.norm(directions, axis=1, keepdims=True),
        probabilities={cn: float(weight) for cn, weight in data.cn_weights.items() if cn > 0},
    )


def _radius(element: Element) -> float:
    radius = CovalentRadius.radius.get(element.symbol, element.atomic_radius)
    if radius is None:
        raise TypeError(f"{element.symbol} has no atomic radius")
    return float(radius)
