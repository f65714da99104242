"""Whether a crystal can be one at all: no two atoms in one place, and charges that can balance.

Source: Xie et al. 2021 (arXiv 2110.06197, "CDVAE"), section 5.2; Court et al. 2020 for the
structural rule, Davies et al. 2019 (SMACT, JOSS 4, 1361) for the compositional one.
"""

from __future__ import annotations

import itertools

import numpy as np
from pymatgen.core import Composition, Structure

from flowllm.errors import UserError
from flowllm.metrics.extras import require
from flowllm.noble import electronegativity_unheard

MIN_DISTANCE = 0.5  # Angstrom
MIN_VOLUME = 0.1  # Angstrom^3
OXIDATION_STATES = "smact14"
OXIDATION_STATE_SETS = ("smact14", "icsd16", "icsd24", "pymatgen_sp")

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


@electronegativity_unheard()
def compositional_validity(
    composition: Composition, *, oxidation_states_set: str = OXIDATION_STATES
) -> bool:
    """Charges can balance with the more electronegative elements negative.

    Some choice of one oxidation state per element gives sum_i n_i q_i = 0, with every cation less
    electronegative than every anion (Pauling). Single elements and compounds of metals alone pass.
    An element of which the set knows no oxidation state (most noble gases) fails in a compound.

    Args:
        composition: whole amounts.
        oxidation_states_set: SMACT's name of a table. `smact14` is what SMACT 2 used and thus what
            published figures mean; SMACT 4's own default differs for about 4% of compositions.

    Raises:
        UserError: an unknown table, or smact is not installed.
    """
    check_oxidation_states(oxidation_states_set)
    screening = require("smact.screening")
    try:
        # Reduced: SMACT's search grows with the amounts, the answer depends on their ratios.
        return bool(
            screening.smact_validity(
                composition.reduced_composition, oxidation_states_set=oxidation_states_set
            )
        )
    except KeyError:  # rutherfordium and beyond, of which SMACT has no data
        return False


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
