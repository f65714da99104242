"""Refining of structures: what is kept, what fails, and what a result depends on."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pymatgen.core import Lattice, Species, Structure

from rfm import refining
from rfm.config import IntegrationConfig
from rfm.errors import Failure, RefinerError
from rfm.likelihood import flow_log_likelihood
from rfm.model import Refiner
from rfm.refining import Refinement, _finish, refine
from support import BUNDLED_REFINER


def steps(count: int, **others: Any) -> IntegrationConfig:
    return IntegrationConfig(steps=count, **others)


def assert_same_crystal(one: Refinement, two: Refinement) -> None:
    """To rounding in float32."""
    assert one.failure == two.failure
    if one.structure is None or two.structure is None:
        return
    assert np.allclose(one.structure.lattice.matrix, two.structure.lattice.matrix, atol=1e-4)
    d = one.structure.frac_coords - two.structure.frac_coords
    assert np.abs(d - np.round(d)).max() < 1e-4


def test_sites_and_species_are_kept(structures: list[Structure], refiner: Refiner) -> None:
    results = refine(refiner, structures, integration=steps(4), seed=1)
    assert len(results) == 4
    for before, result in zip(structures, results, strict=True):
        assert result.failure is None and result.detail == ""
        assert result.structure.species == before.species
        assert result.structure.volume > 0
        # A lone atom cannot move against the others, and there is no other motion. The atoms of
        # CsCl stay on their special positions.
        moved = not np.allclose(result.structure.frac_coords, before.frac_coords)
        assert moved == (len(before) > 2)


def test_neither_packing_nor_place_changes_a_result(
    structures: list[Structure], refiner: Refiner
) -> None:
    whole = refine(refiner, structures, integration=steps(3), seed=9)
    pieces = refine(refiner, structures, integration=steps(3), seed=9, max_edges=10)
    tail = refine(refiner, structures[2:], integration=steps(3), seed=9, indices=[2, 3])
    for a, b in zip([*whole, *whole[2:]], [*pieces, *tail], strict=True):
        assert_same_crystal(a, b)
    other = refine(refiner, structures, integration=steps(3), seed=10)
    assert not np.allclose(other[2].structure.frac_coords, whole[2].structure.frac_coords)


# The fixtures are not changed by the test.
@settings(
    max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    chosen=st.lists(st.integers(0, 3), min_size=1, max_size=8),
    max_edges=st.integers(1, 60),
    seed=st.integers(0, 3),
)
def test_a_result_depends_on_its_index_and_not_on_the_rest_of_the_batch(
    structures: list[Structure], refiner: Refiner, chosen: list[int], max_edges: int, seed: int
) -> None:
    indices = [3, 0, 1_000_000, 17]
    whole = refine(refiner, structures, integration=steps(2), seed=seed, indices=indices)
    results = refine(
        refiner,
        [structures[k] for k in chosen],
        integration=steps(2),
        seed=seed,
        indices=[indices[k] for k in chosen],
        max_edges=max_edges,
    )
    for k, result in zip(chosen, results, strict=True):
        assert_same_crystal(result, whole[k])


def test_equal_structures_with_other_indices_have_other_noise(
    structures: list[Structure], refiner: Refiner
) -> None:
    one, two = refine(refiner, [structures[2]] * 2, integration=steps(2), indices=[4, 5])
    assert not np.allclose(one.structure.frac_coords, two.structure.frac_coords, atol=1e-3)


def test_real_crystals_are_refined_alike_in_any_order(mp20: list[Structure]) -> None:
    """By the bundled refiner, which moves them little from where they are stable."""
    refiner = Refiner.from_pretrained(BUNDLED_REFINER)
    crystals = sorted(mp20, key=len)[:24]
    forwards = refine(refiner, crystals, integration=steps(5), seed=3)
    backwards = refine(
        refiner, crystals[::-1], integration=steps(5), seed=3, indices=range(24)[::-1]
    )
    for crystal, one, two in zip(crystals, forwards, backwards[::-1], strict=True):
        assert_same_crystal(one, two)
        assert one.structure.composition == crystal.composition
        assert one.structure.volume == pytest.approx(crystal.volume, rel=0.5)


def test_every_finished_structure_is_reported_once(
    structures: list[Structure], refiner: Refiner
) -> None:
    refiner.config.max_atoms = 4  # refuses the third of each four
    reported: list[int] = []
    results = refine(
        refiner, structures * 3, integration=steps(1), max_edges=20, on_finished=reported.append
    )
    assert [result.failure is None for result in results] == [True, True, False, True] * 3
    assert reported[0] == 3 and sum(reported) == 12 and len(reported) > 2


def test_bad_structures_are_reported_in_their_place(
    structures: list[Structure], refiner: Refiner
) -> None:
    bad = {
        "disordered": Structure(Lattice.cubic(3), [{"Fe": 0.5, "Ni": 0.5}], [[0, 0, 0]]),
        "not an element": Structure(Lattice.cubic(3), ["X"], [[0, 0, 0]]),
        "no sites": Structure(Lattice.cubic(3), [], []),
        "not finite": Structure(Lattice.cubic(3), ["H"], [[0, np.nan, 0]]),
        "without volume": Structure(Lattice([[1, 0, 0], [2, 0, 0], [0, 0, 1]]), ["H"], [[0] * 3]),
    }
    refiner.config.network.max_atomic_number = 70
    bad["above the network's limit"] = Structure(Lattice.cubic(3), ["Au"], [[0, 0, 0]])
    mixed = [structures[0], *bad.values(), structures[3]]
    results = refine(refiner, mixed, integration=steps(2))
    assert [r.failure for r in results] == [None, *[Failure.BAD_INPUT] * 6, None]
    for k, (message, result) in enumerate(zip(bad, results[1:-1], strict=True), start=1):
        assert result.structure is None
        assert message in result.detail and f"structure {k} " in result.detail
    alone = refine(refiner, [structures[0]], integration=steps(2))[0].structure
    assert np.allclose(results[0].structure.frac_coords, alone.frac_coords, atol=1e-5)


def test_a_crystal_lost_on_the_way_is_reported(
    structures: list[Structure], refiner: Refiner, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = refiner.velocity

    def velocity(state, t):
        coord, cell = plain(state, t)
        cell = cell.clone()
        cell[state.num_atoms == 5, 0] = torch.nan
        # A cell of length exp(4e3) is a finite vector, but no cell.
        cell[state.num_atoms == 3, 0] = 1e4
        return coord, cell

    monkeypatch.setattr(refiner, "velocity", velocity)
    results = refine(refiner, structures, integration=steps(1))
    failures = [result.failure for result in results]
    assert failures == [None, None, Failure.NOT_FINITE, Failure.NO_CELL]


def test_what_comes_out_as_no_crystal_is_a_failure() -> None:
    ends = {
        None: Structure(Lattice.cubic(4), ["H", "H"], [[0] * 3, [0.2, 0, 0]]),
        Failure.CLOSE_ATOMS: Structure(Lattice.cubic(4), ["H", "H"], [[0] * 3, [0.95, 0, 0]]),
        Failure.BAD_VOLUME: Structure(Lattice.cubic(13), ["H", "H"], [[0] * 3, [0.5] * 3]),
    }
    ends |= {Failure.NO_CELL: Structure(Lattice(np.diag([1, 1, 0])), ["H"], [[0] * 3])}
    for failure, end in ends.items():
        result = _finish(end, np.array(end.lattice.matrix), end.frac_coords)
        assert result.failure == failure and (result.structure is None) == bool(failure)
    # An atom too near to its own image, in a cell that hides it in its basis; and too dense a cell.
    skewed = np.array([[0.3, 0, 0], [0, 9, 0], [3.1, 4, 9]])
    assert _finish(ends[None], skewed, ends[None].frac_coords).failure == Failure.CLOSE_ATOMS
    assert _finish(ends[None], np.eye(3), ends[None].frac_coords).failure == Failure.BAD_VOLUME


def test_larger_crystals_than_it_was_trained_on_are_refused(
    structures: list[Structure], refiner: Refiner
) -> None:
    refiner.config.max_atoms = 3
    results = refine(refiner, structures, integration=steps(2))
    assert [r.failure for r in results] == [None, None, Failure.TOO_MANY_ATOMS, None]
    assert results[2].detail == "structure 2 has 5 atoms; the refiner knows up to 3"


def test_handedness_and_oxidation_states_are_kept(refiner: Refiner) -> None:
    right = Lattice.from_parameters(4, 5, 6, 80, 85, 95)
    left = Lattice(right.matrix * [1, 1, -1])
    species = [Species("Zn", 2), Species("S", -2)]
    coords = [[0, 0, 0], [0.3, 0.4, 0.6]]
    pair = [Structure(lattice, species, coords) for lattice in (right, left)]
    results = [
        refine(refiner, [structure], integration=steps(2))[0].structure for structure in pair
    ]
    assert np.linalg.det(results[0].lattice.matrix) > 0
    assert np.linalg.det(results[1].lattice.matrix) < 0
    assert np.allclose(results[0].lattice.parameters, results[1].lattice.parameters, rtol=1e-4)
    assert results[0].species == species


def test_defaults_come_from_the_config(structures: list[Structure], refiner: Refiner) -> None:
    refiner.config.integration.steps = 4
    refiner.config.integration.position_slope = 1.0
    default = refine(refiner, structures[2:3])
    said = refine(refiner, structures[2:3], integration=steps(4, position_slope=1.0))
    other = refine(refiner, structures[2:3], integration=steps(4, position_slope=0.0))
    assert np.array_equal(default[0].structure.frac_coords, said[0].structure.frac_coords)
    assert not np.array_equal(default[0].structure.frac_coords, other[0].structure.frac_coords)


def test_impossible_settings_are_refused_and_no_structures_are_no_error(
    structures: list[Structure], refiner: Refiner
) -> None:
    assert refine(refiner, []) == []
    with pytest.raises(RefinerError, match="max_edges is 0"):
        refine(refiner, structures, max_edges=0)
    with pytest.raises(RefinerError, match="steps is 0"):
        refine(refiner, structures, integration=steps(0))
    with pytest.raises(RefinerError, match="seed -1 is negative"):
        refine(refiner, structures, seed=-1)
    with pytest.raises(RefinerError, match="3 indices for 4 structures; give one index each"):
        refine(refiner, structures, indices=range(3))
    with pytest.raises(RefinerError, match="index -2 is negative"):
        refine(refiner, structures, indices=[0, 1, -2, 3])


def test_a_batch_holds_no_more_pairs_than_allowed(
    structures: list[Structure], refiner: Refiner, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, seen = refiner.velocity, []

    def velocity(state, t):
        seen.append(int(state.num_atoms.square().sum()))
        return plain(state, t)

    monkeypatch.setattr(refiner, "velocity", velocity)
    refine(refiner, structures * 6, integration=steps(1), max_edges=50)
    assert max(seen) <= 50 and sum(seen) == 6 * (4 + 1 + 25 + 9)


@pytest.mark.parametrize("method", ["euler", "midpoint", "heun"])
def test_trajectory_leads_from_the_base_to_the_result(
    structures: list[Structure], refiner: Refiner, method: str
) -> None:
    plain = refine(refiner, structures, integration=steps(5, method=method))
    results = refine(
        refiner, structures, integration=steps(5, method=method), trajectory=True, max_edges=30
    )
    for structure, before, result in zip(structures, plain, results, strict=True):
        path = result.trajectory
        assert before.trajectory is None
        assert np.allclose(path.t, np.arange(6) / 5)
        assert path.frac_coords.shape == (6, len(structure), 3)
        assert np.allclose(path.lattice[-1], result.structure.lattice.matrix, atol=1e-5)
        assert np.allclose(path.frac_coords[-1], result.structure.frac_coords, atol=1e-6)
        assert np.allclose(before.structure.lattice.matrix, path.lattice[-1], atol=1e-3)
        assert not np.allclose(path.lattice[0], path.lattice[-1], atol=1e-3)


@pytest.fixture
def few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Scores by three steps, which is quick."""
    few = partial(refining.batch_log_likelihood, steps=3)
    monkeypatch.setattr(refining, "batch_log_likelihood", few)


def test_score_is_the_likelihood_of_the_result_under_its_own_prior(
    structures: list[Structure], refiner: Refiner, few_steps: None
) -> None:
    scored = refine(refiner, structures, integration=steps(3), score=True)
    refined = [result.structure for result in scored]
    expected = flow_log_likelihood(refiner, refined, structures, steps=3)
    for result, other in zip(scored, expected, strict=True):
        assert result.log_likelihood.degrees_of_freedom == other.degrees_of_freedom
        assert result.log_likelihood.total == pytest.approx(other.total, abs=0.01)
    assert refine(refiner, structures, integration=steps(3))[0].log_likelihood is None


def test_what_has_no_structure_has_no_score(
    structures: list[Structure],
    refiner: Refiner,
    few_steps: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plain = refiner.velocity

    def velocity(state, t):
        coord, cell = plain(state, t)
        return coord, torch.where(state.num_atoms[:, None] == 5, torch.nan, cell)

    monkeypatch.setattr(refiner, "velocity", velocity)
    results = refine(refiner, structures, integration=steps(2), score=True, trajectory=True)
    assert [result.log_likelihood is None for result in results] == [False, False, True, False]
    assert results[2].failure == Failure.NOT_FINITE
    assert len(results[2].trajectory.t) == 3  # it stands still
