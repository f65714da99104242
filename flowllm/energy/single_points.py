"""Energy, forces and stress of many crystals at once, by any calculator."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from ase.calculators.calculator import Calculator, all_changes
from ase.stress import full_3x3_to_voigt_6_stress
from numpy.typing import NDArray

from flowllm.energy.minimization import CALCULATOR_ERRORS
from flowllm.errors import one_line

if TYPE_CHECKING:
    from ase import Atoms


@dataclass(frozen=True)
class SinglePoint:
    """What a potential says of one crystal of N atoms.

    Attributes:
        energy: eV per cell.
        forces: (N, 3), eV/Angstrom.
        stress: (6,), xx, yy, zz, yz, xz, xy, eV/Angstrom^3, positive under tension.
    """

    energy: float
    forces: NDArray[np.floating]
    stress: NDArray[np.floating]


class BatchCalculator(Calculator):
    """An ASE calculator that evaluates several crystals in one call.

    A subclass has `evaluate` and `batch_atoms`.

    Attributes:
        batch_atoms: atoms in a batch; more cost memory and bring no speed.
    """

    implemented_properties = ["energy", "free_energy", "forces", "stress"]
    batch_atoms: int

    def evaluate(self, batch: Sequence[Atoms]) -> list[SinglePoint]:
        """Return energy, forces and stress of each crystal.

        The result of a crystal must not depend on the other ones, but for rounding.

        Args:
            batch: periodic crystals, at least one.

        Raises:
            ValueError, LookupError, ArithmeticError, RuntimeError: if one of them has no energy.
        """
        raise NotImplementedError

    def calculate(
        self,
        atoms: Atoms | None = None,
        properties: Any = None,
        system_changes: Any = all_changes,
    ) -> None:
        """Evaluate one crystal, as ASE asks for it."""
        super().calculate(atoms, properties, system_changes)
        if atoms is None:
            raise ValueError("no atoms are given")
        [point] = self.evaluate([atoms])
        self.results = {
            "energy": point.energy,
            "free_energy": point.energy,
            "forces": point.forces,
            "stress": point.stress,
        }


def single_points(calculator: Calculator, batch: Sequence[Atoms]) -> list[SinglePoint | str]:
    """Return energy, forces and stress of each crystal, or why it has none.

    A `BatchCalculator` evaluates them together. If that fails, the batch is halved until the bad
    crystal is alone. Any other calculator evaluates one after the other.

    Args:
        calculator: the potential.
        batch: crystals; their constraints do not count.

    Returns:
        A result for each crystal; a text for a failed one.
    """
    if not batch:
        return []
    try:
        if isinstance(calculator, BatchCalculator):
            return list(calculator.evaluate(batch))
        if len(batch) == 1:
            return [_single_point(calculator, batch[0])]
    except CALCULATOR_ERRORS as error:
        if len(batch) == 1:
            return [one_line(error)]
    half = len(batch) // 2
    return single_points(calculator, batch[:half]) + single_points(calculator, batch[half:])


def _single_point(calculator: Calculator, atoms: Atoms) -> SinglePoint:
    free = atoms.copy()
    free.set_constraint()
    free.calc = calculator
    return SinglePoint(
        energy=float(free.get_potential_energy()),
        forces=free.get_forces(),
        stress=free.get_stress(),
    )


def voigt(stress: NDArray[np.floating]) -> NDArray[np.floating]:
    """Return a (3, 3) stress as the (6,) values of ASE: xx, yy, zz, yz, xz, xy."""
    values: NDArray[np.floating] = full_3x3_to_voigt_6_stress(stress)
    return values
