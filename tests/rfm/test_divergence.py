"""The divergence of the velocity field against finite differences."""

from __future__ import annotations

from itertools import product

import numpy as np
import torch
from pymatgen.core import Structure

from rfm.batch import CrystalBatch
from rfm.divergence import velocity_and_divergence
from rfm.model import Refiner


def rngs(count: int) -> list[np.random.Generator]:
    return [np.random.default_rng((0, k)) for k in range(count)]


def test_divergence_agrees_with_finite_differences(refiner: Refiner, state: CrystalBatch) -> None:
    # Off the special positions: where atoms are exactly half a period apart the features jump.
    coords = torch.rand(state.frac_coords.shape, generator=torch.Generator().manual_seed(0))
    state = state.at(coords, state.lattice)
    t, h = torch.full((4,), 0.3), 1e-3  # in float32 a smaller step would lose digits
    _, divergence, variance = velocity_and_divergence(refiner, state, 0.3, rngs(4), exact_atoms=5)
    total = torch.zeros(4)

    def slope(coords: torch.Tensor, lattice: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        with torch.no_grad():
            up = state.at(state.frac_coords + h * coords, state.lattice + h * lattice)
            down = state.at(state.frac_coords - h * coords, state.lattice - h * lattice)
            pairs = zip(refiner.velocity(up, t), refiner.velocity(down, t), strict=True)
            return tuple((a - b) / (2 * h) for a, b in pairs)

    still, flat = torch.zeros_like(state.frac_coords), torch.zeros_like(state.lattice)
    for atom, axis in product(range(len(still)), range(3)):
        push = still.clone()
        push[atom, axis] = 1
        total[state.batch[atom]] += slope(push, flat)[0][atom, axis]
    for axis in range(6):
        strain = flat.clone()
        strain[:, axis] = 1
        total += slope(still, strain)[1][:, axis]
    assert torch.allclose(divergence.float(), total, rtol=0.01, atol=5e-4)
    assert divergence.abs().max() > 0.02 and not variance.any()


def test_random_signs_are_unbiased(refiner: Refiner, state: CrystalBatch) -> None:
    exact = velocity_and_divergence(refiner, state, 0.4, rngs(4), exact_atoms=5)[1]
    many = velocity_and_divergence(refiner, state, 0.4, rngs(4), exact_atoms=1, probes=200)
    error = (many[1] - exact).abs()
    assert error[1] == 0 and many[2][1] == 0  # one atom: exact all the same
    large = torch.tensor([0, 2, 3])
    assert (error[large] < 4 * many[2][large].sqrt()).all()
    assert (many[2][large] > 0).all()


def test_signs_of_a_crystal_are_its_own(refiner: Refiner, structures: list[Structure]) -> None:
    def estimate(chosen: list[int]) -> torch.Tensor:
        state = CrystalBatch.from_structures([structures[k] for k in chosen], refiner.cell)
        generators = [np.random.default_rng((0, k)) for k in chosen]
        return velocity_and_divergence(refiner, state, 0.4, generators, exact_atoms=1, probes=2)[1]

    assert torch.allclose(estimate([0, 1, 2, 3])[[3, 2]], estimate([3, 2]), atol=1e-5)
