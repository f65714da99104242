"""Pairing: base crystals from a prior, templates or a file, aligned to targets (`flowllm pair`).

Options and paths are checked before torch is imported.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from flowllm.errors import UserError
from flowllm.generation.engines import check_engine
from flowllm.runs.identity import check_folder
from flowllm.runs.parts import check_placement
from flowllm.runs.sharded import MANIFEST
from flowllm.system.device import check_device
from flowllm.system.options import from_arguments
from flowllm.training.pairing.config import PairingConfig

if TYPE_CHECKING:
    from flowllm.training.pairing.records import PairingOutcome

_PER_TARGET = "samples_per_target"
_DEFAULTS = PairingConfig()
_DRAWS = (
    *("seed", "temperature", "top_p", "guidance", "max_attempts", "constrain", "engine"),
    "volume",
)


def pair(
    data: str | Path,
    *,
    out: str | Path,
    samples: str | Path | None = None,
    templates: str | Path | None = None,
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

    With `templates` the base crystals are the likeliest templates of each target's composition,
    without those of its own formula (`flowllm.templates.proposals`). A refiner can be trained on
    them alone, or together with samples of a prior or of a file.

    Args:
        data: target crystals; see `flowllm.crystals.io.read`.
        out: run folder; `pairs.parquet` and `summary.json` appear in it at the end.
        samples: base crystals from elsewhere; see `flowllm.crystals.io.read`.
        templates: `bundled`, or the file of a template library.
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
            two origins, or settings of a prior and another origin, are given together.
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
    _check_origin(config, samples=samples, templates=templates, prior=prior)
    # Imported after the checks, so that they need no torch.
    if templates is not None:
        from flowllm.templates.library import library_file
        from flowllm.training.pairing.template_pairs import pair_templates

        return pair_templates(
            Path(data),
            library_file(templates),
            config,
            out=out,
            workers=workers,
            executor=executor,
            part=part,
            progress=progress,
        )
    if samples is not None:
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
    from flowllm.hub.locate import BUNDLED_PRIOR, resolve

    folder = resolve(prior, BUNDLED_PRIOR)
    check_engine(config.engine, folder)
    from flowllm.training.pairing.prior_pairs import pair_prior

    return pair_prior(
        Path(data),
        folder,
        config,
        out=out,
        workers=workers,
        executor=executor,
        part=part,
        device=device,
        progress=progress,
    )


def _check_origin(
    config: PairingConfig,
    *,
    samples: str | Path | None,
    templates: str | Path | None,
    prior: str | Path | None,
) -> None:
    """Refuse options that do not go with the origin of the base crystals."""
    if samples is None and templates is None:
        return
    if samples is not None and templates is not None:
        raise UserError("samples and templates exclude each other; make a file of pairs of each")
    name, unused = ("templates", _DRAWS) if templates else ("samples", (*_DRAWS, _PER_TARGET))
    changed = [field for field in unused if getattr(config, field) != getattr(_DEFAULTS, field)]
    if prior is not None or changed:
        raise UserError(f"{name} take the place of a prior; leave out {(changed or ['prior'])[0]}")
