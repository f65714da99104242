"""Whether a crystal can be one at all: no two atoms in one place, and charges that can balance.

Source: Xie et al. 2021 (arXiv 2110.06197, "CDVAE"), section 5.2; Court et al. 2020 for the
structural rule, Davies et al. 2019 (SMACT, JOSS 4, 1361) for the compositional one.
"""

from __future__ import annotations

import functools
import itertools
import operator
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from pymatgen.core import Composition, Structure

from flowllm.errors import UserError
from flowllm.system.extras import require

MIN_DISTANCE = 0.5  # Angstrom
MIN_VOLUME = 0.1  # Angstrom^3
OXIDATION_STATES = "smact14"
# SMACT's name of a table -> the attribute of smact.Element that holds it
OXIDATION_STATE_SETS = {
    "smact14": "oxidation_states_smact14",
    "icsd16": "oxidation_states_icsd16",
    "icsd24": "oxidation_states_icsd24",
    "pymatgen_sp": "oxidation_states_sp",
}

_STEPS = np.array([s for s in itertools.product((-2, -1, 0, 1, 2), repeat=3) if any(s)])  # (124, 3)


def structural_validity(structure: Structure, *, own_images: bool = True) -> bool:
    """All distances at least 0.5 Angstrom over periodic images, volume at least 0.1 Angstrom^3.

    min_{i, j, T} |x_i - x_j + T| >= 0.5, where T runs over the lattice and (i = j, T = 0) is left
    out. The code of CDVAE, DiffCSP and FlowMM fills the diagonal of the distance matrix with a
    large number and so leaves out (i = i, T) for all T: an atom that lies on its own image counts
    as valid.

    Args:
        structure: an ordered crystal in any cell.
        own_images: compare an atom with its own images as well; False is the published reading.
    """
    if structure.volume < MIN_VOLUME:
        return False
    if own_images and shortest_translation(structure) < MIN_DISTANCE:
        return False
    distances = np.array(structure.distance_matrix)  # (N, N)
    np.fill_diagonal(distances, np.inf)
    return bool(distances.min() >= MIN_DISTANCE)


def compositional_validity(
    composition: Composition, *, oxidation_states_set: str = OXIDATION_STATES
) -> bool:
    """Charges can balance with the more electronegative elements negative.

    Some choice of one oxidation state per element gives sum_i n_i q_i = 0, with every cation less
    electronegative than every anion (Pauling). Single elements and compounds of metals alone pass.
    An element of which SMACT knows no oxidation state (most noble gases) or no electronegativity
    (promethium) fails in a compound. The verdict is that of `smact.screening.smact_validity`, which
    tries the choices one by one: minutes for fifteen elements, where this takes no time.

    Args:
        composition: whole amounts.
        oxidation_states_set: SMACT's name of a table. `smact14` is what SMACT 2 used and thus what
            published figures mean; SMACT 4's own default differs for about 4% of compositions.

    Raises:
        UserError: an unknown table, or smact is not installed.
    """
    check_oxidation_states(oxidation_states_set)
    smact = require("smact")
    symbols = [element.symbol for element in composition.elements]
    if len(symbols) == 1 or all(symbol in smact.metals for symbol in symbols):
        return True
    ions = [_ion(symbol, oxidation_states_set) for symbol in symbols]
    if not all(ion.states and ion.electronegativity is not None for ion in ions):
        return False
    amounts = [int(composition[symbol]) for symbol in symbols]
    # A choice passes if below some electronegativity there are no anions, from it on no cations.
    for border in {ion.electronegativity for ion in ions}:
        below, above = [], []
        for amount, ion in zip(amounts, ions, strict=True):
            if ion.electronegativity < border:
                below.append([amount * state for state in ion.states if state >= 0])
            else:
                above.append([-amount * state for state in ion.states if state <= 0])
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
    except KeyError:  # rutherfordium and beyond, of which SMACT has no data
        return _Ion(None, ())
    states = getattr(element, OXIDATION_STATE_SETS[oxidation_states_set])
    return _Ion(element.pauling_eneg, tuple(states or ()))


def _sums(terms: Iterable[Iterable[int]]) -> int:
    """Every sum of one term of each, no term negative: bit k is set if k is such a sum."""
    reached = 1
    for choices in terms:
        reached = functools.reduce(operator.or_, (reached << term for term in choices), 0)
    return reached


def check_oxidation_states(oxidation_states_set: str) -> None:
    """See that a table has the name that is given.

    Raises:
        UserError: it has not.
    """
    if oxidation_states_set not in OXIDATION_STATE_SETS:
        raise UserError(
            f"there is no set of oxidation states {oxidation_states_set!r}; "
            f"known are {', '.join(OXIDATION_STATE_SETS)}"
        )


def shortest_translation(structure: Structure) -> float:
    """Length of the shortest lattice vector, Angstrom."""
    return float(np.linalg.norm(_STEPS @ structure.lattice.lll_matrix, axis=1).min())
