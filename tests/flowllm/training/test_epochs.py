"""Draws of a training: functions of the seed and the position, in batches of similar size."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from flowllm.crystals.io import read
from flowllm.training.epochs import VirtualEpochs
from flowllm.training.recipes import PriorRecipe, load_recipe
from llm_prior import Collator, CrystalTextDataset
from llm_prior.tokenizer import compact_tokenizer
from support import MP20_SAMPLE


class Sizes:
    """Draws show which crystal was drawn, what its generator gave, and how large that is: a part of
    a size is of the crystal and a part of the draw."""

    def __init__(self, sizes: list[int]) -> None:
        self.sizes = sizes

    def __len__(self) -> int:
        return len(self.sizes)

    def size(self, index: int, rng: np.random.Generator) -> int:
        return self.sizes[index] + int(rng.integers(10))

    def draw(self, index: int, rng: np.random.Generator) -> dict[str, Any]:
        return {
            "index": index,
            "size": self.sizes[index] + int(rng.integers(10)),
            "noise": rng.random(),
        }


def made_up(count: int, *, seed: int = 0) -> Sizes:
    return Sizes(np.random.default_rng(seed).integers(1, 21, count).tolist())


data_sets = st.lists(st.integers(1, 20), min_size=1, max_size=60).map(Sizes)


@given(data_sets, st.integers(1, 9), st.integers(0, 2**64), st.data())
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


def test_large_seeds_are_seeds_of_their_own() -> None:
    """A seed of several 32-bit words must not run into the words of the position."""
    seeds = [0, 1, 2**32, 2**32 + 1, 2**64, 2**64 + 1, 1 + 2**32 * 7]
    noise = {VirtualEpochs(made_up(8), epochs=1, batch_size=4, seed=s)[0]["noise"] for s in seeds}
    assert len(noise) == len(seeds)


def padding(draws: VirtualEpochs, batch_size: int) -> float:
    """Share of a batch that is padding, when its crystals are padded to the largest."""
    sizes = np.array([draws[p]["size"] for p in range(draws.epoch_length)])
    batches = sizes.reshape(-1, batch_size)
    return 1 - sizes.sum() / (batches.max(axis=1).sum() * batch_size)


def test_crystals_of_like_size_share_a_batch() -> None:
    # Sums of 1 to 20 and 0 to 9 in random batches of 64: mean 15 of about 28, padding 0.46.
    draws = VirtualEpochs(made_up(64 * 50), epochs=1, batch_size=64, seed=0)
    assert padding(draws, 64) < 0.05


def test_batches_come_in_random_order() -> None:
    draws = VirtualEpochs(made_up(64 * 50), epochs=1, batch_size=64, seed=0)
    means = [np.mean([draws[64 * b + k]["size"] for k in range(64)]) for b in range(50)]
    assert abs(np.corrcoef(means, range(50))[0, 1]) < 0.5  # sorted batches have 1; 0.14 is 1 sigma


def test_less_than_a_tenth_of_the_tokens_of_a_batch_of_mp20_is_padding() -> None:
    recipe = load_recipe(PriorRecipe, "llm/small")
    crystals = [(c.id, c.structure, c.properties) for c in read(MP20_SAMPLE)] * 45  # 3,240
    tokenizer = compact_tokenizer(recipe.text)
    data = CrystalTextDataset(crystals, tokenizer, recipe.text, recipe.tasks)
    draws = VirtualEpochs(data, epochs=1, batch_size=64, seed=0)
    real = total = 0
    for start in range(0, 20 * 64, 64):
        mask = Collator(0)([draws[start + k] for k in range(64)])["attention_mask"]
        real, total = real + int(mask.sum()), total + mask.numel()
    assert 1 - real / total < 0.1
