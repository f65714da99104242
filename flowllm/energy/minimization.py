"""Relaxing one crystal, cell and positions, with an interatomic potential."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from ase import Atoms, units
from ase.calculators.calculator import Calculator
from ase.filters import FrechetCellFilter
from ase.optimize import FIRE
from numpy.typing import NDArray
from pymatgen.core import Structure

from flowllm.crystals.crystal import to_atoms, to_structure
from flowllm.errors import InvalidCrystal, one_line

FORCE_LIMIT = 0.05  # eV/Angstrom
STRESS_LIMIT = 0.5  # GPa; half a meV an atom in a crystal of bulk modulus 50 GPa
STEP_LIMIT = 500
TIME_LIMIT = 600.0  # seconds for one crystal
# What calculators are seen to raise when a crystal falls apart or has an element they do not know.
CALCULATOR_ERRORS = (ValueError, LookupError, ArithmeticError, RuntimeError)
_VOLUME_RANGE = (1.0, 1000.0)  # Angstrom^3 an atom; beyond it a crystal has collapsed or exploded


class Frame(NamedTuple):
    """A crystal on its way: atoms in the order of the crystal."""

    lattice: NDArray[np.float64]  # (3, 3), Angstrom
    cart_coords: NDArray[np.float64]  # (N, 3), Angstrom
    energy: float  # eV per cell


@dataclass(frozen=True, kw_only=True)
class Relaxation:
    """What became of one crystal.

    Attributes:
        structure: relaxed, or None if that failed.
        energy_per_atom: eV/atom of `structure` by the potential, or None.
        initial_energy_per_atom: eV/atom of the crystal as it came, or None if there is none.
        steps: of the optimiser.
        failure: why there is no structure, else None.
        frames: the way there, the crystal as it came first; only on request.
    """

    structure: Structure | None
    energy_per_atom: float | None
    initial_energy_per_atom: float | None = None
    steps: int
    failure: str | None = None
    frames: tuple[Frame, ...] | None = None


def relax(
    structure: Structure,
    calculator: Calculator,
    *,
    force_limit: float = FORCE_LIMIT,
    stress_limit: float = STRESS_LIMIT,
    step_limit: int = STEP_LIMIT,
    time_limit: float | None = None,
    keep_frames: bool = False,
) -> Relaxation:
    """Move atoms and cell to the nearest minimum of the energy.

    FIRE (Bitzek et al. 2006, PRL 97, 170201) on positions and cell together (ASE's
    `FrechetCellFilter`), at zero pressure.

    Args:
        structure: an ordered crystal; not changed.
        calculator: energy, forces and stress in ASE's units (eV, Angstrom).
        force_limit: the largest force on an atom at the end, eV/Angstrom.
        stress_limit: the largest component of the stress at the end, GPa.
        step_limit: most steps; a crystal that needs more has failed.
        time_limit: most seconds, looked at after every step; None: as long as it takes.
        keep_frames: keep the crystal of every step.

    Returns:
        The crystal, or why there is none: a failure is this crystal's alone.
    """
    atoms = to_atoms(structure)
    atoms.calc = calculator
    start = time.monotonic()
    walk = _Walk(len(atoms), keep_frames)
    try:
        optimizer = FIRE(FrechetCellFilter(atoms), logfile=None)
        # fmax 0 is never reached: ASE's own rule takes force and stress for one number.
        for _ in optimizer.irun(fmax=0.0, steps=step_limit):
            walk.steps = optimizer.nsteps
            if (wrong := walk.add(atoms)) is not None:
                return walk.failed(wrong)
            if _converged(atoms, force_limit, stress_limit):
                break
            if time_limit is not None and time.monotonic() - start > time_limit:
                return walk.failed(f"over the time limit of {time_limit:g} s")
        else:
            return walk.failed(f"not converged in {step_limit} steps")
        relaxed = to_structure(atoms)
    except InvalidCrystal as error:
        return walk.failed(error.detail)
    except CALCULATOR_ERRORS as error:
        return walk.failed(one_line(error))
    return walk.result(relaxed, None)


def failed(why: str) -> Relaxation:
    """A relaxation that came to nothing before its first step was known."""
    return _Walk(1, False).failed(why)


def _converged(atoms: Atoms, force_limit: float, stress_limit: float) -> bool:
    force = np.linalg.norm(atoms.get_forces(), axis=1).max()
    stress = np.abs(atoms.get_stress()).max() / units.GPa
    return bool(force <= force_limit and stress <= stress_limit)


class _Walk:
    """The energies, and if wanted the crystals, that the optimiser came by."""

    def __init__(self, num_atoms: int, keep_frames: bool) -> None:
        self.num_atoms = num_atoms
        self.steps = 0
        self.first: float | None = None  # eV per cell
        self.last: float | None = None
        self.frames: list[Frame] | None = [] if keep_frames else None

    def add(self, atoms: Atoms) -> str | None:
        """Look at a step; what is wrong with it, or None."""
        energy = float(atoms.get_potential_energy())
        if not math.isfinite(energy):
            return "the energy is not finite"
        low, high = _VOLUME_RANGE
        if not low <= (volume := atoms.cell.volume / self.num_atoms) <= high:
            return f"the cell went to {volume:.3g} A^3 an atom"
        self.first = energy if self.first is None else self.first
        self.last = energy
        if self.frames is not None:
            self.frames.append(Frame(np.array(atoms.cell), atoms.positions.copy(), energy))
        return None

    def failed(self, why: str) -> Relaxation:
        return self.result(None, f"relaxation: {why}")

    def result(self, structure: Structure | None, failure: str | None) -> Relaxation:
        first, last = (
            None if energy is None else energy / self.num_atoms
            for energy in (self.first, self.last)
        )
        return Relaxation(
            structure=structure,
            energy_per_atom=None if structure is None else last,
            initial_energy_per_atom=first,
            steps=self.steps,
            failure=failure,
            frames=None if self.frames is None else tuple(self.frames),
        )
