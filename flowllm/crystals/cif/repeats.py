"""A crystal that a CIF gives twice, in two settings: conventional and primitive, for example."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from flowllm.crystals.cells import make_structure
from flowllm.crystals.crystal import Geometry
from flowllm.errors import InvalidCrystal

_SAME_CELL = 1e-3  # relative difference of the scalar products of the cell vectors
_SAME_VOLUME = 2e-3  # relative, per atom
# Tolerances of the matcher: rounding, not relaxation, is between two settings of one crystal.
_LENGTHS, _POSITIONS, _ANGLES = 0.01, 0.02, 1.0


def repeats(crystals: Sequence[Geometry | InvalidCrystal]) -> dict[int, int]:
    """Return which crystals repeat an earlier one in another cell.

    Two equal blocks with the same cell are two crystals, such as two steps of a trajectory.

    Args:
        crystals: of one CIF.

    Returns:
        Index of the repetition -> index of the first.
    """
    found: dict[int, int] = {}
    seen: dict[tuple[object, ...], list[int]] = {}
    for index, crystal in enumerate(crystals):
        if isinstance(crystal, InvalidCrystal):
            continue
        composition, volume = _content(crystal)
        step = round(math.log(volume) / _SAME_VOLUME)
        rivals = [i for k in (-1, 0, 1) for i in seen.get((composition, step + k), [])]
        cells = [crystals[i] for i in rivals]
        if any(isinstance(other, Geometry) and _same_cell(crystal, other) for other in cells):
            continue
        first = next((i for i in rivals if _same_crystal(crystal, crystals[i])), None)
        if first is not None:
            found[index] = first
        else:
            seen.setdefault((composition, step), []).append(index)
    return found


def _content(crystal: Geometry) -> tuple[tuple[tuple[int, int], ...], float]:
    """Return the reduced composition and the volume per atom."""
    numbers, counts = np.unique(crystal.atomic_numbers, return_counts=True)
    divisor = math.gcd(*counts.tolist())
    composition = tuple(zip(numbers.tolist(), (counts // divisor).tolist(), strict=True))
    volume = abs(float(np.linalg.det(crystal.lattice)))
    return composition, volume / len(crystal.atomic_numbers)


def _metric(crystal: Geometry) -> NDArray[np.float64]:
    return np.asarray(crystal.lattice @ crystal.lattice.T)


def _same_cell(one: Geometry, other: Geometry) -> bool:
    difference = np.abs(_metric(one) - _metric(other)).max()
    return len(one.atomic_numbers) == len(other.atomic_numbers) and bool(
        difference <= _SAME_CELL * _metric(one).max()
    )


def _same_crystal(one: Geometry, other: Geometry | InvalidCrystal) -> bool:
    # Imported here for start-up time: few files need it.
    from pymatgen.analysis.structure_matcher import StructureMatcher

    if isinstance(other, InvalidCrystal):
        return False
    matcher = StructureMatcher(_LENGTHS, _POSITIONS, _ANGLES, scale=False)
    return bool(matcher.fit(make_structure(*one), make_structure(*other)))
