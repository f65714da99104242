"""The mean of templates of one gene."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowllm.crystals.symmetry import symmetry_of
from flowllm.templates.averaging import CLOSE_COORDINATE, average
from flowllm.templates.proposals import propose_templates
from llm_prior.wyckoff.crystal import Orbit, WyckoffCrystal


def rutile(x: float, a: float = 4.6, c: float = 3.0, letter: str = "f") -> WyckoffCrystal:
    orbits = (Orbit(element="Ti", letter="a"), Orbit(element="O", letter=letter, coords=(x,)))
    return WyckoffCrystal(spacegroup=136, orbits=orbits, cell=(a, c))


@given(
    x=st.floats(0.28, 0.33),
    step=st.floats(-0.039, 0.039),
    grow=st.floats(-0.1, 0.1),
    weight=st.floats(0.01, 1),
)
def test_the_mean_lies_between_by_the_weights(
    x: float, step: float, grow: float, weight: float
) -> None:
    other = rutile(x + step, a=4.6 * np.exp(grow))
    found = average([rutile(x), other], [1.0, weight])
    share = weight / (1 + weight)
    assert found.orbits[1].coords[0] == pytest.approx(x + share * step)
    assert found.cell == pytest.approx((4.6 * np.exp(share * grow), 3.0))
    assert average([rutile(x)], [1.0]).cell == pytest.approx(rutile(x).cell)


def test_other_structures_count_as_nothing() -> None:
    first = rutile(0.30)
    others = [
        rutile(0.30 + CLOSE_COORDINATE + 0.01),
        rutile(0.30, a=5.6),
        rutile(0.31, letter="g"),
        replace(rutile(0.31), spacegroup=135),
    ]
    found = average([first, *others], [1.0] * 5)
    assert found.orbits == first.orbits and found.cell == pytest.approx(first.cell)


def test_orbits_of_one_kind_are_matched_by_their_coordinates_across_the_cell() -> None:
    def fluorine(*xs: float) -> WyckoffCrystal:
        orbits = (
            Orbit(element="Ca", letter="a"),
            *(Orbit(element="F", letter="f", coords=(x,)) for x in xs),
        )
        return WyckoffCrystal(spacegroup=136, orbits=orbits, cell=(7.0, 4.0))

    found = average([fluorine(0.01, 0.30), fluorine(0.32, 0.99)], [1.0, 1.0])
    coords = np.array([orbit.coords[0] for orbit in found.orbits[1:]])
    assert coords == pytest.approx([0.0, 0.31])


def test_proposals_are_means_and_keep_their_group() -> None:
    (mean,) = propose_templates("TiO2", n=1, formula_units=[2], exclude_formula=True)
    (one,) = propose_templates("TiO2", n=1, formula_units=[2], exclude_formula=True, scale=False)
    assert mean.gene == one.gene and mean.template == one.template
    assert mean.crystal.cell[0] / mean.crystal.cell[1] != pytest.approx(
        one.crystal.cell[0] / one.crystal.cell[1], rel=1e-4
    )
    found = symmetry_of(mean.structure, symprec=1e-3)
    assert found is not None and found.gene == mean.gene
