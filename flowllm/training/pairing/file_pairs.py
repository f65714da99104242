"""`flowllm pair --samples`: crystals from anywhere as the base of targets of the same atoms."""

from __future__ import annotations

import functools
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pymatgen.core import Structure

from flowllm.crystals.cells import NIGGLI_TOLERANCE
from flowllm.crystals.io import Crystal, read
from flowllm.crystals.run_folders import input_hash
from flowllm.runs.sharded import Batch, Progress, run_job
from flowllm.system.versions import versions
from flowllm.training.pairing.records import PairingOutcome, publish_pairs, record


class Candidate(NamedTuple):
    """A base crystal and its target, or why there is none; `name` is the id of either."""

    name: str
    base: Structure
    target: Structure | None
    reject: str | None = None


def pair_file(
    data: Path,
    samples: Path,
    *,
    out: str | Path,
    limit: int | None,
    skip_invalid: bool,
    batch_size: int,
    workers: int,
    progress: bool,
) -> PairingOutcome:
    """Pair crystals of `samples` with targets of `data`; see `pair` in `prior_pairs`."""
    targets = read(data, skip_invalid=skip_invalid, limit=limit)
    bases = read(samples, skip_invalid=skip_invalid)
    # By size, as the prior's are.
    candidates = sorted(_candidates(bases, targets), key=lambda candidate: len(candidate.base))
    folder = run_job(
        out,
        manifest={
            "command": "pair",
            "data": input_hash(data),
            "samples": input_hash(samples),
            "limit": limit,
            "skip_invalid": skip_invalid,
            "niggli_tolerance": NIGGLI_TOLERANCE,
        },
        total=len(candidates),
        batch_size=batch_size,
        work=functools.partial(_align_batch, candidates),
        info=versions(),
        workers=workers,
        progress=progress,
        description="pairing",
    )
    mend = "give samples of the same atoms as crystals of the data, or name the targets by id"
    return publish_pairs(folder, base="file", mend=mend)


def _candidates(bases: Iterable[Crystal], targets: Iterable[Crystal]) -> Iterator[Candidate]:
    named: dict[str, Crystal] = {}
    alike: dict[frozenset[tuple[int, int]], list[Crystal]] = defaultdict(list)
    for target in targets:
        named[target.id] = target
        alike[_atoms(target.structure)].append(target)
    for base in bases:
        atoms = _atoms(base.structure)
        asked = base.properties.get("target")
        name = base.id if asked is None else _text(asked)
        if name in named:
            target = named[name].structure
            same = _atoms(target) == atoms
            yield Candidate(name, base.structure, target, None if same else "other_composition")
        elif asked is None and (found := alike.get(atoms)):
            for target in found:
                yield Candidate(target.id, base.structure, target.structure)
        else:
            yield Candidate(base.id, base.structure, None, "no_target")


def _text(value: float | int | str) -> str:
    """A column of numbers with a gap comes back as floats: 5.0 is the id `5`."""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def _atoms(structure: Structure) -> frozenset[tuple[int, int]]:
    """How many atoms of each element."""
    return frozenset(Counter(structure.atomic_numbers).items())


def _align_batch(
    candidates: Sequence[Candidate], context: None, batch: Batch, progress: Progress
) -> list[dict[str, Any]]:
    return [
        record(name, base, None if reject else target, rejects={reject: 1} if reject else {})
        for name, base, target, reject in candidates[batch.start : batch.stop]
    ]
