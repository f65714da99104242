from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rfm.errors import RefinerError
from rfm.packing import pack


@given(st.lists(st.integers(1, 300)), st.integers(1, 5000))
def test_every_crystal_once_and_no_batch_over_the_bound(sizes: list[int], bound: int) -> None:
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
