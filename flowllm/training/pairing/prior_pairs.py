"""Pairs of a target and samples of the prior with exactly its atoms."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from flowllm.crystals.cells import NIGGLI_TOLERANCE, reduce_cell
from flowllm.crystals.crystal import ignore_missing_electronegativity
from flowllm.crystals.io import Crystal, read
from flowllm.crystals.run_folders import input_hash
from flowllm.errors import InvalidCrystal
from flowllm.generation.config import Volume
from flowllm.generation.engines import load_prior
from flowllm.hub.locate import identity
from flowllm.runs.sharded import Batch, Progress, run_job
from flowllm.system.device import pick_device
from flowllm.system.pools import check_gpus
from flowllm.system.versions import versions
from flowllm.templates.volumes import template_files, with_template_volume
from flowllm.training.pairing.config import PairingConfig
from flowllm.training.pairing.records import PairingOutcome, pair_record, publish_pairs
from llm_prior import (
    Prior,
    Proposal,
    check_unconditional,
    composition_conditions,
    propose,
)
from llm_prior.settings import read_settings


def pair_prior(
    data: Path,
    folder: Path,
    config: PairingConfig,
    *,
    out: str | Path,
    workers: int,
    executor: str = "local",
    part: str | None = None,
    device: str,
    progress: bool,
) -> PairingOutcome:
    """Pair target crystals with samples of a prior; see `flowllm.training.pairing.run.pair`.

    Args:
        data: target crystals.
        folder: of the prior.
        config: options of the pairing.
        out: run folder.
        workers: batches at work at a time.
        executor: where they work.
        part: `I/N`, or None for the whole run.
        device: `cpu`, `cuda` or `auto`.
        progress: show a bar on a terminal.

    Returns:
        The file of pairs and the counts.

    Raises:
        UserError: if the data or the folder is bad, or no sample could be kept.
        PriorError: if the prior cannot be loaded, or cannot be guided.
    """
    device = pick_device(device)
    check_gpus(device, workers, executor)
    if config.guidance != 1:
        check_unconditional(read_settings(str(folder)).get("info", {}))
    load = functools.partial(load_prior, folder, device, config.engine)
    model = load()
    crystals = read(
        data,
        skip_invalid=config.skip_invalid,
        limit=config.limit,
        max_atoms=model.fmt.max_atoms,
    )
    # Crystals of similar size share a batch, so that its texts end after about as many tokens.
    targets = sorted(crystals, key=lambda crystal: len(crystal.structure))
    targets = [target for target in targets for _ in range(config.samples_per_target)]
    run = run_job(
        out,
        manifest={
            "command": "pair",
            "device": device,
            "data": input_hash(data),
            "limit": config.limit,
            "skip_invalid": config.skip_invalid,
            "niggli_tolerance": NIGGLI_TOLERANCE,
            "prior": identity(folder),
            "samples_per_target": config.samples_per_target,
            "engine": config.engine,
            "seed": config.seed,
            "volume": template_files() if config.volume == "templates" else "prior",
            **config.drawing,
        },
        total=len(targets),
        batch_size=config.batch_size_for(len(targets), model.num_parameters),
        work=functools.partial(_pair_batch, targets, config.seed, config.volume, config.drawing),
        setup=load,
        loaded=model,
        info=versions(),
        workers=workers,
        executor=executor,
        part=part,
        device=device,
        progress=progress,
        description="pairing",
    )
    return publish_pairs(run)


@ignore_missing_electronegativity()
def _pair_batch(
    targets: Sequence[Crystal],
    seed: int,
    volume: Volume,
    drawing: dict[str, Any],
    prior: Prior,
    batch: Batch,
    progress: Progress,
) -> list[dict[str, Any]]:
    indices = range(batch.start, batch.start + batch.count)
    part = [targets[index] for index in indices]
    requests = [composition_conditions(target.structure.formula) for target in part]
    proposals = propose(
        prior,
        requests,
        seed=seed,
        indices=indices,
        slots=-(-batch.count // 2),  # the other half follows as texts are finished
        on_finished=progress,
        **drawing,
    )
    return [
        _proposed(target, proposal, volume)
        for target, proposal in zip(part, proposals, strict=True)
    ]


def _proposed(target: Crystal, proposal: Proposal, volume: Volume) -> dict[str, Any]:
    base, rejects = None, dict(proposal.rejects)
    if proposal.structure is not None:
        try:
            base = reduce_cell(proposal.structure)
            if volume == "templates":
                # The refiner must not learn to trust the volume of the target itself.
                base = with_template_volume(base, exclude_formula=True)
        except InvalidCrystal as error:
            rejects[error.reason] = 1
    return pair_record(
        target.id, base, target.structure, attempts=proposal.attempts, rejects=rejects
    )
