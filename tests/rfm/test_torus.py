from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rfm.torus import exponential, logarithm, wrap, wrap_difference


@given(st.lists(st.floats(-1e3, 1e3, width=32), min_size=1, max_size=8))
def test_wrap_stays_in_the_half_open_interval_in_float32(values: list[float]) -> None:
    x = wrap(torch.tensor(values, dtype=torch.float32))
    assert ((x >= 0) & (x < 1)).all()
    d = wrap_difference(torch.tensor(values, dtype=torch.float32))
    assert ((d >= -0.5) & (d < 0.5)).all()


@pytest.mark.parametrize("value", [-1e-9, -1e-30, 1.0, 2.0, 0.0])
def test_wrap_names_whole_numbers_zero(value: float) -> None:
    assert wrap(torch.tensor(value)).item() == 0.0


def test_difference_at_the_edge_of_half_a_period() -> None:
    below = np.nextafter(np.float32(0.5), np.float32(0))
    d = wrap_difference(torch.tensor([0.5, -0.5, below, 1.5]))
    assert d[0] == d[1] == d[3] == -0.5
    assert -0.5 <= d[2] < 0.5


def test_a_geodesic_agrees_with_a_hand_calculation() -> None:
    # From 0.9 to 0.1 the short way leads through 1: half way is 0.0.
    x, y = torch.tensor([0.9, 0.2, 0.5]), torch.tensor([0.1, 0.4, 0.5])
    v = logarithm(x, y)
    assert torch.allclose(v, torch.tensor([0.2, 0.2, 0.0]))
    assert torch.allclose(exponential(x, 0.75 * v), torch.tensor([0.05, 0.35, 0.5]))
