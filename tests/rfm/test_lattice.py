from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from geoopt import SymmetricPositiveDefinite
from hypothesis import example, given
from hypothesis import strategies as st
from pymatgen.core import Lattice, Structure
from scipy.linalg import expm

from rfm.alignment import nearest_bases
from rfm.errors import RefinerError
from rfm.lattice import (
    LOGMETRIC,
    PARAMS,
    StandardChart,
    chart,
    metric_from_parameters,
    metric_tensor,
    metric_to_matrix,
)

lengths = st.floats(1.5, 60.0)
short = st.floats(2.0, 12.0)
angles = st.floats(60.5, 119.5)


@st.composite
def cells(draw: st.DrawFn, lengths: st.SearchStrategy[float] = lengths) -> Lattice:
    """Closed cells with angles in the range of Niggli cells, and not flatter than sin = 0.1."""
    alpha, beta = draw(angles), draw(angles)
    low = abs(alpha - beta) + 8
    high = min(alpha + beta, 360 - alpha - beta) - 8
    gamma = draw(st.floats(max(low, 60.5), min(high, 119.5)))
    return Lattice.from_parameters(draw(lengths), draw(lengths), draw(lengths), alpha, beta, gamma)


@pytest.mark.parametrize("which", [LOGMETRIC, PARAMS])
@given(cell=cells())
def test_a_cell_is_the_same_after_its_chart(which, cell: Lattice) -> None:
    matrix = torch.tensor(cell.matrix).unsqueeze(0)
    back = which.to_matrix(which.to_vector(matrix))
    assert np.allclose(Lattice(back[0].numpy()).parameters, cell.parameters, rtol=1e-6)


@given(st.lists(st.floats(-4, 4), min_size=6, max_size=6))
def test_every_vector_is_a_valid_logmetric_cell(values: list[float]) -> None:
    vector = torch.tensor([values], dtype=torch.float64)
    matrix = LOGMETRIC.to_matrix(vector)
    assert torch.linalg.det(matrix) > 0
    assert torch.allclose(LOGMETRIC.to_vector(matrix), vector, atol=1e-6)


def test_logmetric_agrees_with_scipy() -> None:
    lattice = Lattice.from_parameters(3, 4, 7, 75, 85, 95)
    vector = LOGMETRIC.to_vector(torch.tensor(lattice.matrix).unsqueeze(0))[0].numpy()
    xx, yy, zz = vector[:3]
    xy, xz, yz = vector[3:] / math.sqrt(2)
    s = np.array([[xx, xy, xz], [xy, yy, yz], [xz, yz, zz]])
    assert np.allclose(expm(s), lattice.metric_tensor)
    assert np.isclose(np.linalg.norm(vector), np.linalg.norm(s))


@pytest.mark.filterwarnings("ignore:SPDMetric.LEM is not fully implemented:UserWarning")
def test_logmetric_distances_are_those_of_geoopt(mp20: list[Structure]) -> None:
    """The log-Euclidean distance of metric tensors, up to the rounding of float64."""
    manifold = SymmetricPositiveDefinite("LEM")
    matrices = torch.tensor(np.stack([structure.lattice.matrix for structure in mp20]))
    vectors, metrics = LOGMETRIC.to_vector(matrices), metric_tensor(matrices)
    distances = torch.linalg.vector_norm(vectors[1:] - vectors[:-1], dim=-1)
    assert torch.allclose(distances, manifold.dist(metrics[1:], metrics[:-1]))


def test_params_agrees_with_a_hand_calculation() -> None:
    vector = PARAMS.to_vector(torch.tensor(Lattice.orthorhombic(1, math.e, 10).matrix)[None])[0]
    # 90 degrees lies in the middle of 0 and 180, where the logit is 0.
    assert np.allclose(vector, [0, 1, math.log(10), 0, 0, 0], atol=1e-12)


@given(base=cells(short), target=cells(short))
@example(  # 47 degrees in the basis nearest to the base
    base=Lattice.from_parameters(3, 3.5, 7, 90, 90, 61),
    target=Lattice.from_parameters(3, 3.1, 7, 90, 90, 92),
)
def test_params_holds_every_cell_that_alignment_gives(base: Lattice, target: Lattice) -> None:
    bases, _ = nearest_bases(base.matrix, target.get_niggli_reduced_lattice().matrix)
    aligned = bases @ target.get_niggli_reduced_lattice().matrix
    back = PARAMS.to_matrix(PARAMS.to_vector(torch.from_numpy(aligned))).numpy()
    metrics = [lattices @ np.swapaxes(lattices, 1, 2) for lattices in (aligned, back)]
    assert np.allclose(*metrics, rtol=1e-6, atol=1e-6)


def test_params_without_a_cell_gives_nan() -> None:
    # 60 + 60 degrees cannot span 120.05.
    angle = torch.tensor([60.0, 60.0, 120.05], dtype=torch.float64) / 180
    vector = torch.cat([torch.zeros(3, dtype=torch.float64), angle.logit()])
    both = torch.stack([vector, torch.zeros(6, dtype=torch.float64)])
    matrix = PARAMS.to_matrix(both)
    assert matrix[0].isnan().all()
    assert torch.allclose(matrix[1], torch.eye(3, dtype=torch.float64))


def test_orientation_is_lower_triangular_and_right_handed() -> None:
    mirrored = torch.tensor(Lattice.from_parameters(3, 4, 5, 70, 80, 95).matrix)[None].clone()
    mirrored[..., 2] *= -1
    assert torch.linalg.det(mirrored) < 0
    back = LOGMETRIC.to_matrix(LOGMETRIC.to_vector(mirrored))
    assert torch.equal(back, back.tril())
    assert torch.linalg.det(back) > 0
    assert torch.allclose(metric_tensor(back), metric_tensor(mirrored))


@pytest.mark.parametrize("parameters", [(2, 2, 60, 90, 90, 120), (2, 2, 2, 60.01, 60.01, 119.9)])
@pytest.mark.parametrize("which", [LOGMETRIC, PARAMS])
def test_extreme_cells_survive_the_chart(which, parameters) -> None:
    lattice = Lattice.from_parameters(*parameters)
    back = which.to_matrix(which.to_vector(torch.tensor(lattice.matrix)[None]))[0]
    assert np.allclose(Lattice(back.numpy()).parameters, parameters, rtol=1e-6)


@pytest.mark.parametrize("which", [LOGMETRIC, PARAMS])
def test_a_cube_has_a_derivative(which) -> None:
    """Its metric has three equal eigenvalues; the likelihood needs derivatives there too."""
    vector = which.to_vector(torch.tensor(Lattice.cubic(4).matrix)[None]).requires_grad_()
    assert torch.autograd.gradcheck(which.to_metric, vector)


@pytest.mark.parametrize("which", [LOGMETRIC, PARAMS])
def test_a_bad_vector_is_bad_alone(which) -> None:
    good = which.to_vector(torch.tensor(Lattice.hexagonal(3, 5).matrix)[None])
    for value in (torch.nan, torch.inf, 1e30):
        both = torch.cat([torch.full_like(good, value), good])
        assert torch.allclose(which.to_matrix(both)[1], which.to_matrix(good)[0])
        assert not which.to_matrix(both)[0].isfinite().all()


def test_metric_from_parameters_agrees_with_pymatgen() -> None:
    lattice = Lattice.from_parameters(3, 4, 5, 70, 80, 95)
    metric = metric_from_parameters(
        torch.tensor([lattice.abc], dtype=torch.float64),
        torch.tensor([lattice.angles], dtype=torch.float64),
    )
    assert np.allclose(metric[0], lattice.metric_tensor)
    assert np.allclose(Lattice(metric_to_matrix(metric)[0].numpy()).parameters, lattice.parameters)


def test_float32_stays_float32() -> None:
    matrix = torch.tensor(Lattice.cubic(4).matrix, dtype=torch.float32)[None]
    for which in (LOGMETRIC, PARAMS):
        vector = which.to_vector(matrix)
        assert vector.dtype == which.to_matrix(vector).dtype == torch.float32
        assert torch.allclose(which.to_matrix(vector), matrix, atol=1e-5)


def test_a_chart_of_an_unknown_name_is_refused() -> None:
    with pytest.raises(RefinerError, match="unknown lattice chart 'polar'.*logmetric, params"):
        chart("polar")


def test_standard_chart_standardises() -> None:
    matrices = torch.tensor(
        np.stack([Lattice.from_parameters(3, 4, 5 + k, 90, 85 + k, 100).matrix for k in range(9)])
    )
    raw = LOGMETRIC.to_vector(matrices)
    cell = StandardChart("logmetric", raw.mean(0), raw.std(0))
    z = cell.encode(matrices)
    assert torch.allclose(z.mean(0), torch.zeros(6).double(), atol=1e-9)
    assert torch.allclose(z.std(0), torch.ones(6).double())
    assert torch.allclose(cell.metric(z), metric_tensor(matrices))
    assert torch.allclose(metric_tensor(cell.decode(z)), metric_tensor(matrices))
