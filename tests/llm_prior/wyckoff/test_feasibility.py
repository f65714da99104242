"""Compositions that a group can hold, against enumeration."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_prior.wyckoff.feasibility import (
    assignments,
    can_complete,
    can_hold,
    groups_for,
    sizes,
)
from llm_prior.wyckoff.table import space_group


def brute_force(number: int, counts: tuple[int, ...]) -> set[tuple[tuple[int, ...], ...]]:
    """Every assignment, by trying every multiset of letters for every element."""
    positions = space_group(number).positions

    def fillings(count: int, start: int = 0) -> Iterator[tuple[int, ...]]:
        if not count:
            yield ()
        for place in range(start, len(positions)):
            if positions[place].num_atoms <= count:
                for rest in fillings(count - positions[place].num_atoms, place):
                    yield (place, *rest)

    def holds(choice: tuple[tuple[int, ...], ...]) -> bool:
        every = list(itertools.chain(*choice))
        return all(positions[p].num_free or every.count(p) == 1 for p in every)

    return set(filter(holds, itertools.product(*map(list, map(fillings, counts)))))


small = st.tuples(
    st.integers(1, 230), st.lists(st.integers(1, 6), min_size=1, max_size=3).map(tuple)
)


@settings(max_examples=100, deadline=None)
@given(small)
def test_assignments_are_those_of_enumeration(case):
    number, counts = case
    if sum(counts) > 7:
        counts = counts[:1]
    expected = brute_force(number, counts)
    found = list(assignments(number, counts))
    assert len(found) == len(set(found))
    assert set(found) == expected
    assert can_hold(number, counts) == bool(expected)


@settings(max_examples=150, deadline=None)
@given(small, st.randoms(use_true_random=False))
def test_a_choice_is_legal_exactly_if_the_rest_can_be_completed(case, random):
    number, counts = case
    if sum(counts) > 7:
        counts = counts[:1]
    every = brute_force(number, counts)
    of_group = sizes(number)
    # Some orbits of the first element, in order of letters, as a text has them.
    prefix: list[int] = []
    used = 0
    for _ in range(random.randint(0, 3)):
        left = counts[0] - sum(of_group.atoms[p] for p in prefix)
        start = prefix[-1] if prefix else 0
        fitting = [
            p
            for p in range(start, len(of_group.atoms))
            if of_group.atoms[p] <= left and not (of_group.once[p] and used >> p & 1)
        ]
        if not fitting:
            break
        prefix.append(random.choice(fitting))
        used |= of_group.once[prefix[-1]] << prefix[-1]
    missing = counts[0] - sum(of_group.atoms[p] for p in prefix)
    start = prefix[-1] if prefix else 0
    expected = any(choice[0][: len(prefix)] == tuple(prefix) for choice in every)
    assert can_complete(number, missing, start, used, counts[1:]) == expected


def test_sodium_chloride_fits_these_cubic_groups_with_one_formula_unit():
    # By hand: two positions of one atom in the primitive cell, or one that is reusable.
    found = {n for n, units in groups_for({"Na": 1, "Cl": 1}, 2).items() if n >= 195 and 1 in units}
    assert found == {195, 196, 207, 209, 215, 216, 221, 225, 200, 202}


def test_common_factors_of_a_formula_are_taken_out():
    assert groups_for({"Ti": 2, "O": 4}, 6) == groups_for({"Ti": 1, "O": 2}, 6)


def test_every_formula_fits_the_groups_of_one_and_two_atoms():
    found = groups_for({"La": 3, "Fe": 5, "O": 11}, 19)
    assert found[1] == (1,)
    assert 2 in found


def test_a_special_position_is_taken_once():
    # Fm-3m has two positions of one atom; three elements of one atom each do not fit.
    assert can_hold(225, (1, 1))
    assert not can_hold(225, (1, 1, 1))


@pytest.mark.parametrize(
    "formula", [{"Li": 4, "Fe": 4, "P": 4, "O": 8}, {"Ba": 1, "Ti": 1, "O": 3}]
)
def test_all_groups_of_twenty_atoms_are_found_in_half_a_second(formula):
    start = time.process_time()
    assert groups_for(formula, 20)
    assert time.process_time() - start < 0.5
