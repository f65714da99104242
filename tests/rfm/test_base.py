"""Draws of the base distributions, and their log-density against closed forms."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pymatgen.core import Lattice
from scipy.stats import norm

from rfm.base import (
    base_log_density,
    crystal_generator,
    noisy_base,
    uniform_base,
    uniform_cell_log_density,
    wrapped_normal_log_density,
)
from rfm.batch import CrystalBatch
from rfm.config import BaseConfig, Statistics
from rfm.lattice import LOGMETRIC, StandardChart
from rfm.model import Refiner


def test_every_crystal_has_random_numbers_of_its_own() -> None:
    drawn = {crystal_generator(seed, k).random() for seed in (0, 1) for k in range(50)}
    assert len(drawn) == 100
    assert crystal_generator(1, 7).random() == crystal_generator(1, 7).random()


def test_coordinates_that_round_to_one_are_zero() -> None:
    coords = np.array([[1 - 1e-12, -1e-12, 0.25]])
    drawn, _ = noisy_base(coords, np.zeros(6), BaseConfig(), np.random.default_rng(0))
    assert drawn.tolist() == [[0.0, 0.0, 0.25]]


def test_uniform_base_has_the_law_of_its_formula() -> None:
    statistics = Statistics(
        mean=[0.0] * 6, std=[1.0] * 6, log_length_mean=[1, 1.5, 2], log_length_std=[0.1, 0.2, 0.3]
    )
    cell = StandardChart.from_statistics("logmetric", statistics)
    rng = np.random.default_rng(0)
    drawn = [uniform_base(2, statistics, cell, rng) for _ in range(800)]
    matrices = LOGMETRIC.to_matrix(torch.tensor(np.array([v for _, v in drawn])).double())
    lattices = [Lattice(matrix) for matrix in matrices.numpy()]
    logs = np.log([lattice.abc for lattice in lattices])
    angles = np.array([lattice.angles for lattice in lattices])
    # Means and widths of 800 draws, four standard errors of slack.
    assert np.allclose(logs.mean(0), [1, 1.5, 2], atol=4 * 0.3 / 800**0.5)
    assert np.allclose(logs.std(0), [0.1, 0.2, 0.3], rtol=4 / 1600**0.5)
    assert angles.min() > 59.99 and angles.max() < 120.01
    assert np.allclose(angles.mean(0), 90, atol=4 * 60 / 12**0.5 / 800**0.5)
    coords = np.concatenate([coords for coords, _ in drawn])
    assert abs(coords.mean() - 0.5) < 4 * (1 / 12 / coords.size) ** 0.5


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
    moved = refiner.draw_base(state, [crystal_generator(0, k) for k in range(4)])

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
    cell = StandardChart.from_statistics(chart, statistics)
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
    cell = StandardChart.from_statistics("logmetric", statistics)
    skewed = [[4.0, 0, 0], [-3, 3, 0], [0, 0, 4]]  # 135 degrees
    lattices = torch.tensor([Lattice.cubic(4).matrix.tolist(), skewed], dtype=torch.float64)
    cube, outside = uniform_cell_log_density(cell.encode(lattices), statistics, cell).tolist()
    assert math.isfinite(cube) and outside == -math.inf
