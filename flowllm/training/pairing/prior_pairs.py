"""`flowllm pair`: a base crystal for each target, from the prior or from a file, aligned to it.

The prior's proposals are kept only with exactly the target's atoms; the others are counted by
reason. Done in shards like sampling, so a long pairing survives a kill.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from flowllm.crystals.cells import NIGGLI_TOLERANCE, reduce_cell
from flowllm.crystals.io import Crystal, read
from flowllm.crystals.run_folders import input_hash
from flowllm.errors import InvalidCrystal, UserError
from flowllm.generation.pipeline import BATCH_SIZE
from flowllm.hub.locate import BUNDLED_PRIOR, identity, resolve
from flowllm.runs.sharded import Batch, Progress, batch_seed, run_job
from flowllm.system.device import pick_device
from flowllm.system.versions import versions
from flowllm.training.pairing.file_pairs import pair_file
from flowllm.training.pairing.records import PairingOutcome, publish_pairs, record
from llm_prior import (
    DEFAULT_TEMPERATURE,
    DEFAULT_TOP_P,
    Prior,
    Proposal,
    check_settings,
    composition_conditions,
    propose,
)

DEFAULT_PAIRING_ATTEMPTS = 3


def pair(
    data: str | Path,
    *,
    out: str | Path,
    samples: str | Path | None = None,
    prior: str | Path | None = None,
    samples_per_target: int = 1,
    temperature: float = DEFAULT_TEMPERATURE,
    top_p: float = DEFAULT_TOP_P,
    max_attempts: int = DEFAULT_PAIRING_ATTEMPTS,
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

    With `samples` no prior is asked: their crystals, from anywhere, are the base. One that names a
    target, by the column or property `target` or else by its id, is paired with that; it must have
    the same atoms. One without `target` whose id is no target's is paired with every target of the
    same atoms. A refiner for such pairs is trained with `base.kind: file`.

    Args:
        data: target crystals; see `flowllm.crystals.io.read`.
        out: run folder; `pairs.parquet` and `summary.json` appear in it at the end.
        samples: crystals instead of the prior's; see `flowllm.crystals.io.read`.
        prior: folder or hub id; None takes the bundled one.
        samples_per_target: pairs per crystal, each of another draw. More of them later: another
            seed, another folder, and all files of pairs to `train_rfm`.
        temperature, top_p, max_attempts, constrain: see `llm_prior.propose`.
        limit: the first so many crystals only.
        skip_invalid: leave out bad rows of `data` and `samples`, and crystals larger than the prior
            writes.
        seed: decides every draw.
        batch_size: samples at a time and in a shard, as memory allows; another size draws others.
        workers: processes; how many does not change the result.
        device: `cpu`, `cuda` or `auto`.
        progress: show a bar on a terminal.

    Raises:
        UserError, PriorError: bad data, model or folder, not one sample could be kept, or settings
            of a prior beside `samples`.
    """
    check_settings(temperature, top_p, max_attempts)
    if samples_per_target < 1:
        raise UserError(f"samples_per_target {samples_per_target} must be at least 1")
    data = Path(data)
    sampling = {
        "temperature": temperature,
        "top_p": top_p,
        "max_attempts": max_attempts,
        "constrain": constrain,
    }
    if samples is not None:
        defaults = (DEFAULT_TEMPERATURE, DEFAULT_TOP_P, DEFAULT_PAIRING_ATTEMPTS, True)
        if prior is not None or samples_per_target > 1 or (*sampling.values(),) != defaults:
            raise UserError(
                "samples stand in for a prior; leave out prior, samples_per_target and the "
                "settings of its draws"
            )
        return pair_file(
            data,
            Path(samples),
            out=out,
            limit=limit,
            skip_invalid=skip_invalid,
            batch_size=batch_size,
            workers=workers,
            progress=progress,
        )
    prior_folder = resolve(prior, BUNDLED_PRIOR)
    load = functools.partial(Prior.from_pretrained, prior_folder, device=pick_device(device))
    model = load()
    crystals = read(data, skip_invalid=skip_invalid, limit=limit, max_atoms=model.fmt.max_atoms)
    # Crystals of like size share a batch, which then ends for all at about the same token.
    targets = sorted(crystals, key=lambda crystal: len(crystal.structure))
    targets = [target for target in targets for _ in range(samples_per_target)]
    folder = run_job(
        out,
        manifest={
            "command": "pair",
            "device": pick_device(device),
            "data": input_hash(data),
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
    mend = "train the prior longer, or allow more max_attempts (--max-attempts)"
    return publish_pairs(folder, base="llm", mend=mend)


def _pair_batch(
    targets: Sequence[Crystal],
    seed: int,
    sampling: dict[str, Any],
    prior: Prior,
    batch: Batch,
    progress: Progress,
) -> list[dict[str, Any]]:
    part = targets[batch.start : batch.stop]
    requests = [composition_conditions(target.structure.formula) for target in part]
    proposals = propose(
        prior,
        requests,
        seed=batch_seed(seed, batch.index),
        slots=-(-batch.count // 2),  # what is finished makes room for the other half
        **sampling,
    )
    return [_proposed(target, proposal) for target, proposal in zip(part, proposals, strict=True)]


def _proposed(target: Crystal, proposal: Proposal) -> dict[str, Any]:
    base, rejects = None, dict(proposal.rejects)
    if proposal.structure is not None:
        try:
            base = reduce_cell(proposal.structure)
        except InvalidCrystal as error:
            rejects[error.reason] = 1
    return record(target.id, base, target.structure, attempts=proposal.attempts, rejects=rejects)
