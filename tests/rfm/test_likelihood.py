"""Log-likelihood against closed forms and finite differences, and what is refused."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from pymatgen.core import Structure

from rfm.batch import CrystalBatch
from rfm.config import BaseConfig, IntegrationConfig
from rfm.errors import RefinerError
from rfm.integration import integrate
from rfm.likelihood import backward, flow_log_likelihood
from rfm.model import Refiner
from rfm.torus import wrap_difference


def rngs(count: int, seed: int = 0) -> list[np.random.Generator]:
    return [np.random.default_rng((seed, k)) for k in range(count)]


# --- change of density along the flow ------------------------------------------------------------


class Linear:
    """u_l = A l for the cell, and on the torus a constant: log-density changes by -tr A."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(1)
        self.matrix = 0.3 * torch.randn(6, 6, generator=generator)

    def velocity(self, state: CrystalBatch, t: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return 0.2 + 0 * state.frac_coords, state.lattice @ self.matrix.T


def test_a_gaussian_under_a_linear_field(state: CrystalBatch) -> None:
    """N(0, 1) on R^6 becomes N(0, S) with S = exp(A) exp(A)^T; the torus adds nothing."""
    field = Linear()
    back = backward(field, state, rngs(4), steps=60)
    base = torch.distributions.MultivariateNormal(torch.zeros(6), torch.eye(6))
    flow = torch.linalg.matrix_exp(field.matrix)
    moved = torch.distributions.MultivariateNormal(torch.zeros(6), flow @ flow.T)
    found = base.log_prob(back.state.lattice) + back.change
    assert torch.allclose(found.float(), moved.log_prob(state.lattice), atol=2e-3)
    shift = wrap_difference(state.frac_coords - back.state.frac_coords)
    assert torch.allclose(shift, torch.full_like(shift, 0.2), atol=1e-4)
    assert not back.standard_error[state.num_atoms <= 6].any() and back.finite.all()


class Swirl:
    """u_f of the first atom is 0.2 sin(2 pi f) against the second's in the first coordinate."""

    def velocity(self, state: CrystalBatch, t: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        between = state.frac_coords[::2, 0] - state.frac_coords[1::2, 0]
        push = 0.1 * (2 * math.pi * between).sin() * (1 + t)
        coord = torch.zeros_like(state.frac_coords)
        coord[::2, 0], coord[1::2, 0] = push, -push
        return coord, 0 * state.lattice


def test_the_density_of_a_uniform_base_keeps_total_mass_one() -> None:
    """Of two atoms, whose difference is the whole state up to translation."""
    count = 200
    coords = torch.zeros(2 * count, 3, dtype=torch.float64)
    coords[::2, 0] = torch.arange(count, dtype=torch.float64) / count
    state = CrystalBatch(
        atomic_numbers=torch.ones(2 * count, dtype=torch.int64),
        frac_coords=coords,
        lattice=torch.zeros(count, 6, dtype=torch.float64),
        num_atoms=torch.full((count,), 2),
        batch=torch.arange(2 * count) // 2,
    )
    density = backward(Swirl(), state, rngs(count), steps=30).change.exp()
    assert density.mean().item() == pytest.approx(1, abs=2e-3)
    assert density.max() > 2 * density.min()


def test_forwards_and_backwards_is_where_it_began(refiner: Refiner, state: CrystalBatch) -> None:
    midpoint = IntegrationConfig(steps=30, method="midpoint", position_slope=0.0)
    end = integrate(refiner, state, midpoint).state
    back = backward(refiner, end, rngs(4), steps=30, exact_atoms=1, probes=2).state
    moved = wrap_difference(end.frac_coords - state.frac_coords).abs().max()
    assert wrap_difference(back.frac_coords - state.frac_coords).abs().max() < 0.02 * moved
    strained = (end.lattice - state.lattice).abs().max()
    assert (back.lattice - state.lattice).abs().max() < 0.02 * strained


# --- structures ----------------------------------------------------------------------------------


def test_structures_in_their_order_whatever_the_packing(
    refiner: Refiner, structures: list[Structure]
) -> None:
    whole = flow_log_likelihood(refiner, structures, structures, steps=3, exact_atoms=2)
    alone = flow_log_likelihood(
        refiner, structures, structures, steps=3, exact_atoms=2, max_edges=1
    )
    for one, two, structure in zip(whole, alone, structures, strict=True):
        assert one.total == pytest.approx(two.total, abs=1e-3)
        assert one.degrees_of_freedom == 3 * len(structure) + 3
        assert one.per_degree == one.total / one.degrees_of_freedom
        assert (one.standard_error > 0) == (len(structure) > 2)
    other = flow_log_likelihood(refiner, structures, structures, steps=3, exact_atoms=2, seed=1)
    assert [a.change == b.change for a, b in zip(whole, other, strict=True)] == [
        len(structure) <= 2 for structure in structures
    ]


def test_the_uniform_base_needs_no_prior(refiner: Refiner, structures: list[Structure]) -> None:
    with pytest.raises(RefinerError, match="give it .priors"):
        flow_log_likelihood(refiner, structures)
    refiner.config.base = BaseConfig(kind="uniform")
    assert all(found.change != 0 for found in flow_log_likelihood(refiner, structures, steps=2))


def test_a_crystal_lost_on_the_way_back_has_none(
    refiner: Refiner, structures: list[Structure], monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = refiner.velocity

    def velocity(state: CrystalBatch, t: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        coord, cell = plain(state, t)
        blow_up = torch.where(state.num_atoms == 3, torch.nan, 0.0)
        return coord, cell + blow_up.unsqueeze(-1)

    calm = flow_log_likelihood(refiner, structures, structures, steps=2)
    monkeypatch.setattr(refiner, "velocity", velocity)
    found = flow_log_likelihood(refiner, structures, structures, steps=2)
    assert found[3] is None
    for one, two in zip(found[:3], calm[:3], strict=True):
        assert one.total == pytest.approx(two.total, abs=1e-4)


def test_priors_must_be_the_same_atoms(refiner: Refiner, structures: list[Structure]) -> None:
    with pytest.raises(RefinerError, match="3 priors for 4 structures"):
        flow_log_likelihood(refiner, structures, structures[:3])
    turned = [structures[1], structures[0], *structures[2:]]
    with pytest.raises(RefinerError, match="structure 0 .Cs1 Cl1. and its prior .Cu1. differ"):
        flow_log_likelihood(refiner, structures, turned)
    with pytest.raises(RefinerError, match="probes is 1; give 2 or more"):
        flow_log_likelihood(refiner, structures, structures, probes=1)
    refiner.config.max_atoms = 4
    with pytest.raises(RefinerError, match="structure 2 has 5 atoms; the refiner knows up to 4"):
        flow_log_likelihood(refiner, structures, structures)
