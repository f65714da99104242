from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from flowllm.draws import VirtualEpochs

ENTRIES = Path(__file__).parents[2].parent / "shared" / "data" / "mp20" / "hull_entries.parquet"


class Sizes:
    """Draws show which crystal was drawn and what its generator gave."""

    def __init__(self, sizes: list[int]) -> None:
        self.sizes = sizes

    def __len__(self) -> int:
        return len(self.sizes)

    def size(self, index: int) -> int:
        return self.sizes[index]

    def draw(self, index: int, rng: np.random.Generator) -> dict[str, Any]:
        return {"index": index, "noise": rng.random()}


def made_up(count: int, *, seed: int = 0) -> Sizes:
    return Sizes(np.random.default_rng(seed).integers(1, 21, count).tolist())


data_sets = st.lists(st.integers(1, 20), min_size=1, max_size=60).map(Sizes)


@given(data_sets, st.integers(1, 9), st.integers(0, 2**32 - 1), st.data())
def test_an_item_does_not_depend_on_what_was_drawn_before(data, batch_size, seed, more) -> None:
    epochs = 3
    used = VirtualEpochs(data, epochs=epochs, batch_size=batch_size, seed=seed)
    for position in more.draw(st.lists(st.integers(0, len(used) - 1), min_size=1, max_size=8)):
        fresh = VirtualEpochs(data, epochs=epochs, batch_size=batch_size, seed=seed)
        assert used[position] == fresh[position]


@given(data_sets, st.integers(1, 9), st.integers(0, 99))
def test_no_crystal_comes_twice_in_an_epoch(data, batch_size, seed) -> None:
    draws = VirtualEpochs(data, epochs=4, batch_size=batch_size, seed=seed)
    left_out = len(data) % batch_size if len(data) >= batch_size else 0
    for epoch in range(4):
        start = epoch * draws.epoch_length
        drawn = [draws[p]["index"] for p in range(start, start + draws.epoch_length)]
        assert len(set(drawn)) == len(drawn) == len(data) - left_out
        assert set(drawn) <= set(range(len(data)))


def test_the_remainder_that_fills_no_batch_is_another_one_each_time() -> None:
    draws = VirtualEpochs(made_up(11), epochs=40, batch_size=4, seed=0)  # 8 of 11 an epoch
    counts = Counter(draws[position]["index"] for position in range(len(draws)))
    # Binomial: 40 draws of probability 8 / 11 have mean 29.1 and standard deviation 2.8.
    assert len(counts) == 11
    assert all(29.1 - 5 * 2.8 < count < 29.1 + 5 * 2.8 for count in counts.values())


def test_epochs_and_seeds_differ_in_order_and_in_noise() -> None:
    data = made_up(40)
    draws = VirtualEpochs(data, epochs=2, batch_size=4, seed=0)
    other = VirtualEpochs(data, epochs=2, batch_size=4, seed=1)
    first, second = [[draws[p] for p in range(start, start + 40)] for start in (0, 40)]
    elsewhere = [other[p] for p in range(40)]
    for one, two in ((first, second), (first, elsewhere)):
        assert [item["index"] for item in one] != [item["index"] for item in two]
        assert not {item["noise"] for item in one} & {item["noise"] for item in two}


@pytest.mark.parametrize(
    ("epochs", "limit", "length"), [(3, None, 24), (0.5, None, 4), (3, 10, 10), (3, 99, 24)]
)
def test_length(epochs: float, limit: int | None, length: int) -> None:
    draws = VirtualEpochs(made_up(11), epochs=epochs, batch_size=4, seed=0, limit=limit)
    assert len(draws) == length


def test_a_limit_changes_nothing_before_it() -> None:
    whole = VirtualEpochs(made_up(11), epochs=3, batch_size=4, seed=0)
    cut = VirtualEpochs(made_up(11), epochs=3, batch_size=4, seed=0, limit=10)
    assert [cut[p] for p in range(10)] == [whole[p] for p in range(10)]


@pytest.mark.filterwarnings(  # two loader workers, forked, even on a machine of one core
    "ignore:This DataLoader will create 2 worker processes:UserWarning",
    "ignore:This process .* is multi-threaded:DeprecationWarning",
)
def test_any_number_of_workers_draws_the_same() -> None:
    draws = VirtualEpochs(made_up(30), epochs=2, batch_size=4, seed=3)
    alone, shared = (
        list(torch.utils.data.DataLoader(draws, 4, num_workers=workers, collate_fn=list))
        for workers in (0, 2)
    )
    assert alone == shared
    assert len(alone) == 14


def padding(draws: VirtualEpochs, batch_size: int) -> float:
    """Share of a batch that is padding, when its crystals are padded to the largest."""
    sizes = np.array([draws.data.size(draws.index(p)) for p in range(draws.epoch_length)])
    batches = sizes.reshape(-1, batch_size)
    return 1 - sizes.sum() / (batches.max(axis=1).sum() * batch_size)


def test_crystals_of_like_size_share_a_batch() -> None:
    # Uniform sizes from 1 to 20 in random batches of 64: mean 10.5 of about 20, padding 0.47.
    draws = VirtualEpochs(made_up(64 * 50), epochs=1, batch_size=64, seed=0)
    assert padding(draws, 64) < 0.05


@pytest.mark.skipif(not ENTRIES.exists(), reason="MP-20 is not at ../shared/data/mp20")
def test_little_of_a_batch_of_mp20_is_padding() -> None:
    compositions = pq.read_table(ENTRIES, columns=["composition"])["composition"].to_pylist()
    data = Sizes([sum(map(int, re.findall(r"\d+", line))) for line in compositions[:26_000]])
    assert min(data.sizes) >= 1 and max(data.sizes) == 20

    draws = VirtualEpochs(data, epochs=1, batch_size=64, seed=0)
    shuffled = (
        np.random.default_rng(0).permutation(data.sizes)[: draws.epoch_length].reshape(-1, 64)
    )
    in_random_order = 1 - shuffled.sum() / (shuffled.max(axis=1).sum() * 64)
    assert padding(draws, 64) < 0.03 < 0.4 < in_random_order

    # Batches come in random order: the first hundred are no smaller than the rest.
    means = np.array([data.size(draws.index(p)) for p in range(100 * 64)]).mean()
    assert means == pytest.approx(np.mean(data.sizes), rel=0.15)
