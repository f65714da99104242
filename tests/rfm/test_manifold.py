from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from rfm.manifold import FlatTorus

torus = FlatTorus()
points = st.lists(st.floats(0, 1, exclude_max=True), min_size=3, max_size=3).map(
    lambda values: torch.tensor(values, dtype=torch.float64)
)
vectors = st.lists(st.floats(-5, 5), min_size=3, max_size=3).map(
    lambda values: torch.tensor(values, dtype=torch.float64)
)


@given(points, points)
def test_exp_after_log_arrives(x: torch.Tensor, y: torch.Tensor) -> None:
    assert torus.dist(torus.expmap(x, torus.logmap(x, y)), y) < 1e-12


@given(points, vectors)
def test_log_after_exp_is_the_vector_taken_into_the_half_period(
    x: torch.Tensor, v: torch.Tensor
) -> None:
    back = torus.logmap(x, torus.expmap(x, v))
    assert ((back >= -0.5) & (back < 0.5)).all()
    turns = v - back
    assert torch.allclose(turns, turns.round(), atol=1e-12)


@given(points, points, vectors)
def test_distance_is_symmetric_short_and_invariant(
    x: torch.Tensor, y: torch.Tensor, v: torch.Tensor
) -> None:
    assert torus.dist(x, y) <= 0.75**0.5 + 1e-12
    assert torch.isclose(torus.dist(x, y), torus.dist(y, x), atol=1e-12)
    moved = torus.dist(torus.expmap(x, v), torus.expmap(y, v))
    assert torch.isclose(torus.dist(x, y), moved, atol=1e-12)


@given(points, points, st.floats(0, 1))
def test_geodesic_has_its_ends_and_constant_speed(
    x: torch.Tensor, y: torch.Tensor, t: float
) -> None:
    v = torus.logmap(x, y)
    assert torus.dist(torus.expmap(x, 0 * v), x) < 1e-12
    assert torus.dist(torus.expmap(x, 1 * v), y) < 1e-12
    middle = torus.expmap(x, t * v)
    assert ((middle >= 0) & (middle < 1)).all()
    assert torch.isclose(torus.dist(x, middle), t * torus.dist(x, y), atol=1e-12)
    assert torch.isclose(torus.dist(middle, y), (1 - t) * torus.dist(x, y), atol=1e-12)


def test_a_geodesic_agrees_with_a_hand_calculation() -> None:
    # From 0.9 to 0.1 the short way leads through 1: half way is 0.0.
    x, y = torch.tensor([0.9, 0.2, 0.5]), torch.tensor([0.1, 0.4, 0.5])
    v = torus.logmap(x, y)
    assert torch.allclose(v, torch.tensor([0.2, 0.2, 0.0]))
    middle = torus.expmap(x, 0.5 * v)
    assert torus.dist(middle, torch.tensor([0.0, 0.3, 0.5])) < 1e-6
    assert torch.isclose(torus.dist(x, y), torch.tensor(0.08).sqrt())


def test_the_metric_is_flat() -> None:
    x, y = torch.rand(4, 3), torch.rand(4, 3)
    u, v = torch.rand(4, 3), torch.rand(4, 3)
    assert torch.equal(torus.proju(x, u), u)
    assert torch.equal(torus.transp(x, y, u), u)
    assert torch.equal(torus.egrad2rgrad(x, u), u)
    assert torch.allclose(torus.inner(x, u, v), (u * v).sum(-1))
    assert torus.inner(x, u, keepdim=True).shape == (4, 1)


def test_points_off_the_torus_are_recognised() -> None:
    assert torus.check_point_on_manifold(torch.rand(5, 3))
    assert not torus.check_point_on_manifold(torch.tensor([1.5, 0.0, 0.0]))
    assert not torus.check_point_on_manifold(torch.tensor([float("nan"), 0.0, 0.0]))


def test_random_uniform_follows_its_generator() -> None:
    a = torus.random_uniform(500, 3, generator=torch.Generator().manual_seed(1))
    b = torus.random_uniform(500, 3, generator=torch.Generator().manual_seed(1))
    assert torch.equal(a, b)
    assert torus.check_point_on_manifold(a)
    # Four standard errors of the mean of 1500 uniform numbers.
    assert abs(a.mean().item() - 0.5) < 4 * (1 / 12 / 1500) ** 0.5
