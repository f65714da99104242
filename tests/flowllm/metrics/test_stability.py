"""Stability and S.U.N. rates, by hand."""

from __future__ import annotations

import pytest

from flowllm.errors import UserError
from flowllm.metrics.stability import is_stable, stability_rates

ABOVE = [-0.01, 0.0, 0.02, 0.05, 0.2, None, -0.3]
ELEMENTS = [2, 2, 2, 3, 2, 0, 1]


def test_stable_means_below_the_threshold() -> None:
    assert is_stable(ABOVE).tolist() == [True, False, False, False, False, False, True]
    below = is_stable(ABOVE, threshold=0.1, num_elements=ELEMENTS, min_elements=2)
    assert below.tolist() == [True, True, True, True, False, False, False]
    with pytest.raises(UserError, match="min_elements needs"):
        is_stable(ABOVE, min_elements=2)


def test_rates_count_crystals_without_an_energy() -> None:
    unique = [True, True, True, False, True, True, True]
    novel = [True, True, False, True, True, True, False]
    rates = stability_rates(ABOVE, unique=unique, novel=novel)
    assert {name: r.successes for name, r in rates.items()} == {
        **{"stable_0": 2, "stable_0.03": 4, "stable_0.1": 5},
        **{"sun": 1, "metastable_sun": 2},
    }
    assert {r.count for r in rates.values()} == {7}
    compounds = stability_rates(ABOVE, num_elements=ELEMENTS, min_elements=2)
    assert compounds["stable_0"].successes == 1
    assert "sun" not in compounds
    assert stability_rates([])["stable_0"].value is None
