"""Relaxing one crystal, and potentials that cannot be loaded."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from ase.calculators.calculator import Calculator
from ase.calculators.lj import LennardJones
from pymatgen.core import Lattice, Structure

from flowllm.crystals.io import read
from flowllm.crystals.symmetry import symmetry_of
from flowllm.energy.calculators import load_calculator
from flowllm.energy.minimization import relax_structure
from flowllm.errors import UserError
from support import MP20_SAMPLE, SHARED

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
    found = relax_structure(ARGON, argon(), stress_limit=1e-3)
    assert found.failure is None
    assert found.structure.lattice.a == pytest.approx(1.09 * 2**0.5 * 3.4, rel=0.01)
    assert found.energy_per_atom < 0
    assert ARGON.lattice.a == 5.4
    stopped = relax_structure(ARGON, argon(), stress_limit=1e-3, step_limit=1)
    assert stopped.failure == "relaxation: not converged in 1 steps"


def perturbed(structure: Structure, seed: int = 0) -> Structure:
    """The crystal with strained axes and moved atoms, by up to 0.03 Angstrom."""
    rng = np.random.default_rng(seed)
    strain = np.eye(3) + rng.uniform(-1, 1, (3, 3)) * 0.03 / max(structure.lattice.abc)
    coords = structure.cart_coords + rng.uniform(-1, 1, (len(structure), 3)) * 0.03 / 3**0.5
    frac_coords = structure.lattice.get_fractional_coords(coords)
    return Structure(structure.lattice.matrix @ strain, structure.species, frac_coords)


@pytest.mark.filterwarnings("ignore:FixSymmetry adjust_cell may be ill behaved:UserWarning")
def test_a_kept_group_is_exact_at_every_step_in_all_families() -> None:
    families = set()
    for crystal in read(MP20_SAMPLE)[::6]:
        rough = perturbed(crystal.structure)
        group = symmetry_of(rough)
        assert group is not None
        potential = LennardJones(sigma=2.3, epsilon=0.05, rc=5.0, smooth=True)
        found = relax_structure(rough, potential, symmetry="keep", step_limit=8, trajectories=True)
        assert found.frames is not None, (crystal.id, found.failure)
        for frame in found.frames[:: len(found.frames) - 1]:
            kept = symmetry_of(Structure(frame.lattice, rough.species, frame.frac_coords), 1e-4)
            assert kept is not None and kept.gene == group.gene, crystal.id
        families.add(group.crystal.group.family)
    assert len(families) == 6


def test_a_kept_group_is_exact_at_the_end_and_a_free_one_is_not() -> None:
    rough = perturbed(ARGON)
    free, kept = (
        relax_structure(rough, argon(), symmetry=choice, stress_limit=0.01)
        for choice in ("free", "keep")
    )
    assert (free.failure, kept.failure) == (None, None)
    assert symmetry_of(kept.structure, 1e-4).spacegroup == 225
    assert symmetry_of(free.structure, 1e-4).spacegroup != 225
    assert kept.structure.volume == pytest.approx(free.structure.volume, rel=1e-3)
    assert kept.energy_per_atom == pytest.approx(free.energy_per_atom, abs=1e-4)


def test_a_crystal_without_a_symmetry_search_fails_only_if_its_group_is_to_be_kept() -> None:
    piled = Structure(Lattice.cubic(5.4), ["Ar"] * 2, [[0, 0, 0], [0, 0, 1e-3]])
    found = relax_structure(piled, argon(), symmetry="keep")
    assert found.failure == "relaxation: no symmetry is found; relax with symmetry free"
    assert (found.structure, found.steps) == (None, 0)


@pytest.mark.skipif(not POTENTIAL.is_dir(), reason="the MatPES potential is not at hand")
def test_rock_salt_relaxes_with_matgl() -> None:
    found = relax_structure(NACL, load_calculator(f"matgl:{POTENTIAL}"))
    # a = 5.69 Angstrom of the conventional cell, PBE.
    assert (4 * found.structure.volume) ** (1 / 3) == pytest.approx(5.69, abs=0.03)


@pytest.mark.parametrize(
    ("potential", "message"),
    [
        ("mace", "write chgnet, chgnet:r2scan, sevennet, matgl:FOLDER or MODULE:FACTORY"),
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
