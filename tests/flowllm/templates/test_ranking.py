"""Distances between templates and compositions, and volumes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flowllm.templates.ranking import Ranking, fitted, kinds
from llm_prior.text import SYMBOLS

Z = {symbol: number for number, symbol in enumerate(SYMBOLS, start=1)}
COUNTS = np.array([1, 1, 3])
compounds = st.lists(st.integers(1, 118), min_size=3, max_size=3, unique=True).map(np.array)


@settings(deadline=None)
@given(compounds, compounds)
def test_distances_are_symmetric_and_vanish_for_the_same_elements(
    one: np.ndarray, other: np.ndarray
) -> None:
    ranking = fitted()
    (there,) = ranking.distances(one[None], other[None], COUNTS)
    (back,) = ranking.distances(other[None], one[None], COUNTS)
    (none,) = ranking.distances(one[None], one[None], COUNTS)
    assert there == pytest.approx(back) and there >= 0
    assert none == 0


@settings(deadline=None)
@given(compounds, compounds)
def test_the_way_back_undoes_a_change_of_volume(one: np.ndarray, other: np.ndarray) -> None:
    ranking = fitted()
    there, back = ranking.growth(one, other, COUNTS), ranking.growth(other, one, COUNTS)
    assert there * back == pytest.approx(1)


def test_a_distance_by_hand() -> None:
    points = np.zeros((236, 2))
    points[Z["Na"] - 1] = [3, 4]
    points[118 + Z["Cl"] - 1] = [0, 1]  # the anion of NaCl
    ranking = Ranking(
        points=points,
        size_exponent=1.0,
        sharpness=2.0,
        hull_weight=10.0,
        polymorph_weight=50.0,
        polymorph_penalty=3.0,
        log_volumes=np.arange(118.0),
    )
    template, target = np.array([[Z["K"], Z["Br"]]]), np.array([[Z["Na"], Z["Cl"]]])
    distances = ranking.distances(template, target, np.array([1, 3]))
    assert distances == pytest.approx(np.array([[0.25 * 5 + 0.75 * 1]]))
    for same_formula, energy, penalty in (
        (False, 0.1, 10 * 0.1),
        (True, 0.1, 50 * 0.1 + 3),
        (True, 0.0005, 50 * 0.0005),  # on the hull
    ):
        logs = ranking.log_weights(distances, np.array([energy]), np.array([same_formula]))
        assert logs == pytest.approx(np.array([[-2 * 2.0 - penalty]]))
    growth = ranking.growth(template[0], target[0], np.array([1, 3]))
    assert growth == pytest.approx(np.exp(0.25 * (11 - 19) + 0.75 * (17 - 35)))


def test_the_most_electronegative_element_has_a_kind_of_its_own() -> None:
    compounds = np.array([[Z["P"], Z["O"]], [Z["P"], Z["Ga"]]])
    assert kinds(compounds).tolist() == [
        [Z["P"] - 1, 118 + Z["O"] - 1],
        [118 + Z["P"] - 1, Z["Ga"] - 1],
    ]


def test_json_keeps_the_numbers() -> None:
    ranking = fitted()
    again = Ranking.from_json(ranking.to_json())
    assert np.array_equal(again.points, ranking.points) and again.points.shape[0] == 236
    assert np.array_equal(again.log_volumes, ranking.log_volumes)
    assert again.to_json() == ranking.to_json()


def test_fitted_similarities_are_those_of_chemistry() -> None:
    ranking = fitted()

    def distance(one: str, other: str, partner: str = "O") -> float:
        template, target = ([[Z[s], Z[partner]]] for s in (one, other))
        return float(
            ranking.distances(np.array(template), np.array(target), np.array([1, 1])).item()
        )

    for one, near, far in [("Na", "K", "Al"), ("La", "Pr", "Lu"), ("Ni", "Co", "Ba")]:
        assert distance(one, near) < distance(one, far)
    potassium = ranking.growth(
        np.array([Z["Na"], Z["Cl"]]), np.array([Z["K"], Z["Cl"]]), np.array([1, 1])
    )
    # Rock salt: 5.64 and 6.29 Angstrom (Wyckoff, Crystal Structures).
    assert potassium == pytest.approx((6.29 / 5.64) ** 3, rel=0.05)
