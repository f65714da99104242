"""Validity of crystals: no overlapping atoms, and charges that can balance.

Source: Xie et al. 2021 (arXiv 2110.06197, "CDVAE"), section 5.2; Court et al. 2020 for the
structural rule, Davies et al. 2019 (SMACT, JOSS 4, 1361) for the compositional one.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from flowllm.crystals.lattices import shortest_translation
from flowllm.errors import UserError
from flowllm.system.extras import require

if TYPE_CHECKING:  # pymatgen takes half a second, and options need only the names of the tables
    from pymatgen.core import Composition, Structure

MIN_DISTANCE = 0.5  # Angstrom
MIN_VOLUME = 0.1  # Angstrom^3
_LARGE = 500  # atoms; beyond it a list of the near pairs replaces the matrix of all
OXIDATION_STATES = "smact14"
# SMACT's name of a table -> attribute of smact.Element that holds it
OXIDATION_STATE_SETS = {
    "smact14": "oxidation_states_smact14",
    "icsd16": "oxidation_states_icsd16",
    "icsd24": "oxidation_states_icsd24",
    "pymatgen_sp": "oxidation_states_sp",
}


def structural_validity(structure: Structure, *, own_images: bool = True) -> bool:
    """Return whether atoms are at least 0.5 Angstrom apart and the volume at least 0.1 Angstrom^3.

    min_{i, j, T} |x_i - x_j + T| >= 0.5, where T runs over the lattice without (i = j, T = 0). The
    code of CDVAE, DiffCSP and FlowMM fills the diagonal of the distance matrix with a large number
    and so leaves out (i, i, T) for all T: there an atom that lies on its own image is valid.

    Args:
        structure: an ordered crystal in any cell.
        own_images: compare an atom with its own images as well; False is the published definition.

    Returns:
        True for a valid crystal.
    """
    if structure.volume < MIN_VOLUME:
        return False
    if own_images and shortest_translation(structure) < MIN_DISTANCE:
        return False
    if len(structure) > _LARGE:
        first, second, _, near = structure.get_neighbor_list(MIN_DISTANCE)  # all (P,)
        return not bool(((first != second) & (near < MIN_DISTANCE)).any())
    distances = np.array(structure.distance_matrix)  # (N, N)
    np.fill_diagonal(distances, np.inf)
    return bool(distances.min() >= MIN_DISTANCE)


def compositional_validity(
    composition: Composition, *, oxidation_states_set: str = OXIDATION_STATES
) -> bool:
    """Return whether charges can balance with the more electronegative elements negative.

    Some choice of one oxidation state per element gives sum_i n_i q_i = 0, with every cation less
    electronegative than every anion (Pauling). Single elements and compounds of metals alone pass.
    A compound with an element for which SMACT has no oxidation state (most noble gases) or no
    electronegativity (promethium) fails. The result equals `smact.screening.smact_validity`, which
    tries the choices one by one and takes minutes for fifteen elements.

    Args:
        composition: composition with whole amounts.
        oxidation_states_set: SMACT's name of a table. `smact14` is the table of SMACT 2 and thus
            of published figures; SMACT 4's default differs for about 4% of compositions.

    Returns:
        True for a valid composition.

    Raises:
        UserError: if the table is unknown, or smact is not installed.
    """
    check_oxidation_states(oxidation_states_set)
    smact = require("smact")
    symbols = [element.symbol for element in composition.elements]
    if len(symbols) == 1 or all(symbol in smact.metals for symbol in symbols):
        return True
    ions = []
    for symbol in symbols:
        electronegativity, states = _ion(symbol, oxidation_states_set)
        if electronegativity is None or not states:
            return False
        ions.append((int(composition[symbol]), electronegativity, states))
    # A choice passes if there are no anions below some electronegativity and no cations from it on.
    for border in {electronegativity for _, electronegativity, _ in ions}:
        below, above = [], []
        for amount, electronegativity, states in ions:
            if electronegativity < border:
                below.append([amount * state for state in states if state >= 0])
            else:
                above.append([-amount * state for state in states if state <= 0])
        if _sums(below) & _sums(above):
            return True
    return False


class _Ion(NamedTuple):
    electronegativity: float | None  # Pauling
    states: Sequence[int]


@functools.cache
def _ion(symbol: str, oxidation_states_set: str) -> _Ion:
    try:
        element = require("smact").Element(symbol)
    except KeyError:  # SMACT has no data from rutherfordium on
        return _Ion(None, ())
    states = getattr(element, OXIDATION_STATE_SETS[oxidation_states_set])
    return _Ion(element.pauling_eneg, tuple(states or ()))


def _sums(terms: Iterable[Iterable[int]]) -> int:
    """Return all sums of one term of each, none negative: bit k is set if k is such a sum."""
    reached = 1
    for choices in terms:
        reached = functools.reduce(operator.or_, (reached << term for term in choices), 0)
    return reached


def check_oxidation_states(oxidation_states_set: str) -> None:
    """Check that SMACT has a table of oxidation states.

    Args:
        oxidation_states_set: SMACT's name of the table.

    Raises:
        UserError: if there is no such table.
    """
    if oxidation_states_set not in OXIDATION_STATE_SETS:
        raise UserError(
            f"there is no set of oxidation states {oxidation_states_set!r}; "
            f"known are {', '.join(OXIDATION_STATE_SETS)}"
        )
