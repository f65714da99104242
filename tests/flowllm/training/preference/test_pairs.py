"""Pairs of samples: their properties for any samples, and what cannot be paired."""

from __future__ import annotations

import csv
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowllm.errors import UserError
from flowllm.training.config import PreferenceConfig
from flowllm.training.preference.judgement import JudgedSample, SampleClass
from flowllm.training.preference.pairs import (
    count_table,
    pair_samples,
    read_pairs,
    write_counts,
    write_pairs,
)

RANK = {"new": 2, "known": 1, "unstable": 0, "invalid": 0}


def sample(number: int, kind: str, words: int = 10, prompt: str = "write\n") -> JudgedSample:
    return JudgedSample(
        run="run",
        id=f"s{number}",
        prompt=prompt,
        text=" ".join([str(number)] * words),
        kind=SampleClass(kind),
        e_above_hull=None,
        gene=None,
        equal_to=f"s{number}",
    )


def several(**counts: int) -> list[JudgedSample]:
    kinds = [kind for kind, count in counts.items() for _ in range(count)]
    return [sample(number, kind) for number, kind in enumerate(kinds)]


@given(
    st.lists(
        st.tuples(
            st.sampled_from([kind.value for kind in SampleClass]),
            st.integers(5, 30),
            st.sampled_from(["write\n", "write NaCl\n"]),
        ),
        max_size=40,
    ),
    st.floats(0, 0.5),
    st.sampled_from([0.0, 0.3]),
    st.integers(0, 5),
)
def test_a_pair_is_of_one_prompt_of_like_length_and_rightly_ordered(
    described: list[tuple[str, int, str]], tolerance: float, held_out: float, seed: int
) -> None:
    samples = [sample(number, *values) for number, values in enumerate(described)]
    named = {f"run/{one.id}": one for one in samples}
    config = PreferenceConfig(length_tolerance=tolerance, held_out=held_out)
    try:
        pairs = pair_samples(samples, config, seed=seed)
    except UserError:
        return
    assert pairs == pair_samples(samples, config, seed=seed)
    ends: dict[bool, set[str]] = {False: set(), True: set()}
    for pair in pairs:
        chosen, rejected = named[pair.chosen_id], named[pair.rejected_id]
        assert (pair.chosen, pair.rejected) == (chosen.text, rejected.text)
        assert pair.prompt == chosen.prompt == rejected.prompt
        assert RANK[pair.chosen_class] > RANK[pair.rejected_class]
        assert (pair.chosen_class, pair.rejected_class) == (chosen.kind, rejected.kind)
        lengths = sorted((chosen.num_words, rejected.num_words))
        assert lengths[1] - lengths[0] <= tolerance * lengths[1]
        ends[pair.held_out] |= {pair.chosen_id, pair.rejected_id}
    assert ends[False] and not ends[False] & ends[True]
    assert max(Counter(pair.chosen_id for pair in pairs).values()) <= 2
    uses = Counter((pair.rejected_id, pair.chosen_class) for pair in pairs)
    assert max(uses.values()) <= 2


def test_each_new_sample_has_two_pairs_each_known_one_and_partners_are_shared_out() -> None:
    samples = several(new=6, known=3, unstable=2, invalid=2, repeated=5, unjudged=5)
    pairs = pair_samples(samples, PreferenceConfig(held_out=0), seed=0)
    table = count_table(samples, pairs)
    assert (table["new"], table["repeated"], table["unjudged"]) == (6, 5, 5)
    assert table["new > known"] == 6
    assert table["new > unstable"] + table["new > invalid"] == 6
    assert table["known > unstable"] + table["known > invalid"] == 3
    assert table["pairs"] == len(pairs) == 15 and table["held out: pairs"] == 0
    rejected = Counter(p.rejected_id for p in pairs if p.chosen_class == "new")
    assert max(rejected.values()) - min(rejected.values()) <= 1


def test_a_share_of_every_class_is_held_out() -> None:
    samples = several(new=20, known=20, unstable=20)
    pairs = pair_samples(samples, PreferenceConfig(held_out=0.25), seed=0)
    held_out = {p.chosen_id for p in pairs if p.held_out}
    assert len(held_out) == 10  # five new, five known
    assert count_table(samples, pairs)["held out: new > known"] == 5


def test_the_seed_decides_the_partners() -> None:
    samples = several(new=9, known=9, unstable=9)
    config = PreferenceConfig()
    assert pair_samples(samples, config, seed=0) != pair_samples(samples, config, seed=1)


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ({"unstable": 3, "invalid": 1}, r"no sample is below 0.1 eV/atom \(unstable 3, invalid 1"),
        ({"repeated": 3}, "no sample is below"),
        ({}, "no sample is below"),
        ({"new": 3, "unjudged": 2}, r"are all of one class \(new 3, unjudged 2\)"),
        ({"known": 4}, "are all of one class"),
    ],
)
def test_samples_that_show_no_preference_are_refused(counts: dict[str, int], message: str) -> None:
    with pytest.raises(UserError, match=message):
        pair_samples(several(**counts), PreferenceConfig(), seed=0)


def test_samples_that_have_no_partner_are_refused() -> None:
    for other in (sample(1, "known", words=20), sample(1, "known", prompt="write KCl\n")):
        with pytest.raises(UserError, match="no two samples .* one prompt and texts of like len"):
            pair_samples([sample(0, "new"), other], PreferenceConfig(held_out=0), seed=0)


def test_pairs_and_counts_survive_their_files(tmp_path: Path) -> None:
    samples = several(new=3, known=3)
    pairs = pair_samples(samples, PreferenceConfig(held_out=0.4), seed=0)
    references = [1 / 3 + k for k in range(len(pairs))]
    write_pairs(pairs, references, tmp_path / "pairs.parquet")
    assert read_pairs(tmp_path / "pairs.parquet") == (pairs, references)
    table = count_table(samples, pairs)
    write_counts(table, tmp_path / "counts.csv")
    with (tmp_path / "counts.csv").open(newline="") as file:
        assert {row["what"]: int(row["count"]) for row in csv.DictReader(file)} == table
    (tmp_path / "pairs.parquet").write_bytes(b"no table")
    with pytest.raises(UserError, match="pairs.parquet is damaged"):
        read_pairs(tmp_path / "pairs.parquet")
