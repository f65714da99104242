"""Test of a potential on two crystals with known structures, rock salt and SrTiO3."""

from __future__ import annotations

import logging

from ase.calculators.calculator import Calculator
from pymatgen.core import Lattice, Structure

from flowllm.crystals.crystal import to_atoms
from flowllm.energy.minimization import CALCULATOR_ERRORS, relax_structure
from flowllm.errors import UserError, one_line

logger = logging.getLogger(__name__)

# Of the volume, 3% of a length: about the spread between functionals.
_VOLUME_TOLERANCE = 0.10


def check_calculator(potential: str, calculator: Calculator) -> None:
    """Refuse a potential that is wrong for rock salt or SrTiO3.

    Some weights load without an error and are wrong for every compound, for example weights of an
    older version of their package. Both crystals are relaxed and must keep their volume (PBE: NaCl
    5.70, SrTiO3 3.94 Angstrom), and must lie below NaCl in the structure of CsCl and below SrTiO3
    with exchanged metals. A potential that does not know these elements passes with a warning.

    Args:
        potential: name, for messages.
        calculator: the potential's calculator.

    Raises:
        UserError: if the potential is wrong.
    """
    try:
        for name, right, other, wrong in _known_crystals():
            energies = []
            for structure in (right, wrong):
                atoms = to_atoms(structure)
                atoms.calc = calculator
                energies.append(float(atoms.get_potential_energy()))
            if not energies[0] < energies[1]:
                raise _wrong(potential, f"it puts {name} above {other}")
            relaxed = relax_structure(right, calculator, step_limit=100).structure
            if relaxed is None:
                raise _wrong(potential, f"{name} does not relax")
            error = relaxed.volume / right.volume - 1
            if abs(error) > _VOLUME_TOLERANCE:
                raise _wrong(potential, f"its volume of {name} is off by {100 * error:+.0f}%")
    except _WrongPotential:
        raise
    except CALCULATOR_ERRORS as error:
        logger.warning(
            "potential %s could not be tested on NaCl and SrTiO3: %s", potential, one_line(error)
        )


class _WrongPotential(UserError):
    pass


def _wrong(potential: str, why: str) -> _WrongPotential:
    return _WrongPotential(
        f"potential {potential} is wrong: {why}; its weights are damaged or of another version of "
        "their package, take others"
    )


def _known_crystals() -> list[tuple[str, Structure, str, Structure]]:
    """Return crystals in their PBE cells, each with its atoms in a structure of higher energy."""
    face = [[0.0, 0.5, 0.5], [0.5, 0.0, 0.5], [0.5, 0.5, 0.0]]
    middle = [0.5, 0.5, 0.5]
    corner = [0.0, 0.0, 0.0]
    side = 5.70 / 2**0.5
    primitive = Lattice.from_parameters(side, side, side, 60, 60, 60)
    salt = Structure(primitive, ["Na", "Cl"], [corner, middle])
    packed = Structure(Lattice.cubic(3.47), ["Na", "Cl"], [corner, middle])
    perovskite, exchanged = (
        Structure(Lattice.cubic(3.94), [*metals, "O", "O", "O"], [corner, middle, *face])
        for metals in (("Sr", "Ti"), ("Ti", "Sr"))
    )
    return [
        ("NaCl", salt, "NaCl in the structure of CsCl", packed),
        ("SrTiO3", perovskite, "SrTiO3 with its metals exchanged", exchanged),
    ]
