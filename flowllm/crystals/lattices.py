"""Cells that a symmetry search or a structure matcher cannot handle, or only after a reduction.

A diverging generator makes such cells. On them spglib and pymatgen take minutes to hours.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:  # pymatgen takes half a second to import
    from pymatgen.core import Structure

MIN_TRANSLATION = 1.0  # Angstrom
_SKEWED = 10.0
_STEPS = np.array([s for s in itertools.product((-2, -1, 0, 1, 2), repeat=3) if any(s)])  # (124, 3)


def shortest_translation(structure: Structure) -> float:
    """Return the length of the shortest lattice vector.

    Args:
        structure: a crystal.

    Returns:
        The length in Angstrom.
    """
    return float(np.linalg.norm(_STEPS @ structure.lattice.lll_matrix, axis=1).min())


def comparable(structure: Structure) -> bool:
    """Return whether a cell can be searched and matched: no lattice vector below 1 Angstrom.

    Args:
        structure: a crystal.

    Returns:
        True if it can.
    """
    return shortest_translation(structure) >= MIN_TRANSLATION


def unskewed(structure: Structure) -> Structure:
    """Return the crystal in a cell that pymatgen's matcher reduces quickly.

    pymatgen's Niggli reduction searches all lattice points within the longest old vector, which
    takes minutes for the cells of a diverging generator. Such cells (product of lengths above 10
    volumes) are reduced by LLL first, which needs no search.

    Args:
        structure: an ordered crystal.

    Returns:
        The same crystal, in another cell if the given one is strongly skewed.
    """
    lattice = structure.lattice
    if np.prod(lattice.abc) <= _SKEWED * lattice.volume:
        return structure
    return structure.get_reduced_structure("LLL")
