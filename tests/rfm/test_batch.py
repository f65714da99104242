from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pymatgen.core import Lattice, Species, Structure

from rfm.batch import CrystalBatch, atom_pairs, pack
from rfm.config import Statistics
from rfm.errors import RefinerError
from rfm.lattice import StandardChart


@pytest.fixture
def cell(statistics: Statistics) -> StandardChart:
    return StandardChart.from_statistics("logmetric", statistics)


@given(st.lists(st.integers(1, 7), min_size=1, max_size=6))
def test_pairs_are_all_of_each_crystal_sorted(sizes: list[int]) -> None:
    pairs = atom_pairs(torch.tensor(sizes))
    expected, start = [], 0
    for crystal, n in enumerate(sizes):
        expected += [(i, j, crystal) for i, j in combinations(range(start, start + n), 2)]
        start += n
    assert list(zip(*(column.tolist() for column in pairs), strict=True)) == expected


def test_structures_become_tensors(structures: list[Structure], cell: StandardChart) -> None:
    batch = CrystalBatch.from_structures(structures, cell)
    assert batch.num_crystals == 4
    assert batch.num_atoms.tolist() == [2, 1, 5, 3]
    assert batch.batch.tolist() == [0, 0, 1, 2, 2, 2, 2, 2, 3, 3, 3]
    assert batch.frac_coords.dtype == batch.lattice.dtype == torch.float32
    assert batch.atomic_numbers.tolist() == [z for s in structures for z in s.atomic_numbers]
    for before, matrix in zip(structures, cell.decode(batch.lattice.double()).numpy(), strict=True):
        assert np.allclose(Lattice(matrix).parameters, before.lattice.parameters, rtol=1e-5)
    coords = np.concatenate([structure.frac_coords for structure in structures])
    assert np.allclose(batch.frac_coords, coords, atol=1e-6)


def test_coordinates_are_wrapped(cell: StandardChart) -> None:
    far = Structure(Lattice.cubic(3), ["H", "H"], [[-1e-12, 1.25, -7.75], [1000.1, 0, 0.999999999]])
    batch = CrystalBatch.from_structures([far], cell)
    expected = [[0, 0.25, 0.25], [0.1, 0, 0]]
    assert np.allclose(batch.frac_coords, expected, atol=1e-6)
    assert (batch.frac_coords < 1).all()


def test_oxidation_states_and_isotopes_keep_their_element(cell: StandardChart) -> None:
    salt = Structure(
        Lattice.cubic(5.6), [Species("Na", 1), Species("Cl", -1)], [[0, 0, 0], [0.5, 0.5, 0.5]]
    )
    batch = CrystalBatch.from_structures([salt], cell)
    assert batch.atomic_numbers.tolist() == [11, 17]


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (Structure(Lattice.cubic(3), [{"Fe": 0.5, "Ni": 0.5}], [[0, 0, 0]]), "disordered"),
        (Structure(Lattice.cubic(3), ["X"], [[0, 0, 0]]), "not an element"),
        (Structure(Lattice.cubic(3), [], []), "no sites"),
        (Structure(Lattice([[1, 0, 0], [2, 0, 0], [0, 0, 1]]), ["H"], [[0, 0, 0]]), "volume"),
    ],
)
def test_structures_that_are_no_crystals_are_refused(
    bad: Structure, message: str, cell: StandardChart
) -> None:
    good = Structure(Lattice.cubic(3), ["Po"], [[0, 0, 0]])
    with pytest.raises(RefinerError, match=f"structure 1 .*{message}"):
        CrystalBatch.from_structures([good, bad], cell)


def test_a_batch_of_no_structures_is_refused(cell: StandardChart) -> None:
    with pytest.raises(RefinerError, match="at least one"):
        CrystalBatch.from_structures([], cell)


@given(st.lists(st.integers(1, 300)), st.integers(1, 5000))
def test_packing_takes_every_crystal_once_and_no_batch_over_the_bound(
    sizes: list[int], bound: int
) -> None:
    batches = pack(sizes, bound)
    assert sorted(place for batch in batches for place in batch) == list(range(len(sizes)))
    for batch in batches:
        assert len(batch) == 1 or sum(sizes[place] ** 2 for place in batch) <= bound
    order = [sizes[place] for batch in batches for place in batch]
    assert order == sorted(order, reverse=True)
    # No batch ends before it is full.
    for batch, following in zip(batches, batches[1:], strict=False):
        assert sum(sizes[place] ** 2 for place in [*batch, following[0]]) > bound


def test_a_bound_below_one_is_refused() -> None:
    with pytest.raises(RefinerError, match="max_edges is 0"):
        pack([1], 0)
