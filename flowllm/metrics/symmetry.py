"""The space group of a crystal that may be far from symmetric."""

from __future__ import annotations

import os
import warnings

import spglib
from pymatgen.core import Structure


def spacegroup_number(structure: Structure, *, symprec: float) -> int | None:
    """International number, 1 to 230, by spglib; None where it finds none.

    Args:
        structure: an ordered crystal.
        symprec: tolerance in Angstrom; the angle tolerance is spglib's own.
    """
    # Else its C code writes to stderr about crystals of which it finds less than it looked for.
    os.environ.setdefault("SPGLIB_WARNING", "OFF")
    cell = (structure.lattice.matrix, structure.frac_coords, structure.atomic_numbers)
    with warnings.catch_warnings():
        # spglib announces its coming change from None to SpglibError; both are handled here.
        warnings.filterwarnings("ignore", "Set OLD_ERROR_HANDLING", DeprecationWarning)
        try:
            dataset = spglib.get_symmetry_dataset(cell, symprec=symprec)
        except spglib.SpglibError:
            return None
    return None if dataset is None else int(dataset.number)
