"""Space group of a crystal that may be far from symmetric."""

from __future__ import annotations

import os
import warnings

import spglib
from pymatgen.core import Structure


def spacegroup_number(structure: Structure, *, symprec: float) -> int | None:
    """Return the number of the space group by spglib.

    Args:
        structure: an ordered crystal.
        symprec: tolerance of positions in Angstrom; the angle tolerance is spglib's default.

    Returns:
        International number, 1 to 230; None if spglib finds no space group.
    """
    # Without this, spglib's C code writes to stderr where it finds less symmetry than expected.
    os.environ.setdefault("SPGLIB_WARNING", "OFF")
    cell = (
        structure.lattice.matrix.tolist(),
        structure.frac_coords.tolist(),
        list(structure.atomic_numbers),
    )
    with warnings.catch_warnings():
        # spglib will raise SpglibError instead of returning None; both are handled here.
        warnings.filterwarnings("ignore", "Set OLD_ERROR_HANDLING", DeprecationWarning)
        try:
            dataset = spglib.get_symmetry_dataset(cell, symprec=symprec)
        except spglib.SpglibError:
            return None
    return None if dataset is None else int(dataset.number)
