"""Variants of `rfm.alignment.align` with parts left out, for `benchmarks/refine_quality.py`.

Each function takes a base crystal and its target in any description. It returns the target's
fractional coordinates (n, 3) and lattice (3, 3), with the sites in the base's order of elements.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from pymatgen.core import Structure
from scipy.optimize import linear_sum_assignment

from rfm.alignment import LATTICE_WEIGHT, align, nearest_bases

Description = tuple[np.ndarray, np.ndarray]


def none(base: Structure, target: Structure) -> Description:
    """Return the target as it is in the data; like atoms keep the order of the file."""
    return _in_order(base, target, target.frac_coords), target.lattice.matrix


def basis(base: Structure, target: Structure) -> Description:
    """Return the target in the basis whose cell is nearest to the base's; rounding decides ties."""
    changes, _ = nearest_bases(base.lattice.matrix, target.lattice.matrix)
    coords = target.frac_coords @ np.linalg.inv(changes[0])
    return _in_order(base, target, coords), changes[0] @ target.lattice.matrix


def assignment(base: Structure, target: Structure) -> Description:
    """Return the target in the basis and assignment with the lowest cost, without a translation.

    The bases are those near the nearest one.
    """
    changes, distances = nearest_bases(base.lattice.matrix, target.lattice.matrix)
    best: tuple[float, Description] | None = None
    for sign in (1, -1):
        for change, distance in zip(sign * changes, distances, strict=True):
            coords = target.frac_coords @ np.linalg.inv(change)
            ordered, squares = _assigned(base, target, coords)
            cost = squares / len(base) + LATTICE_WEIGHT * distance**2
            if best is None or cost < best[0]:
                best = cost, (ordered, change @ target.lattice.matrix)
    return best[1]


def translation(base: Structure, target: Structure) -> Description:
    """Return the target with basis, assignment and translation from `rfm.alignment.align`."""
    aligned = align(base, target)
    return aligned.target_frac_coords, aligned.target_lattice


ALIGNMENTS: dict[str, Callable[[Structure, Structure], Description]] = {
    "none": none,
    "basis": basis,
    "assignment": assignment,
    "translation": translation,
}


def _in_order(base: Structure, target: Structure, coords: np.ndarray) -> np.ndarray:
    ordered = np.empty_like(coords)
    ordered[np.argsort(base.atomic_numbers, kind="stable")] = coords[
        np.argsort(target.atomic_numbers, kind="stable")
    ]
    return ordered % 1.0


def _assigned(base: Structure, target: Structure, coords: np.ndarray) -> tuple[np.ndarray, float]:
    """Return the target's coordinates in the base's order, and the sum of squared displacements."""
    difference = coords[None] - base.frac_coords[:, None]
    difference -= np.rint(difference)
    squares = (difference**2).sum(-1)
    unlike = np.not_equal.outer(np.array(base.atomic_numbers), np.array(target.atomic_numbers))
    rows, columns = linear_sum_assignment(np.where(unlike, np.inf, squares))
    return coords[columns] % 1.0, float(squares[rows, columns].sum())
