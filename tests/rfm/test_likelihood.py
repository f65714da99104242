"""Log-likelihood against closed forms and finite differences, and what is refused."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pymatgen.core import Lattice, Structure
from scipy.stats import norm

from rfm.base import BaseConfig, Statistics, uniform_base
from rfm.base_density import (
    base_log_density,
    uniform_cell_log_density,
    wrapped_normal_log_density,
)
from rfm.batch import CrystalBatch
from rfm.divergence import velocity_and_divergence
from rfm.errors import RefinerError
from rfm.integration import integrate
from rfm.likelihood import backward, log_likelihood
from rfm.model import Refiner
from rfm.torus import wrap_difference


@pytest.fixture
def state(structures: list[Structure], refiner: Refiner) -> CrystalBatch:
    return CrystalBatch.from_structures(structures, refiner.cell)


def rngs(count: int, seed: int = 0) -> list[np.random.Generator]:
    return [np.random.default_rng((seed, k)) for k in range(count)]


# --- divergence ----------------------------------------------------------------------------------


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
    end = integrate(refiner, state, steps=30, method="midpoint", position_slope=0.0).state
    back = backward(refiner, end, rngs(4), steps=30, exact_atoms=1, probes=2).state
    moved = wrap_difference(end.frac_coords - state.frac_coords).abs().max()
    assert wrap_difference(back.frac_coords - state.frac_coords).abs().max() < 0.02 * moved
    strained = (end.lattice - state.lattice).abs().max()
    assert (back.lattice - state.lattice).abs().max() < 0.02 * strained


# --- base ----------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=25)
@given(
    st.lists(st.floats(-0.6, 0.6), min_size=9, max_size=9),
    st.sampled_from([0.05, 0.15, 0.6]),
)
def test_wrapped_noise_by_the_sum_over_lifts(values: list[float], sigma: float) -> None:
    """Differences to the last atom are normal with covariance sigma^2 (1 + I), summed over Z^2."""
    d = torch.tensor(values, dtype=torch.float64).reshape(3, 3)
    found = wrapped_normal_log_density(d, sigma).item()
    covariance = sigma**2 * (torch.eye(2) + 1).double()
    normal = torch.distributions.MultivariateNormal(torch.zeros(2).double(), covariance)
    lifts = torch.cartesian_prod(*[torch.arange(-12.0, 13.0)] * 2).double()
    relative = d[:2] - d[2]
    expected = sum(normal.log_prob(relative[:, a] + lifts).logsumexp(0) for a in range(3))
    assert found == pytest.approx(expected.item(), rel=1e-9, abs=1e-9)
    moved = d + torch.tensor([0.3, -1.0, 0.77]).double()  # a translation, and a period of an atom
    moved[1, 2] += 1
    assert wrapped_normal_log_density(moved, sigma).item() == pytest.approx(found, abs=1e-9)


def test_a_lone_atom_and_a_wide_noise_have_density_one() -> None:
    assert wrapped_normal_log_density(torch.rand(1, 3).double(), 0.1).abs() < 1e-12
    assert wrapped_normal_log_density(torch.rand(4, 3).double(), 3.0).abs() < 1e-12


def test_base_of_pairs_is_positions_times_cell(refiner: Refiner, state: CrystalBatch) -> None:
    base = BaseConfig(position_sigma=0.1, cell_sigma=0.2)
    moved = refiner.draw_base(state, rngs(4))

    def log_density(base: BaseConfig) -> torch.Tensor:
        return base_log_density(base, refiner.config.statistics, refiner.cell, moved, state)

    cell = norm.logpdf((moved.lattice - state.lattice).double().numpy(), scale=0.2).sum(1)
    only_cell = log_density(BaseConfig(cell_sigma=0.2))
    assert np.allclose(only_cell.numpy(), cell)
    only_positions = log_density(BaseConfig(position_sigma=0.1))
    assert torch.allclose(log_density(base), only_cell + only_positions)
    assert not log_density(BaseConfig()).any()  # two point masses, both left out


@pytest.mark.parametrize("chart", ["logmetric", "params"])
def test_density_of_uniform_cells(statistics: Statistics, chart: str) -> None:
    """Along a small random segment of z the density of drawn cells is that of lengths and angles.

    The change of variables is checked by central differences of the map z -> lengths and angles.
    """
    if chart == "params":
        statistics.mean, statistics.std = [1.4, 1.5, 1.7, 0, 0, 0], [0.3] * 6
    cell = statistics.standard_chart(chart)
    rng = np.random.default_rng(3)
    z = torch.from_numpy(np.stack([uniform_base(1, statistics, cell, rng)[1] for _ in range(5)]))
    z = z.double()

    def lengths_and_angles(z: torch.Tensor) -> np.ndarray:
        rows = cell.decode(z).numpy()
        lengths = np.linalg.norm(rows, axis=-1)
        pairs = [(1, 2), (0, 2), (0, 1)]
        cosines = [
            (rows[:, i] * rows[:, j]).sum(-1) / lengths[:, i] / lengths[:, j] for i, j in pairs
        ]
        return np.concatenate([np.log(lengths), np.degrees(np.arccos(np.stack(cosines, 1)))], 1)

    h = 1e-5
    columns = [
        (lengths_and_angles(z + h * e) - lengths_and_angles(z - h * e)) / (2 * h)
        for e in torch.eye(6).double()
    ]
    volume = np.linalg.slogdet(np.stack(columns, -1))[1]
    lengths = lengths_and_angles(z)[:, :3]
    normal = norm.logpdf(lengths, statistics.log_length_mean, statistics.log_length_std).sum(1)
    expected = normal - 3 * math.log(60) + volume
    assert np.allclose(uniform_cell_log_density(z, statistics, cell), expected, atol=1e-5)


def test_a_cube_has_a_density_and_an_angle_outside_has_none(statistics: Statistics) -> None:
    cell = statistics.standard_chart("logmetric")
    skewed = [[4.0, 0, 0], [-3, 3, 0], [0, 0, 4]]  # 135 degrees
    lattices = torch.tensor([Lattice.cubic(4).matrix.tolist(), skewed], dtype=torch.float64)
    cube, outside = uniform_cell_log_density(cell.encode(lattices), statistics, cell).tolist()
    assert math.isfinite(cube) and outside == -math.inf


# --- structures ----------------------------------------------------------------------------------


def test_structures_in_their_order_whatever_the_packing(
    refiner: Refiner, structures: list[Structure]
) -> None:
    whole = log_likelihood(refiner, structures, structures, steps=3, exact_atoms=2)
    alone = log_likelihood(refiner, structures, structures, steps=3, exact_atoms=2, max_edges=1)
    for one, two, structure in zip(whole, alone, structures, strict=True):
        assert one.total == pytest.approx(two.total, abs=1e-3)
        assert one.degrees_of_freedom == 3 * len(structure) + 3
        assert one.per_degree == one.total / one.degrees_of_freedom
        assert (one.standard_error > 0) == (len(structure) > 2)
    other = log_likelihood(refiner, structures, structures, steps=3, exact_atoms=2, seed=1)
    assert [a.change == b.change for a, b in zip(whole, other, strict=True)] == [
        len(structure) <= 2 for structure in structures
    ]


def test_the_uniform_base_needs_no_prior(refiner: Refiner, structures: list[Structure]) -> None:
    with pytest.raises(RefinerError, match="give it .priors"):
        log_likelihood(refiner, structures)
    refiner.config.base = BaseConfig(kind="uniform")
    assert all(found.change != 0 for found in log_likelihood(refiner, structures, steps=2))


def test_a_crystal_lost_on_the_way_back_has_none(
    refiner: Refiner, structures: list[Structure], monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = refiner.velocity

    def velocity(state: CrystalBatch, t: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        coord, cell = plain(state, t)
        blow_up = torch.where(state.num_atoms == 3, torch.nan, 0.0)
        return coord, cell + blow_up.unsqueeze(-1)

    calm = log_likelihood(refiner, structures, structures, steps=2)
    monkeypatch.setattr(refiner, "velocity", velocity)
    found = log_likelihood(refiner, structures, structures, steps=2)
    assert found[3] is None
    for one, two in zip(found[:3], calm[:3], strict=True):
        assert one.total == pytest.approx(two.total, abs=1e-4)


def test_priors_must_be_the_same_atoms(refiner: Refiner, structures: list[Structure]) -> None:
    with pytest.raises(RefinerError, match="3 priors for 4 structures"):
        log_likelihood(refiner, structures, structures[:3])
    turned = [structures[1], structures[0], *structures[2:]]
    with pytest.raises(RefinerError, match="structure 0 .Cs1 Cl1. and its prior .Cu1. differ"):
        log_likelihood(refiner, structures, turned)
    with pytest.raises(RefinerError, match="probes is 1; give 2 or more"):
        log_likelihood(refiner, structures, structures, probes=1)
    refiner.config.max_atoms = 4
    with pytest.raises(RefinerError, match="structure 2 has 5 atoms; the refiner knows up to 4"):
        log_likelihood(refiner, structures, structures)
