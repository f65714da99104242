from __future__ import annotations

import math

import pytest
import torch

from rfm.batch import CrystalBatch
from rfm.config import INTEGRATION_METHODS, IntegrationConfig
from rfm.integration import METHODS, integrate
from rfm.model import Refiner
from rfm.torus import wrap, wrap_difference


class Constant:
    """The same velocities everywhere, at all times."""

    def __init__(self, state: CrystalBatch) -> None:
        generator = torch.Generator().manual_seed(0)
        self.coord = torch.randn(state.frac_coords.shape, generator=generator)
        self.cell = torch.randn(state.lattice.shape, generator=generator)

    def velocity(self, state: CrystalBatch, t: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.coord, self.cell


class Late(Constant):
    """Crystal 2 gets a number that is not finite once t reaches 0.5."""

    def __init__(self, state: CrystalBatch, bad: float, where: str) -> None:
        super().__init__(state)
        self.bad, self.where = bad, where

    def velocity(self, state: CrystalBatch, t: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        coord, cell = self.coord.clone(), self.cell.clone()
        if t[0] >= 0.5 and self.where == "coord":
            coord[4, 1] = self.bad
        if t[0] >= 0.5 and self.where == "cell":
            cell[2, 3] = self.bad
        return coord, cell


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("steps", [1, 7, 50])
def test_constant_field_is_integrated_exactly(state: CrystalBatch, steps: int, method: str) -> None:
    field = Constant(state)
    constant = IntegrationConfig(steps=steps, method=method, position_slope=0.0, cell_slope=0.0)
    end = integrate(field, state, constant)
    assert end.finite.all()
    error = wrap_difference(end.state.frac_coords - state.frac_coords - field.coord)
    assert error.abs().max() < 1e-5
    assert torch.allclose(end.state.lattice, state.lattice + field.cell, atol=1e-5)
    assert torch.equal(end.state.frac_coords, wrap(end.state.frac_coords))


class Swirl:
    """u_f = sin(2 pi f) / 3 on the torus, u_l = (1 + t) l: both have solutions in closed form."""

    def velocity(self, state: CrystalBatch, t: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return (2 * math.pi * state.frac_coords).sin() / 3, (1 + t[:, None]) * state.lattice


@pytest.mark.parametrize(("method", "order"), [("euler", 1), ("midpoint", 2), ("heun", 2)])
def test_methods_converge_with_their_order(method: str, order: int) -> None:
    state = CrystalBatch(
        atomic_numbers=torch.tensor([1, 2]),
        # In float64, to see small errors, and away from the fixed points 0 and 1/2.
        frac_coords=torch.tensor([[0.1, 0.23, 0.8], [0.4, 0.61, 0.97]], dtype=torch.float64),
        lattice=torch.linspace(-1, 1, 6, dtype=torch.float64)[None],
        num_atoms=torch.tensor([2]),
        batch=torch.tensor([0, 0]),
    )
    # d tan(pi f) / dt = (2 pi / 3) tan(pi f) and d log l / dt = 1 + t.
    tangent = (math.pi * state.frac_coords).tan() * math.exp(2 * math.pi / 3)
    exact_coords = tangent.atan() / math.pi
    exact_lattice = state.lattice * math.exp(1.5)

    def errors(steps: int) -> tuple[float, float]:
        integration = IntegrationConfig(steps=steps, method=method, position_slope=0.0)
        end = integrate(Swirl(), state, integration).state
        off = wrap_difference(end.frac_coords - exact_coords).abs().max().item()
        return off, (end.lattice - exact_lattice).abs().max().item()

    for coarse, fine in zip(errors(40), errors(80), strict=True):
        assert math.log2(coarse / fine) == pytest.approx(order, abs=0.25)


@pytest.mark.parametrize("method", METHODS)
def test_anti_annealing_multiplies_the_velocity(state: CrystalBatch, method: str) -> None:
    field = Constant(state)
    steps, position_slope, cell_slope = 10, 5.0, 2.0
    integration = IntegrationConfig(
        steps=steps, method=method, position_slope=position_slope, cell_slope=cell_slope
    )
    end = integrate(field, state, integration).state
    shift = 0.0 if method == "euler" else 0.5

    def factor(slope: float) -> float:  # the mean over steps of min(1 + s t*, (1 - t) / dt)
        factors = [min(1 + slope * (k + shift) / steps, steps - k) for k in range(steps)]
        return sum(factors) / steps

    moved = factor(position_slope) * field.coord
    error = wrap_difference(end.frac_coords - state.frac_coords - moved)
    assert error.abs().max() < 1e-5
    strained = factor(cell_slope) * field.cell
    assert torch.allclose(end.lattice - state.lattice, strained, atol=1e-5)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("slope", [0.0, 5.0, 1000.0])
def test_no_slope_carries_a_crystal_past_the_end_it_predicts(
    state: CrystalBatch, slope: float, method: str
) -> None:
    goal = state.lattice + 1.0

    class Homing(Constant):
        def velocity(self, now, t):
            # The clamp is for Heun, which alone looks at t = 1.
            left = (1 - t[:, None]).clamp(min=1e-3)
            return torch.zeros_like(now.frac_coords), (goal - now.lattice) / left

    left: list[torch.Tensor] = []
    integrate(
        Homing(state),
        state,
        IntegrationConfig(steps=50, method=method, cell_slope=slope),
        record=lambda t, now: left.append(goal - now.lattice),
    )
    path = torch.stack(left)
    assert (path > -1e-4).all() and (path.diff(dim=0) < 1e-4).all()
    assert path[-1].abs().max() < (0.02 if method == "heun" else 1e-4)


def test_every_state_is_recorded(state: CrystalBatch) -> None:
    seen: list[tuple[float, CrystalBatch]] = []
    four = IntegrationConfig(steps=4)
    end = integrate(Constant(state), state, four, record=lambda *now: seen.append(now))
    assert [t for t, _ in seen] == [0, 0.25, 0.5, 0.75, 1]
    assert torch.equal(seen[0][1].frac_coords, state.frac_coords)
    assert torch.equal(seen[-1][1].lattice, end.state.lattice)
    assert not torch.equal(seen[1][1].lattice, seen[2][1].lattice)


@pytest.mark.parametrize(
    ("method", "times"),
    [
        ("euler", [0.0, 0.25, 0.5, 0.75]),
        ("midpoint", [0.0, 0.125, 0.25, 0.375, 0.5, 0.625, 0.75, 0.875]),
        ("heun", [0.0, 0.25, 0.25, 0.5, 0.5, 0.75, 0.75, 1.0]),
    ],
)
def test_the_field_is_evaluated_at_the_times_of_the_method(
    state: CrystalBatch, method: str, times: list[float]
) -> None:
    seen = []

    class Clock(Constant):
        def velocity(self, state, t):
            assert t.shape == (4,)
            seen.append(t[0].item())
            return super().velocity(state, t)

    integrate(Clock(state), state, IntegrationConfig(steps=4, method=method))
    assert seen == times
    assert len(times) == 4 * METHODS[method].evaluations


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("where", ["coord", "cell"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_crystal_that_becomes_non_finite_is_frozen_alone(
    state: CrystalBatch, bad: float, where: str, method: str
) -> None:
    ten = IntegrationConfig(steps=10, method=method)
    end = integrate(Late(state, bad, where), state, ten)
    calm = integrate(Constant(state), state, ten)
    assert end.finite.tolist() == [True, True, False, True]
    others, its_own = state.batch != 2, state.batch == 2
    assert torch.equal(end.state.frac_coords[others], calm.state.frac_coords[others])
    assert torch.equal(end.state.lattice[[0, 1, 3]], calm.state.lattice[[0, 1, 3]])
    assert end.state.frac_coords.isfinite().all() and end.state.lattice.isfinite().all()
    assert not torch.equal(end.state.frac_coords[its_own], state.frac_coords[its_own])


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e30])
def test_the_network_survives_a_bad_batch_mate(
    refiner: Refiner, state: CrystalBatch, value: float
) -> None:
    lattice = state.lattice.clone()
    lattice[1] = value
    three = IntegrationConfig(steps=3)
    end = integrate(refiner, state.at(state.frac_coords, lattice), three)
    calm = integrate(refiner, state, three)
    assert end.finite.tolist() == [True, False, True, True]
    others = state.batch != 1
    difference = end.state.frac_coords[others] - calm.state.frac_coords[others]
    assert wrap_difference(difference).abs().max() < 1e-5
    assert torch.allclose(end.state.lattice[[0, 2, 3]], calm.state.lattice[[0, 2, 3]], atol=1e-5)


def test_bad_start_is_reported(state: CrystalBatch) -> None:
    coords = state.frac_coords.clone()
    coords[0, 2] = float("nan")
    end = integrate(Constant(state), state.at(coords, state.lattice), IntegrationConfig(steps=2))
    assert end.finite.tolist() == [False, True, True, True]


def test_every_method_that_a_config_may_name_is_implemented() -> None:
    assert tuple(METHODS) == INTEGRATION_METHODS
