"""Pairs of a target and structures made from templates (`flowllm pair --templates`)."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from flowllm.crystals.cells import NIGGLI_TOLERANCE
from flowllm.crystals.crystal import ignore_missing_electronegativity
from flowllm.crystals.formulas import formula_units
from flowllm.crystals.io import Crystal, read
from flowllm.crystals.run_folders import input_hash
from flowllm.runs.sharded import Batch, Progress, default_batch_size, run_job
from flowllm.system.files import sha256_path
from flowllm.system.versions import versions
from flowllm.templates.library import TemplateLibrary, library_file
from flowllm.templates.proposals import Proposal, propose_templates
from flowllm.templates.ranking import ranking_sha256
from flowllm.training.pairing.config import PairingConfig
from flowllm.training.pairing.records import PairingOutcome, pair_record, publish_pairs
from llm_prior.errors import PriorError


def pair_templates(
    data: Path,
    templates: str | Path,
    config: PairingConfig,
    *,
    out: str | Path,
    workers: int,
    executor: str = "local",
    part: str | None = None,
    progress: bool,
) -> PairingOutcome:
    """Pair target crystals with templates; see `flowllm.training.pairing.run.pair`.

    The templates of a target are the likeliest ones for its composition and number of atoms. None
    has its reduced formula, so neither the target itself nor another entry of it is among them.

    Args:
        data: target crystals.
        templates: `bundled`, or the file of a library.
        config: options of the pairing.
        out: run folder.
        workers: batches at work at a time.
        executor: where they work.
        part: `I/N`, or None for the whole run.
        progress: show a bar on a terminal.

    Returns:
        The file of pairs and the counts.

    Raises:
        UserError: if the data, the library or the folder is bad, or no target has a template.
    """
    file = library_file(templates)
    load = functools.partial(TemplateLibrary.read, file)
    library = load()
    crystals = read(data, skip_invalid=config.skip_invalid, limit=config.limit)
    targets = sorted(crystals, key=lambda crystal: len(crystal.structure))
    total = len(targets) * config.samples_per_target
    run = run_job(
        out,
        manifest={
            "command": "pair",
            "data": input_hash(data),
            "templates": sha256_path(file),
            "ranking": ranking_sha256(),
            "limit": config.limit,
            "skip_invalid": config.skip_invalid,
            "samples_per_target": config.samples_per_target,
            "niggli_tolerance": NIGGLI_TOLERANCE,
        },
        total=total,
        batch_size=config.batch_size or default_batch_size(total),
        work=functools.partial(_pair_batch, targets, config.samples_per_target),
        setup=load,
        loaded=library,
        info=versions(),
        workers=workers,
        executor=executor,
        part=part,
        progress=progress,
        description="pairing",
    )
    return publish_pairs(run)


@ignore_missing_electronegativity()
def _pair_batch(
    targets: Sequence[Crystal],
    per_target: int,
    library: TemplateLibrary,
    batch: Batch,
    progress: Progress,
) -> list[dict[str, Any]]:
    records: list[dict[str, Any]] = []
    for index in range(batch.start, batch.start + batch.count):
        place, rank = divmod(index, per_target)
        if rank == 0 or not records:
            proposals = _proposals(targets[place], per_target, library)
        records.append(_paired(targets[place], proposals[rank : rank + 1]))
        progress(1)
    return records


def _proposals(target: Crystal, n: int, library: TemplateLibrary) -> list[Proposal]:
    composition = target.structure.composition
    return propose_templates(
        composition.formula,
        n=n,
        max_atoms=len(target.structure),
        formula_units=[formula_units(composition)],
        exclude_formula=True,
        library=library,
    )


def _paired(target: Crystal, proposals: Sequence[Proposal]) -> dict[str, Any]:
    """Return the record of a target and its proposal, or of a target without one."""
    if not proposals:
        return pair_record(target.id, None, target.structure, rejects={"no_template": 1})
    try:
        base = proposals[0].structure
    except PriorError:
        return pair_record(target.id, None, target.structure, rejects={"no_reduced_cell": 1})
    return pair_record(target.id, base, target.structure, rejects={})
