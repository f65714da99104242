"""Prototypes: what they have in common with genes, and what they do not depend on."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flowllm.crystals.io import read
from flowllm.crystals.symmetry import Symmetry
from flowllm.templates.prototypes import place
from llm_prior.wyckoff.analysis import describe
from llm_prior.wyckoff.crystal import WyckoffCrystal
from llm_prior.wyckoff.normal_form import augment, canonical
from support import MP20_SAMPLE, SALT

BINS = 100
CRYSTALS = [canonical(describe(c.structure), BINS) for c in read(MP20_SAMPLE, limit=40)]


def gene(crystal: WyckoffCrystal) -> str:
    return Symmetry(crystal=crystal, misfit=0.0).gene


def test_rock_salt_has_two_slots_that_may_be_swapped() -> None:
    placement = place(canonical(describe(SALT), BINS))
    assert placement.prototype.spacegroup == 225
    assert placement.prototype.slots == ((1, (0,)), (1, (1,)))
    assert sorted(placement.elements) == ["Cl", "Na"]
    assert placement.swaps == ((0, 1), (1, 0))  # the origin may be at either ion


@settings(deadline=None)
@given(st.sampled_from(CRYSTALS), st.integers(0, 2**32 - 1))
def test_origin_and_axes_do_not_matter(crystal: WyckoffCrystal, seed: int) -> None:
    other = augment(crystal, BINS, np.random.default_rng(seed))
    one, two = place(crystal), place(other)
    assert one.prototype == two.prototype and one.swaps == two.swaps
    places = tuple(one.elements.index(element) for element in two.elements)
    assert places in one.swaps


@pytest.mark.parametrize("crystal", CRYSTALS, ids=lambda c: gene(c))
def test_swaps_are_the_permutations_of_elements_that_keep_the_gene(crystal: WyckoffCrystal) -> None:
    placement = place(crystal)
    elements, slots = placement.elements, placement.prototype.slots
    for swap in itertools.permutations(range(len(elements))):
        if any(slots[i].num_atoms != slots[swap[i]].num_atoms for i in range(len(slots))):
            continue
        new = {old: elements[place] for old, place in zip(elements, swap, strict=True)}
        orbits = tuple(replace(o, element=new[o.element]) for o in crystal.orbits)
        swapped = replace(crystal, orbits=orbits)
        assert (gene(swapped) == gene(crystal)) == (swap in placement.swaps), swap
