"""`FlowLLM.refine`: crystals from anywhere, in memory."""

from __future__ import annotations

import numpy as np
import pytest
from ase import Atoms
from pymatgen.core import Lattice, Structure

from flowllm import FlowLLM, RefinementConfig, UserError
from flowllm.metrics.symmetry import spacegroup_number
from rfm import Failure
from support import SALT, disordered, same_bits

QUICK = {"steps": 3}


def rock_salt(a: float) -> Structure:
    return Structure.from_spacegroup(
        "Fm-3m", Lattice.cubic(a), ["Na", "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]]
    )


def test_structures_and_atoms_are_refined_alike(model: FlowLLM) -> None:
    structure = SALT.get_primitive_structure()
    atoms = Atoms(
        numbers=structure.atomic_numbers,
        cell=structure.lattice.matrix,
        scaled_positions=structure.frac_coords,
        pbc=True,
    )
    one, two = model.refine([structure], **QUICK)[0], model.refine([atoms], **QUICK)[0]
    assert one.structure.species == two.structure.species == structure.species
    assert np.allclose(one.structure.lattice.matrix, two.structure.lattice.matrix, atol=1e-4)
    assert not same_bits(one.structure, model.refine([structure], seed=1, **QUICK)[0].structure)
    assert model.refine([]) == []


def test_any_cell_of_a_crystal_is_refined_alike(model: FlowLLM) -> None:
    structure = Structure(
        Lattice.from_parameters(3.1, 4.2, 5.3, 80, 95, 100), ["Ti", "O"], [[0, 0, 0], [0.4] * 3]
    )
    skewed = structure.copy()
    skewed.make_supercell([[1, 2, 0], [0, 1, 0], [1, 0, 1]], to_unit_cell=False)
    one, two = (model.refine([s], **QUICK)[0].structure for s in (structure, skewed))
    assert np.allclose(one.lattice.abc, two.lattice.abc, atol=1e-3)
    assert np.allclose(one.distance_matrix, two.distance_matrix, atol=1e-3)


def test_a_config_and_keywords_give_the_same(model: FlowLLM) -> None:
    config = RefinementConfig(seed=5, steps=3)
    (one,) = model.refine([SALT], config)
    (two,) = model.refine([SALT], seed=5, steps=3)
    (three,) = model.refine([SALT], RefinementConfig(seed=6, steps=3), seed=5)
    assert same_bits(one.structure, two.structure) and same_bits(one.structure, three.structure)


def test_the_place_in_a_run_decides_the_noise(model: FlowLLM) -> None:
    first, second = SALT, rock_salt(5).get_primitive_structure()
    both = model.refine([first, second], seed=5, **QUICK)
    (alone,) = model.refine([second], seed=5, indices=[1], **QUICK)
    assert np.allclose(both[1].structure.lattice.abc, alone.structure.lattice.abc, atol=1e-3)
    (other,) = model.refine([second], seed=5, indices=[2], **QUICK)
    assert not np.allclose(alone.structure.lattice.abc, other.structure.lattice.abc, atol=1e-2)


def test_trajectory_and_score_come_with_the_result(model: FlowLLM) -> None:
    (result,) = model.refine([SALT], trajectory=True, **QUICK)
    assert result.trajectory is not None
    assert np.allclose(result.trajectory.t, [0, 1 / 3, 2 / 3, 1])
    (plain,) = model.refine([SALT], **QUICK)
    assert (plain.trajectory, plain.log_likelihood) == (None, None)
    assert same_bits(plain.structure, result.structure)


def test_a_structure_that_cannot_be_refined_is_named(model: FlowLLM) -> None:
    flat = Structure(Lattice.orthorhombic(3, 3, 1e-6), ["Na"], [[0, 0, 0]])
    for bad, reason in ((disordered(), "is disordered"), (flat, "cell")):
        failed, good = model.refine([bad, SALT], **QUICK)
        assert failed.structure is None and failed.failure == "bad_input"
        assert reason in failed.detail and good.structure is not None


def test_bad_arguments_are_refused(model: FlowLLM) -> None:
    with pytest.raises(UserError, match="must be a pymatgen Structure or ASE Atoms, not str"):
        model.refine(["NaCl.cif"])
    with pytest.raises(UserError, match="seed is -1; give a whole number at least 0"):
        model.refine([SALT], seed=-1)
    with pytest.raises(UserError, match="unknown option 'formula'; known are cell_slope, method"):
        model.refine([SALT], formula="NaCl")
    with pytest.raises(UserError, match="2 indices are given for 1 crystals; give one each"):
        model.refine([SALT], indices=[0, 1])
    for lone in (SALT, Atoms("Na", cell=[4] * 3, pbc=True)):
        with pytest.raises(UserError, match=r"a list of crystals; put a single one into brackets"):
            model.refine(lone)


def test_a_crystal_larger_than_any_trained_on_is_reported_alone(model: FlowLLM) -> None:
    large, small = model.refine([SALT * (2, 2, 1), SALT], **QUICK)
    assert (large.structure, large.failure) == (None, Failure.TOO_MANY_ATOMS)
    assert small.structure is not None


def test_the_log_of_a_bad_crystal_gives_its_own_reason(
    model: FlowLLM, caplog: pytest.LogCaptureFixture
) -> None:
    (failed, _) = model.refine([disordered(), SALT], **QUICK)
    assert "is disordered" in failed.detail
    assert "no sites" not in caplog.text


def test_the_space_group_is_kept_unless_the_crystal_may_move_freely(model: FlowLLM) -> None:
    rough = SALT.copy()
    rough.perturb(0.02)
    kept, free = (model.refine([rough], symmetry=s, **QUICK)[0] for s in ("keep", "free"))
    assert spacegroup_number(kept.structure, symprec=1e-4) == 225
    assert spacegroup_number(free.structure, symprec=1e-4) == 1
