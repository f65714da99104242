"""Pairs of a target and crystals from elsewhere with the same atoms (`flowllm pair --samples`)."""

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
from flowllm.runs.sharded import Batch, Progress, default_batch_size, run_job
from flowllm.system.versions import versions
from flowllm.training.pairing.config import PairingConfig
from flowllm.training.pairing.records import PairingOutcome, pair_record, publish_pairs


class CandidatePair(NamedTuple):
    """A base crystal with its target, or with the reason why it has none.

    Attributes:
        name: id of the target, or of the base crystal if no target was found.
        base: the base crystal.
        target: its target, if one was found.
        reject: reason for which the two are not paired.
    """

    name: str
    base: Structure
    target: Structure | None
    reject: str | None = None


def pair_file(
    data: Path,
    samples: Path,
    config: PairingConfig,
    *,
    out: str | Path,
    workers: int,
    executor: str = "local",
    part: str | None = None,
    progress: bool,
) -> PairingOutcome:
    """Pair target crystals with samples in a file; see `flowllm.training.pairing.run.pair`.

    Args:
        data: target crystals.
        samples: base crystals.
        config: options of the pairing.
        out: run folder.
        workers: batches at work at a time.
        executor: where they work.
        part: `I/N`, or None for the whole run.
        progress: show a bar on a terminal.

    Returns:
        The file of pairs and the counts.

    Raises:
        UserError: if the data or the folder is bad, or no sample could be kept.
    """
    targets = read(data, skip_invalid=config.skip_invalid, limit=config.limit)
    bases = read(samples, skip_invalid=config.skip_invalid)
    # By size, as the samples of a prior are.
    candidates = sorted(_candidates(bases, targets), key=lambda candidate: len(candidate.base))
    run = run_job(
        out,
        manifest={
            "command": "pair",
            "data": input_hash(data),
            "samples": input_hash(samples),
            "limit": config.limit,
            "skip_invalid": config.skip_invalid,
            "niggli_tolerance": NIGGLI_TOLERANCE,
        },
        total=len(candidates),
        batch_size=config.batch_size or default_batch_size(len(candidates)),
        work=functools.partial(_align_batch, candidates),
        info=versions(),
        workers=workers,
        executor=executor,
        part=part,
        progress=progress,
        description="pairing",
    )
    return publish_pairs(run)


def _candidates(bases: Iterable[Crystal], targets: Iterable[Crystal]) -> Iterator[CandidatePair]:
    by_id: dict[str, Crystal] = {}
    by_atoms: dict[frozenset[tuple[int, int]], list[Crystal]] = defaultdict(list)
    for target in targets:
        by_id[target.id] = target
        by_atoms[_atoms(target.structure)].append(target)
    for base in bases:
        atoms = _atoms(base.structure)
        wanted = base.properties.get("target")
        name = base.id if wanted is None else _text(wanted)
        if name in by_id:
            structure = by_id[name].structure
            same = _atoms(structure) == atoms
            yield CandidatePair(
                name, base.structure, structure, None if same else "other_composition"
            )
        elif wanted is None and (found := by_atoms.get(atoms)):
            for target in found:
                yield CandidatePair(target.id, base.structure, target.structure)
        else:
            yield CandidatePair(base.id, base.structure, None, "no_target")


def _text(value: float | int | str) -> str:
    """Return the id in a table cell: in a column of numbers with gaps the id `5` is read as 5.0."""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def _atoms(structure: Structure) -> frozenset[tuple[int, int]]:
    """Return the number of atoms of each element."""
    return frozenset(Counter(structure.atomic_numbers).items())


def _align_batch(
    candidates: Sequence[CandidatePair], context: None, batch: Batch, progress: Progress
) -> list[dict[str, Any]]:
    return [
        pair_record(name, base, None if reject else target, rejects={reject: 1} if reject else {})
        for name, base, target, reject in candidates[batch.start : batch.start + batch.count]
    ]
