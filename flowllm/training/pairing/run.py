"""Pairing: base crystals from a prior or from a file, aligned to their targets (`flowllm pair`).

Options and paths are checked before torch is imported.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from flowllm.errors import UserError
from flowllm.runs.identity import check_folder
from flowllm.runs.parts import check_placement
from flowllm.runs.sharded import MANIFEST
from flowllm.system.device import check_device
from flowllm.system.options import from_arguments
from flowllm.training.pairing.config import PairingConfig

if TYPE_CHECKING:
    from flowllm.training.pairing.records import PairingOutcome

_OF_A_PRIOR = ("samples_per_target", "temperature", "top_p", "max_attempts", "constrain")


def pair(
    data: str | Path,
    *,
    out: str | Path,
    samples: str | Path | None = None,
    prior: str | Path | None = None,
    config: PairingConfig | None = None,
    workers: int = 1,
    executor: str = "local",
    part: str | None = None,
    device: str = "auto",
    progress: bool = True,
    **options: Any,
) -> PairingOutcome:
    """Sample the prior for every crystal of the data and pair the samples with their targets.

    Samples are kept only if they have exactly the atoms of the target; refused ones are counted by
    reason.

    With `samples` the base crystals come from there and no prior is used. A sample names its target
    by the column or property `target`, or else by its id; both must have the same atoms. A sample
    without `target` whose id is unknown is paired with every target of the same atoms. A refiner
    is trained on such pairs with `base.kind: file`.

    Args:
        data: target crystals; see `flowllm.crystals.io.read`.
        out: run folder; `pairs.parquet` and `summary.json` appear in it at the end.
        samples: base crystals from elsewhere; see `flowllm.crystals.io.read`.
        prior: folder or hub id; None takes the bundled one.
        config: the options that `options` do not name; None: the defaults.
        workers: batches at work at a time; with the executor `local`, processes. They do not change
            the result.
        executor: where they work: `local`, `slurm` or `MODULE:FACTORY`; see
            `flowllm.system.pools.check_executor`.
        part: `I/N` computes every N-th shard, beside other parts in the same folder.
        device: `cpu`, `cuda` or `auto`.
        progress: show a bar on a terminal.
        **options: fields of `PairingConfig`, such as `samples_per_target=2`.

    Returns:
        The file of pairs and the counts.

    Raises:
        UserError: if the data, the folder or an option is bad, if no sample could be kept, or if
            settings of a prior are given together with `samples`.
        PriorError: if the prior cannot be loaded.
        Unfinished: at the end of a part while other parts are missing.
    """
    config = from_arguments(PairingConfig, options, base=config)
    from flowllm.crystals.io import check_input

    for path in (data, samples):
        if path is not None:
            check_input(path)
    check_folder(out, MANIFEST)
    check_device(device)
    check_placement(workers, executor, part)
    # Imported after the checks, so that they need no torch.
    if samples is None:
        from flowllm.training.pairing.prior_pairs import pair_prior

        return pair_prior(
            Path(data),
            prior,
            config,
            out=out,
            workers=workers,
            executor=executor,
            part=part,
            device=device,
            progress=progress,
        )
    defaults = PairingConfig()
    if prior is not None or any(getattr(config, n) != getattr(defaults, n) for n in _OF_A_PRIOR):
        raise UserError(
            "samples take the place of a prior; leave out prior, samples_per_target and the "
            "settings of its draws"
        )
    from flowllm.training.pairing.file_pairs import pair_file

    return pair_file(
        Path(data),
        Path(samples),
        config,
        out=out,
        workers=workers,
        executor=executor,
        part=part,
        progress=progress,
    )
