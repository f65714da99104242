"""Pairs of texts of one prompt and of similar length, the first of a better class.

A `new` sample is preferred over a `known` one and over an `unstable` or `invalid` one, a `known`
sample over an `unstable` or `invalid` one: two pairs for each new sample and one for each known
one, as far as there are partners. Partners of like length keep the model from learning that short
texts are better. Partners are used about equally often, and at most twice for one class of better
samples: a few known crystals would otherwise be in most of the pairs.
"""

from __future__ import annotations

import csv
import functools
import io
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from flowllm.errors import UserError
from flowllm.system.files import publish, write_atomic
from flowllm.system.parquet import read_parquet, write_parquet
from flowllm.training.config import PreferenceConfig
from flowllm.training.preference.judgement import JudgedSample, SampleClass

PAIRS_FILE = "pairs.parquet"
COUNTS_FILE = "counts.csv"

_MOST_USES = 2  # of a rejected text beside one class of preferred ones

_WORSE = (SampleClass.UNSTABLE, SampleClass.INVALID)
# Which classes are preferred over which groups of classes.
_PREFERENCES = (
    (SampleClass.NEW, (SampleClass.KNOWN,)),
    (SampleClass.NEW, _WORSE),
    (SampleClass.KNOWN, _WORSE),
)


@dataclass(frozen=True, kw_only=True)
class TextPair:
    """A preferred and a rejected text of one prompt.

    Attributes:
        prompt: of both texts.
        chosen: preferred text.
        rejected: the other one.
        chosen_id: name of the sample, `RUN/ID`.
        rejected_id: name of the sample.
        chosen_class: its `SampleClass`.
        rejected_class: its `SampleClass`.
        held_out: the pair only measures.
    """

    prompt: str
    chosen: str
    rejected: str
    chosen_id: str
    rejected_id: str
    chosen_class: str
    rejected_class: str
    held_out: bool


def pair_samples(
    samples: Sequence[JudgedSample], config: PreferenceConfig, *, seed: int
) -> list[TextPair]:
    """Return pairs of samples, a function of the samples, the settings and the seed.

    Args:
        samples: judged samples.
        config: threshold, tolerance and share of held-out samples.
        seed: seed of the choices.

    Returns:
        The pairs; no sample is in a pair that trains and in one that is held out.

    Raises:
        UserError: if no sample is stable, all are of one class, or no two texts are of one prompt
            and of like length.
    """
    counts = count_classes(samples)
    found = ", ".join(f"{kind} {count}" for kind, count in counts.items() if count)
    if not counts[SampleClass.NEW] + counts[SampleClass.KNOWN]:
        raise UserError(
            f"no sample is below {config.stable_below:g} eV/atom ({found}): nothing can be "
            "preferred; give more samples, or raise preference.stable_below"
        )
    if not any(
        counts[better] and any(counts[kind] for kind in worse) for better, worse in _PREFERENCES
    ):
        raise UserError(
            f"the samples are all of one class ({found}): nothing can be preferred over another; "
            "give more samples, or change preference.stable_below"
        )
    rng = np.random.default_rng(seed)
    held_out = _held_out(samples, config.held_out, rng)
    parts: dict[tuple[bool, str], list[int]] = {}
    for place, sample in enumerate(samples):
        parts.setdefault((place in held_out, sample.prompt), []).append(place)
    pairs = [
        _pair(samples[better], samples[worse], held_out=kept)
        for (kept, _), places in parts.items()
        for classes in _PREFERENCES
        for better, worse in _matched(samples, places, classes, config.length_tolerance, rng)
    ]
    if all(pair.held_out for pair in pairs):
        raise UserError(
            f"no two samples of different classes ({found}) have one prompt and texts of like "
            "length; give more samples, or raise preference.length_tolerance"
        )
    return pairs


def _held_out(samples: Sequence[JudgedSample], share: float, rng: np.random.Generator) -> set[int]:
    """Return the places of the samples that are held out: the same share of every class."""
    chosen: set[int] = set()
    for kind in SampleClass:
        places = [place for place, sample in enumerate(samples) if sample.kind is kind]
        count = int(share * len(places))
        chosen |= {places[k] for k in rng.permutation(len(places))[:count]}
    return chosen


def _matched(
    samples: Sequence[JudgedSample],
    places: Sequence[int],
    classes: tuple[SampleClass, Sequence[SampleClass]],
    tolerance: float,
    rng: np.random.Generator,
) -> list[tuple[int, int]]:
    """Return for each sample of the better class a partner of like length, rarely used ones
    first."""
    better, worse = classes
    winners = [place for place in places if samples[place].kind is better]
    losers = np.array([place for place in places if samples[place].kind in worse], dtype=int)
    lengths = np.array([samples[place].num_words for place in losers], dtype=float)
    used = np.zeros(len(losers))
    found = []
    for winner in rng.permutation(np.array(winners, dtype=int)):
        length = samples[winner].num_words
        near = abs(lengths - length) <= tolerance * np.maximum(lengths, length)
        near &= used < _MOST_USES
        if not near.any():
            continue
        # The fraction breaks ties at random.
        cost = np.where(near, used + rng.random(len(losers)), np.inf)
        partner = int(cost.argmin())
        used[partner] += 1
        if samples[winner].text != samples[losers[partner]].text:
            found.append((int(winner), int(losers[partner])))
    return found


def _pair(better: JudgedSample, worse: JudgedSample, *, held_out: bool) -> TextPair:
    return TextPair(
        prompt=better.prompt,
        chosen=better.text,
        rejected=worse.text,
        chosen_id=f"{better.run}/{better.id}",
        rejected_id=f"{worse.run}/{worse.id}",
        chosen_class=better.kind.value,
        rejected_class=worse.kind.value,
        held_out=held_out,
    )


def count_classes(samples: Sequence[JudgedSample]) -> dict[SampleClass, int]:
    """Return the number of samples of every class.

    Args:
        samples: judged samples.
    """
    counted = Counter(sample.kind for sample in samples)
    return {kind: counted[kind] for kind in SampleClass}


def count_table(samples: Sequence[JudgedSample], pairs: Sequence[TextPair]) -> dict[str, int]:
    """Return the numbers of samples by class, and of pairs by their two classes.

    Args:
        samples: all samples.
        pairs: the pairs of them.

    Returns:
        Numbers by name, such as `new`, `new > known` and `held out: new > known`.
    """
    table = {kind.value: count for kind, count in count_classes(samples).items()}
    for held_out, start in ((False, ""), (True, "held out: ")):
        part = [pair for pair in pairs if pair.held_out is held_out]
        for better, worse in _PREFERENCES:
            for kind in worse:
                classes = (better.value, kind.value)
                table[f"{start}{better} > {kind}"] = sum(
                    (pair.chosen_class, pair.rejected_class) == classes for pair in part
                )
        table[f"{start}pairs"] = len(part)
    return table


def write_counts(table: Mapping[str, int], file: Path) -> None:
    """Write `count_table` as CSV.

    Args:
        table: numbers by name.
        file: an existing one is replaced.
    """
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(["what", "count"])
    rows.writerows(table.items())
    write_atomic(file, text.getvalue())


def write_pairs(pairs: Sequence[TextPair], references: Sequence[float], file: Path) -> None:
    """Write pairs with the difference of their log-likelihoods under the start.

    Args:
        pairs: P pairs.
        references: (P,), log q(chosen) - log q(rejected), nats.
        file: whole or absent, even after a kill.
    """
    columns: dict[str, list[Any]] = {
        name: [asdict(pair)[name] for pair in pairs] for name in _COLUMNS
    }
    table = pa.table({**columns, "reference": list(references)})
    publish(file, functools.partial(write_parquet, table))


def read_pairs(file: Path) -> tuple[list[TextPair], list[float]]:
    """Read what `write_pairs` has written.

    Args:
        file: in the run folder.

    Returns:
        The pairs, and their `references`.

    Raises:
        UserError: if the file is damaged.
    """
    try:
        rows = read_parquet(file).to_pylist()
        pairs = [TextPair(**{name: row[name] for name in _COLUMNS}) for row in rows]
        return pairs, [float(row["reference"]) for row in rows]
    except (pa.ArrowException, OSError, LookupError, TypeError) as error:
        raise UserError(f"{file} is damaged; tune again in another folder") from error


_COLUMNS = tuple(field.name for field in fields(TextPair))
