"""Relaxation of one crystal, cell and positions, with an interatomic potential.

ASE and pymatgen are imported with the first relaxation, so that bad options are refused at once.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from flowllm.errors import InvalidCrystal, one_line
from flowllm.system.options import Options, from_arguments, option

if TYPE_CHECKING:
    from ase import Atoms
    from ase.calculators.calculator import Calculator
    from numpy.typing import NDArray
    from pymatgen.core import Structure

    from flowllm.energy.single_points import SinglePoint
    from flowllm.runs.records import Frame

# Raised by calculators when a crystal falls apart or has an element that they do not know.
CALCULATOR_ERRORS = (ValueError, LookupError, ArithmeticError, RuntimeError)
_EXACT = 1e-4  # Angstrom; tolerance of a crystal that is exactly symmetric
_NEAR, _TERMS = 0.1, 8  # the terms left out of a logarithm are below 1e-17
_VOLUME_RANGE = (1.0, 1000.0)  # Angstrom^3/atom; beyond it a crystal has collapsed or exploded


@dataclass(frozen=True, kw_only=True)
class RelaxationConfig(Options):
    """Limits of a relaxation, its symmetry, and the choice to keep its steps."""

    force_limit: float = option(
        0.05, "Largest force on an atom at the end.", unit="eV/Angstrom", above=0
    )
    # Half a meV/atom in a crystal of bulk modulus 50 GPa.
    stress_limit: float = option(
        0.5, "Largest component of the stress at the end.", unit="GPa", above=0
    )
    step_limit: int = option(500, "Most steps; a crystal that needs more has failed.", minimum=1)
    time_limit: float = option(
        600.0,
        "Most time for a crystal; which crystals it stops depends on the load of the machine.",
        unit="seconds",
        above=0,
    )
    symmetry: Literal["keep", "free"] = option(
        "free",
        "keep: make each crystal exactly symmetric (space group at 0.1 Angstrom) and hold it so.",
        choices=("keep", "free"),
    )
    trajectories: bool = option(False, "Keep every step, in trajectories/ID.extxyz.")


@dataclass(frozen=True, kw_only=True)
class Relaxation:
    """The outcome for one crystal.

    Attributes:
        structure: the relaxed crystal; None if it failed.
        energy_per_atom: of `structure` by the potential, eV/atom; None if it failed.
        initial_energy_per_atom: of the given crystal, made exactly symmetric if its symmetry is
            kept, eV/atom; None if it has no energy.
        steps: of the optimizer.
        failure: why there is no structure, else None.
        frames: the crystal at every step, the initial one first, with the `energy` (eV per cell);
            None if they were not kept, or there is no step.
    """

    structure: Structure | None
    energy_per_atom: float | None
    initial_energy_per_atom: float | None = None
    steps: int
    failure: str | None = None
    frames: Sequence[Frame] | None = None


def relax_structure(
    structure: Structure,
    calculator: Calculator,
    *,
    config: RelaxationConfig | None = None,
    **options: Any,
) -> Relaxation:
    """Relax one crystal to the nearest minimum of the energy at zero pressure.

    FIRE (Bitzek et al. 2006, PRL 97, 170201) on positions and cell together (ASE's
    `FrechetCellFilter`). With symmetry `keep`, ASE's `FixSymmetry` holds the space group; forces
    and stress that break it do not count. A crystal whose symmetry search fails has failed. For
    several crystals `flowllm.energy.batched.relax_structures` is faster.

    Args:
        structure: an ordered crystal; not changed.
        calculator: energy, forces and stress in ASE's units (eV, Angstrom).
        config: limits; None: the defaults.
        **options: fields of `RelaxationConfig`; they replace those of `config`.

    Returns:
        The relaxed crystal, or why there is none.

    Raises:
        UserError: if an option is unknown or out of range.
    """
    from flowllm.energy.single_points import single_points

    limits = from_arguments(RelaxationConfig, options, base=config)
    start = time.monotonic()
    minimization = Minimization(structure, limits)
    while minimization.outcome is None:
        [point] = single_points(calculator, [minimization.atoms])
        minimization.advance(point, seconds=time.monotonic() - start)
    return minimization.outcome


class Minimization:
    """One crystal on its way to the minimum; its energies come from outside.

    Args:
        structure: an ordered crystal; not changed.
        limits: of the relaxation.

    Attributes:
        outcome: the end; None as long as the energy of `atoms` is needed.
    """

    def __init__(self, structure: Structure, limits: RelaxationConfig) -> None:
        from ase.filters import FrechetCellFilter
        from ase.optimize import FIRE

        from flowllm.crystals.crystal import to_atoms

        self.outcome: Relaxation | None = None
        self._limits = limits
        self._path = _Path(len(structure), limits.trajectories)
        with self._failing():
            keep = limits.symmetry == "keep"
            atoms = _symmetric_atoms(structure) if keep else to_atoms(structure)
            if atoms is None:
                self.outcome = self._path.failed("no symmetry is found; relax with symmetry free")
                return
            self._given = atoms.calc = _Given()
            self._atoms = atoms
            cell_filter = FrechetCellFilter(atoms)
            cell_filter._utility.logm = _log  # half of the time of a step of ASE is in SciPy's
            self._optimizer = FIRE(cell_filter, logfile=None)

    @property
    def atoms(self) -> Atoms:
        """The crystal as it is now."""
        return self._atoms

    def advance(self, point: SinglePoint | str, *, seconds: float) -> None:
        """Take the energy of `atoms`, then end or move on by one step.

        Args:
            point: energy, forces and stress, without the constraints; a text if there are none.
            seconds: that this crystal has taken up to now.
        """
        if isinstance(point, str):
            self.outcome = self._path.failed(point)
            return
        self._given.point = point
        with self._failing():
            self.outcome = self._end(seconds)
            if self.outcome is None:
                self._optimizer.step()
                self._path.steps += 1

    def _end(self, seconds: float) -> Relaxation | None:
        from flowllm.crystals.crystal import to_structure

        limits = self._limits
        if (problem := self._path.add(self._atoms)) is not None:
            return self._path.failed(problem)
        if _converged(self._atoms, limits):
            return self._path.result(to_structure(self._atoms), None)
        if seconds > limits.time_limit:
            return self._path.failed(f"over the time limit of {limits.time_limit:g} s")
        if self._path.steps == limits.step_limit:
            return self._path.failed(f"not converged in {limits.step_limit} steps")
        return None

    @contextlib.contextmanager
    def _failing(self) -> Iterator[None]:
        """Make an error of pymatgen or ASE the failure of this crystal."""
        try:
            yield
        except InvalidCrystal as error:
            self.outcome = self._path.failed(error.detail)
        except CALCULATOR_ERRORS as error:
            self.outcome = self._path.failed(one_line(error))


def _log(deformation: NDArray[np.floating]) -> NDArray[np.floating]:
    """Return the logarithm of a (3, 3) matrix; a series near the unit matrix, else SciPy's.

    log F = 2 (X + X^3 / 3 + X^5 / 5 + ...) with X = (F - 1) (F + 1)^-1 (Higham 2008, Functions of
    Matrices, chapter 11).
    """
    unit = np.eye(3)
    ratio = np.linalg.solve((deformation + unit).T, (deformation - unit).T).T
    if np.linalg.norm(ratio) > _NEAR:
        from scipy.linalg import logm

        found: NDArray[np.floating] = logm(deformation)
        return found
    square, power, total = ratio @ ratio, ratio, ratio.copy()
    for odd in range(3, 2 * _TERMS, 2):
        power = power @ square
        total += power / odd
    return 2 * total


class _Given:
    """The calculator of a crystal whose energy is known."""

    point: SinglePoint

    def get_potential_energy(self, atoms: Atoms, **_: Any) -> float:
        return self.point.energy

    def get_forces(self, atoms: Atoms) -> NDArray[np.floating]:
        return self.point.forces.copy()

    def get_stress(self, atoms: Atoms) -> NDArray[np.floating]:
        return self.point.stress.copy()


def failed(reason: str) -> Relaxation:
    """Return a relaxation that failed before its first step.

    Args:
        reason: follows `relaxation: ` in the failure.

    Returns:
        The failed relaxation, without a step.
    """
    return _Path(1, False).failed(reason)


def _symmetric_atoms(structure: Structure) -> Atoms | None:
    """Return a crystal, made exactly symmetric, that keeps its group; None if it has none."""
    from ase.constraints import FixSymmetry

    from flowllm.crystals.crystal import to_atoms
    from flowllm.crystals.symmetry import symmetrized

    # ASE would search at one tolerance before and after making the crystal symmetric. It may then
    # find operations that the crystal has only nearly, and the group is lost.
    symmetric = symmetrized(structure)
    if symmetric is None:
        return None
    atoms = to_atoms(symmetric)
    atoms.set_constraint(FixSymmetry(atoms, symprec=_EXACT))
    return atoms


def _converged(atoms: Atoms, limits: RelaxationConfig) -> bool:
    from ase import units

    force = np.linalg.norm(atoms.get_forces(), axis=1).max()
    stress = np.abs(atoms.get_stress()).max() / units.GPa
    return bool(force <= limits.force_limit and stress <= limits.stress_limit)


class _Path:
    """The energies, and on request the crystals, at the steps of the optimizer."""

    def __init__(self, num_atoms: int, keep_crystals: bool) -> None:
        self.num_atoms = num_atoms
        self.keep_crystals = keep_crystals
        self.steps = 0
        self.energies: list[float] = []  # eV per cell
        self.frames: list[Frame] = []

    def add(self, atoms: Atoms) -> str | None:
        """Add a step and return its problem, or None."""
        energy = float(atoms.get_potential_energy())
        if not math.isfinite(energy):
            return "the energy is not finite"
        low, high = _VOLUME_RANGE
        if not low <= (volume := atoms.cell.volume / self.num_atoms) <= high:
            return f"the cell went to {volume:.3g} A^3 an atom"
        self.energies.append(energy)
        if self.keep_crystals:
            self._keep(atoms, energy)
        return None

    def _keep(self, atoms: Atoms, energy: float) -> None:
        from flowllm.runs.records import Frame

        coords = atoms.get_scaled_positions(wrap=False)  # an atom moves without jumps
        lattice = np.array(atoms.cell)
        self.frames.append(Frame(lattice=lattice, frac_coords=coords, info={"energy": energy}))

    def failed(self, reason: str) -> Relaxation:
        return self.result(None, f"relaxation: {reason}")

    def result(self, structure: Structure | None, failure: str | None) -> Relaxation:
        energies = [energy / self.num_atoms for energy in self.energies]
        return Relaxation(
            structure=structure,
            energy_per_atom=None if structure is None else energies[-1],
            initial_energy_per_atom=energies[0] if energies else None,
            steps=self.steps,
            failure=failure,
            frames=self.frames or None,
        )
