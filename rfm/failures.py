"""Why a structure cannot be refined."""

from __future__ import annotations

from enum import StrEnum

import numpy as np
from pymatgen.core import Structure

from rfm.batch import atomic_numbers
from rfm.errors import RefinerError
from rfm.model import RefinerConfig


class Failure(StrEnum):
    """Why a structure has no refined form."""

    BAD_INPUT = "bad_input"  # disordered, empty, not an element, no volume, not finite
    TOO_MANY_ATOMS = "too_many_atoms"  # larger than any crystal the refiner was trained on
    NOT_FINITE = "not_finite"  # left the finite numbers while integrating
    NO_CELL = "no_cell"  # the final cell does not close
    BAD_VOLUME = "bad_volume"  # the final volume per atom is that of no crystal
    CLOSE_ATOMS = "close_atoms"  # two atoms of the final crystal nearly coincide


def refusal(config: RefinerConfig, structure: Structure, index: int) -> tuple[Failure, str] | None:
    """Why a structure cannot enter a batch, in short and as a line naming it by index; or None."""
    try:
        numbers = atomic_numbers(structure, index)
    except RefinerError as error:
        return Failure.BAD_INPUT, str(error)
    largest = config.max_atoms
    if largest is not None and len(numbers) > largest:
        detail = f"structure {index} has {len(numbers)} atoms; the refiner knows up to {largest}"
        return Failure.TOO_MANY_ATOMS, detail
    heaviest = config.network.max_atomic_number
    matrix = structure.lattice.matrix
    if numbers.max() > heaviest:
        detail = f"structure {index} has an element above the network's limit Z = {heaviest}"
    elif not (np.isfinite(structure.frac_coords).all() and np.isfinite(matrix).all()):
        detail = f"structure {index} holds a number that is not finite"
    elif not abs(np.linalg.det(matrix)) > 0:
        detail = f"structure {index} has a cell without volume"
    else:
        return None
    return Failure.BAD_INPUT, detail
