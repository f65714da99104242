"""Which neighbours a site has, and with which probability: CrystalNN.

Source: Pan et al. 2021, Inorg. Chem. 60, 1590, with pymatgen's defaults. pymatgen builds the
Voronoi cell of a site from Python objects; here the neighbours of all sites are found at once and
the facets of a cell are one batch of arrays. The tests hold both together.
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

_CUTOFF = 7.0  # Angstrom, of the atoms that may shape a Voronoi cell
_NEAREST = 40  # atoms that are tried first
_X_WEIGHT = 3.0  # of the difference in electronegativity
_MAX_X = 3.3  # the largest difference there is
_FULL, _NONE = 0.5, 1.0  # Angstrom beyond the covalent radii: weight 1 up to, 0 from there


@dataclass(frozen=True)
class Coordination:
    """The surroundings of a site.

    Attributes:
        directions: (K, 3), unit vectors to the neighbours, the likeliest first.
        probabilities: of the coordination numbers from 1 on; that number of neighbours, the first
            of `directions`, is meant.
    """

    directions: Array
    probabilities: dict[int, float]


def coordinations(structure: Structure) -> list[Coordination]:
    """That of each site of an ordered crystal without oxidation states.

    Raises:
        RuntimeError, ValueError: a Voronoi cell does not close.
        TypeError: an element without a radius.
    """
    centres, others, images, distances = structure.get_neighbor_list(_CUTOFF)
    lattice, frac = structure.lattice.matrix, structure.frac_coords
    vectors = (frac[others] + images - frac[centres]) @ lattice  # (P, 3)
    elements = [site.specie for site in structure]
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
        # Solid angle over area, as open structures have large facets that nobody bonds through.
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
    """The share of a quarter of the unit disc that lies left of x, 0 <= x <= 1."""
    return (x * math.sqrt(1 - x * x) + math.asin(x)) * 2 / math.pi


def _facets(vectors: Array) -> tuple[NDArray[np.intp], Array, Array] | None:
    """Facets of the Voronoi cell around the origin: their points, solid angles and areas.

    Args:
        vectors: (P, 3), the other points, the nearest first.

    Returns:
        None where the cell is open or degenerate.
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
        # What lies further away than twice the furthest corner cuts nothing off.
        if count < len(vectors) and reach >= np.linalg.norm(vectors[count]):
            continue
        facets = voronoi.ridge_points[own].max(axis=1) - 1
        fans = [(f, r[0], j, k) for f, r in enumerate(ridges) for j, k in itertools.pairwise(r[1:])]
        owner, *corners = np.array(fans).T
        a, b, c = (voronoi.vertices[corner] for corner in corners)  # (T, 3) each
        volume = np.abs(np.einsum("ij,ij->i", a, np.cross(b, c)))  # six times that of a tetrahedron
        la, lb, lc = (np.linalg.norm(corner, axis=1) for corner in (a, b, c))
        # Van Oosterom & Strackee 1983, IEEE Trans. Biomed. Eng. 30, 125.
        below = la * lb * lc + lc * (a * b).sum(1) + lb * (a * c).sum(1) + la * (b * c).sum(1)
        angles = np.bincount(owner, 2 * np.arctan2(volume, below), len(facets))
        heights = np.linalg.norm(vectors[facets], axis=1) / 2
        areas = np.bincount(owner, volume, len(facets)) / 2 / heights
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
    return float(CovalentRadius.radius.get(element.symbol, element.atomic_radius))
