"""Relaxing one crystal, and potentials that cannot be loaded."""

from __future__ import annotations

from typing import Any

import pytest
from ase.calculators.calculator import Calculator
from ase.calculators.lj import LennardJones
from pymatgen.core import Lattice, Structure

from flowllm.energy.calculators import load_calculator
from flowllm.energy.minimization import relax
from flowllm.errors import UserError
from support import SHARED

POTENTIAL = SHARED / "potentials/TensorNet-MatPES-PBE-v2025.1-PES"
NACL = Structure(
    Lattice.from_parameters(4.02, 4.02, 4.02, 60, 60, 60), ["Na", "Cl"], [[0, 0, 0], [0.5] * 3]
)
ARGON = Structure(
    Lattice.cubic(5.4), ["Ar"] * 4, [[0, 0, 0], [0.5, 0.5, 0], [0.5, 0, 0.5], [0, 0.5, 0.5]]
)


def argon() -> Calculator:
    return LennardJones(sigma=3.4, epsilon=0.0104, rc=8.0)


def test_argon_relaxes_to_the_known_lattice() -> None:
    # fcc Lennard-Jones crystal: nearest neighbours at 1.09 sigma, so a = 1.09 * sqrt(2) * 3.4.
    found = relax(ARGON, argon(), stress_limit=1e-3)
    assert found.failure is None
    assert found.structure.lattice.a == pytest.approx(1.09 * 2**0.5 * 3.4, rel=0.01)
    assert found.energy_per_atom < 0
    assert ARGON.lattice.a == 5.4
    stopped = relax(ARGON, argon(), stress_limit=1e-3, step_limit=1)
    assert stopped.failure == "relaxation: not converged in 1 steps"


@pytest.mark.skipif(not POTENTIAL.is_dir(), reason="the MatPES potential is not at hand")
def test_rock_salt_relaxes_with_matgl() -> None:
    found = relax(NACL, load_calculator(f"matgl:{POTENTIAL}"))
    # a = 5.69 Angstrom of the conventional cell, PBE.
    assert (4 * found.structure.volume) ** (1 / 3) == pytest.approx(5.69, abs=0.03)


@pytest.mark.parametrize(
    ("potential", "message"),
    [
        ("mace", "write matgl:FOLDER, chgnet or MODULE:FACTORY"),
        ("matgl:no/where", "there is no potential folder no/where"),
        ("no_such_module:make", "No module named 'no_such_module'"),
        ("json:nothing", "has no attribute 'nothing'"),
        ("builtins:dict", "returns no ASE calculator"),
        ("operator:neg", "operator:neg cannot be made: TypeError: .*takes no arguments"),
        ("", "unknown potential ''"),
        (3, "unknown potential 3; write"),
    ],
)
def test_a_potential_that_is_none_is_refused(potential: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_calculator(potential)
