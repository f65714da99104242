"""The error of bad input, and the reasons why a structure cannot be refined."""

from __future__ import annotations

from enum import StrEnum


class RefinerError(ValueError):
    """Bad input to the refiner. The message is one line that names the input and the fix."""


class Failure(StrEnum):
    """The reason why a structure has no refined form."""

    BAD_INPUT = "bad_input"  # disordered, empty, not an element, no volume, not finite
    TOO_MANY_ATOMS = "too_many_atoms"  # larger than every crystal the refiner was trained on
    NOT_FINITE = "not_finite"  # left the finite numbers during the integration
    NO_CELL = "no_cell"  # the final cell does not close
    BAD_VOLUME = "bad_volume"  # no crystal has the final volume per atom
    CLOSE_ATOMS = "close_atoms"  # two atoms of the final crystal nearly coincide
