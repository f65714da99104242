"""Energy minima of candidates: relaxed with their symmetry first, and then without.

A crystal with its symmetry kept relaxes in few steps to a point where no symmetric change lowers
the energy. No force breaks the symmetry there, yet the point may be a saddle. So a crystal is
displaced at random and relaxed freely; if that leads to a lower energy, the free crystal is taken.
The cell stays the primitive one, so an instability that needs a larger cell is not found.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
from pymatgen.core import Lattice, Structure

from flowllm.energy.batched import relax_structures
from flowllm.energy.isolated import IsolatedRelaxation
from flowllm.energy.minimization import Relaxation, RelaxationConfig

if TYPE_CHECKING:
    from ase.calculators.calculator import Calculator

Relax = Callable[[Sequence[Structure], RelaxationConfig], list[Relaxation]]
"""Relaxes the candidates of a formula; the results do not depend on what was relaxed before."""

# Near a saddle the energy is flat, so the limits are tight; both have the same, as their energies
# are compared.
SYMMETRIC = RelaxationConfig(symmetry="keep", force_limit=0.02, stress_limit=0.1)  # GPa
FREE = RelaxationConfig(force_limit=0.02, stress_limit=0.1)
LOWER = 0.001  # eV/atom; a free crystal that is lower by less is not taken
_DISPLACEMENT = 0.03  # Angstrom, standard deviation of each coordinate of an atom
_STRAIN = 0.005  # standard deviation of each component


def relaxer(calculator: Calculator) -> Relax:
    """Return a function that relaxes crystals in this process.

    Args:
        calculator: the potential.
    """

    def relax(structures: Sequence[Structure], config: RelaxationConfig) -> list[Relaxation]:
        return relax_structures(structures, calculator, config=config)

    return relax


def isolated_relaxer(isolated: IsolatedRelaxation) -> Relax:
    """Return a function that relaxes crystals in a process that may hang or die with one of them.

    Args:
        isolated: the process.
    """

    def relax(structures: Sequence[Structure], config: RelaxationConfig) -> list[Relaxation]:
        ends = dict(isolated(structures, config))
        return [ends[index] for index in range(len(structures))]

    return relax


def leave_saddles(
    structures: Sequence[Structure], energies: Sequence[float], relax: Relax, *, seed: int
) -> list[Relaxation | None]:
    """Return a lower minimum for each crystal that is not at one.

    Args:
        structures: N crystals, relaxed with their symmetry kept.
        energies: (N,) of them by the potential, eV/atom.
        relax: the potential.
        seed: of the displacements.

    Returns:
        (N,): the lower minimum, a relaxation that failed, or None for a crystal at a minimum.
    """
    moved = [
        displaced(structure, np.random.default_rng([seed, place]))
        for place, structure in enumerate(structures)
    ]
    lower: list[Relaxation | None] = []
    for before, found in zip(energies, relax(moved, FREE), strict=True):
        energy = found.energy_per_atom
        lower.append(found if energy is None or energy < before - LOWER else None)
    return lower


def displaced(structure: Structure, rng: np.random.Generator) -> Structure:
    """Return a crystal with its atoms and its cell displaced a little at random.

    Args:
        structure: an ordered crystal of N atoms; not changed.
        rng: draws 3 N + 9 numbers.
    """
    shifts = rng.normal(scale=_DISPLACEMENT, size=(len(structure), 3))
    strain = rng.normal(scale=_STRAIN, size=(3, 3))
    matrix = structure.lattice.matrix @ (np.eye(3) + (strain + strain.T) / 2)
    coords = structure.frac_coords + shifts @ np.linalg.inv(matrix)
    return Structure(Lattice(matrix), structure.species, coords)
