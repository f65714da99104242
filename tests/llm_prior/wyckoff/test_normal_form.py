"""Reduced cells of monoclinic crystals."""

from __future__ import annotations

import numpy as np
import pytest

from llm_prior.wyckoff import normal_form
from llm_prior.wyckoff.crystal import Orbit, WyckoffCrystal
from llm_prior.wyckoff.table import space_group


@pytest.mark.parametrize("number", [3, 5, 9, 12, 14, 15])
def test_the_reduced_cell_does_not_depend_on_the_choice_of_axes(number: int) -> None:
    rng = np.random.default_rng(number)
    letter = space_group(number).positions[-1].letter
    for _ in range(20):
        lengths = rng.uniform(3, 12, 3).round(3).tolist()
        crystal = WyckoffCrystal(
            spacegroup=number,
            orbits=(Orbit(element="Na", letter=letter, coords=tuple(rng.random(3).tolist())),),
            cell=(*lengths, float(np.round(rng.uniform(60, 120), 2))),
        )
        reduced = normal_form.reduce_cell(crystal)
        *_, beta = reduced.cell
        scores = [normal_form._score(cell) for cell in every_cell(reduced)]
        assert normal_form._score(reduced.cell) <= min(scores)
        assert beta >= 89.99
        for place in range(len(crystal.group.cells)):
            other = normal_form.reduce_cell(normal_form._apply_cell(crystal, place))
            assert other.cell == pytest.approx(reduced.cell, abs=2e-2)
        assert normal_form._changed_scores(crystal) == [
            normal_form._score(cell) for cell in every_cell(crystal)
        ]


def every_cell(crystal: WyckoffCrystal) -> list[tuple[float, ...]]:
    """The cells after each change of axes, computed one by one."""
    return [normal_form._mapped_cell(crystal, change) for change in crystal.group.cells]
