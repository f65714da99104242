"""Prototypes of crystals, and uniqueness and novelty by them.

The gene of a crystal is its space group with the element and Wyckoff letter of each orbit, such as
`225 Na:a Cl:b`. It is canonical over the Euclidean normalizer of the group: of all choices of
origin and axes that keep the setting, the one with the first letters is taken, and mirror images
have the same gene. Crystals with one gene have the same composition and differ in free parameters
at most.

The gene has no tolerance but that of the symmetry search, and knows no distances. It does not
replace the structure matcher of `flowllm.metrics.uniqueness`: in P1 all crystals of one composition
have one gene, and a crystal that lost its symmetry has another gene than before.

Source: Kazeev et al. 2025 ("WyFormer", arXiv 2503.02407) compare crystals by all their equivalent
choices of letters, which is the same as by one canonical choice.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from pymatgen.core import Structure

from flowllm.crystals.symmetry import SYMPREC, symmetry_of


class Prototype(NamedTuple):
    """What the symmetry of a crystal leaves of it.

    Attributes:
        spacegroup: International number, 1 to 230.
        free_parameters: number of free parameters: of the cell and of the coordinates, less one for
            each polar axis, along which the origin is free.
        gene: space group, elements and Wyckoff letters.
    """

    spacegroup: int
    free_parameters: int
    gene: str


def prototype(structure: Structure, symprec: float = SYMPREC) -> Prototype | None:
    """Return the prototype of a crystal.

    Args:
        structure: an ordered crystal in any cell.
        symprec: distance in Angstrom within which atoms count as symmetric.

    Returns:
        The prototype; None where `symmetry_of` finds none.
    """
    found = symmetry_of(structure, symprec)
    return None if found is None else Prototype(found.spacegroup, found.num_free, found.gene)


def is_first(genes: Sequence[str]) -> NDArray[np.bool_]:
    """Return which crystals have no earlier crystal of their gene.

    uniqueness by prototype = number of genes / N = share of True.

    Args:
        genes: of N crystals.

    Returns:
        (N,).
    """
    first = {gene: i for i, gene in reversed(list(enumerate(genes)))}
    return np.array([first[gene] == i for i, gene in enumerate(genes)], dtype=bool)
