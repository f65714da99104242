"""`flowllm pair`: the prior proposes a crystal for each target, and the two are aligned.

Only proposals with exactly the target's atoms are kept; the others are counted by reason. Done in
shards like sampling, so a long pairing survives a kill.
"""

from __future__ import annotations

import functools
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from flowllm.cells import NIGGLI_TOLERANCE, reduce_cell
from flowllm.data import Crystal, read
from flowllm.device import pick_device
from flowllm.errors import InvalidCrystal, UserError
from flowllm.files import sha256_path
from flowllm.jobs import RunFolder, batch_seed, run_job
from flowllm.models import BUNDLED_PRIOR, identity, resolve
from flowllm.pairs import ARRAYS, write_pairs
from flowllm.sampler import BATCH_SIZE
from flowllm.versions import versions
from llm_prior import (
    DEFAULT_TEMPERATURE,
    DEFAULT_TOP_P,
    Prior,
    Proposal,
    check_settings,
    composition_conditions,
    propose,
)
from rfm import PairedCrystal, RefinerError
from rfm.align import align

PAIRS_FILE = "pairs.parquet"
SUMMARY_FILE = "summary.json"


@dataclass(frozen=True, kw_only=True)
class PairingOutcome:
    """A finished pairing.

    Attributes:
        file: the pairs.
        requested: samples asked for, one per target and repetition.
        kept: pairs in the file.
        first_try: of them, accepted on the first attempt.
        rejects: refused answers of the prior, by reason; several may belong to one request.
    """

    file: Path
    requested: int
    kept: int
    first_try: int
    rejects: dict[str, int]


def pair(
    data: str | Path,
    *,
    out: str | Path,
    prior: str | Path | None = None,
    samples_per_target: int = 1,
    temperature: float = DEFAULT_TEMPERATURE,
    top_p: float = DEFAULT_TOP_P,
    max_attempts: int = 3,
    constrain: bool = True,
    limit: int | None = None,
    skip_invalid: bool = False,
    seed: int = 0,
    batch_size: int = BATCH_SIZE,
    workers: int = 1,
    device: str = "auto",
    progress: bool = True,
) -> PairingOutcome:
    """Sample the prior for every crystal of `data` and pair the samples with their targets.

    Args:
        data: target crystals; see `flowllm.data.read`.
        out: run folder; `pairs.parquet` and `summary.json` appear in it at the end.
        prior: folder or hub id; None takes the bundled one.
        samples_per_target: pairs per crystal.
        temperature, top_p, max_attempts, constrain: see `llm_prior.propose`.
        limit: the first so many crystals only.
        skip_invalid: leave out bad rows of `data`, and crystals larger than the prior writes.
        seed: decides every draw.
        batch_size: samples at a time and in a shard, as memory allows; another size draws others.
        workers: processes; how many does not change the result.
        device: `cpu`, `cuda` or `auto`.
        progress: show a bar on a terminal.

    Raises:
        UserError, PriorError: bad data, model or folder, or not one sample could be kept.
    """
    check_settings(temperature, top_p, max_attempts)
    if samples_per_target < 1:
        raise UserError(f"samples_per_target {samples_per_target} must be at least 1")
    data = Path(data)
    prior_folder = resolve(prior, BUNDLED_PRIOR)
    load = functools.partial(Prior.from_pretrained, prior_folder, device=pick_device(device))
    model = load()
    crystals = read(data, skip_invalid=skip_invalid, limit=limit, max_atoms=model.fmt.max_atoms)
    # Crystals of like size share a batch, which then ends for all at about the same token.
    targets = sorted(crystals, key=lambda crystal: len(crystal.structure))
    targets = [target for target in targets for _ in range(samples_per_target)]
    sampling = {
        "temperature": temperature,
        "top_p": top_p,
        "max_attempts": max_attempts,
        "constrain": constrain,
    }
    folder = run_job(
        out,
        manifest={
            "command": "pair",
            "device": pick_device(device),
            "data": sha256_path(data),
            "limit": limit,
            "skip_invalid": skip_invalid,
            "niggli_tolerance": NIGGLI_TOLERANCE,
            "prior": identity(prior_folder),
            "samples_per_target": samples_per_target,
            "seed": seed,
            **sampling,
        },
        total=len(targets),
        batch_size=batch_size,
        work=functools.partial(_pair_batch, targets, seed, sampling),
        setup=load if workers > 1 else lambda: model,
        info=versions(),
        workers=workers,
        progress=progress,
        description="pairing",
    )
    return _publish(folder)


def _pair_batch(
    targets: Sequence[Crystal],
    seed: int,
    sampling: dict[str, Any],
    prior: Prior,
    index: int,
    start: int,
    count: int,
) -> list[dict[str, Any]]:
    part = targets[start : start + count]
    requests = [composition_conditions(target.structure.formula) for target in part]
    proposals = propose(
        prior,
        requests,
        seed=batch_seed(seed, index),
        slots=-(-count // 2),  # what is finished makes room for the other half
        **sampling,
    )
    return [_record(target, proposal) for target, proposal in zip(part, proposals, strict=True)]


def _record(target: Crystal, proposal: Proposal) -> dict[str, Any]:
    record: dict[str, Any] = {
        "id": target.id,
        "attempts": proposal.attempts,
        "rejects": dict(proposal.rejects),
        "pair": None,
    }
    if proposal.structure is None:
        return record
    try:
        base = reduce_cell(proposal.structure)
    except InvalidCrystal as error:
        record["rejects"][error.reason] = 1
        return record
    try:
        aligned = align(base, target.structure)
    except RefinerError:  # a cell too odd to be reduced: one pair less, not the end of the job
        record["rejects"]["not_aligned"] = 1
        return record
    record["pair"] = {
        "atomic_numbers": aligned.atomic_numbers.tolist(),
        **{name: getattr(aligned, name).tolist() for name in ARRAYS},
    }
    return record


def _publish(folder: RunFolder) -> PairingOutcome:
    records = list(folder.records())
    rejects: Counter[str] = Counter()
    for record in records:
        rejects.update(record["rejects"])
    outcome = PairingOutcome(
        file=folder.path / PAIRS_FILE,
        requested=len(records),
        kept=sum(record["pair"] is not None for record in records),
        first_try=sum(record["pair"] is not None and record["attempts"] == 1 for record in records),
        rejects=dict(rejects.most_common()),
    )
    counts = {k: v for k, v in vars(outcome).items() if k != "file"}
    folder.publish(SUMMARY_FILE, lambda path: path.write_text(json.dumps(counts, indent=2) + "\n"))
    if not outcome.kept:
        reasons = ", ".join(f"{reason} {count}" for reason, count in outcome.rejects.items())
        raise UserError(
            f"none of {outcome.requested} samples could be paired (refused: {reasons}); train the "
            f"prior longer, or allow more max_attempts (--max-attempts); {folder.path} keeps the "
            f"counts in {SUMMARY_FILE}"
        )
    folder.publish(PAIRS_FILE, lambda path: write_pairs(_pairs(folder), path))
    return outcome


def _pairs(folder: RunFolder) -> Iterator[PairedCrystal]:
    for record in folder.records():
        if record["pair"] is not None:
            arrays = {name: np.array(record["pair"][name]) for name in ARRAYS}
            numbers = np.array(record["pair"]["atomic_numbers"])
            yield PairedCrystal(id=record["id"], atomic_numbers=numbers, **arrays)
