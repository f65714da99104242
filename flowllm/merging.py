"""The results of a run that was computed in parts (`flowllm merge`)."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from flowllm.errors import UserError
from flowllm.runs.sharded import RunFolder

if TYPE_CHECKING:
    from flowllm.runs.outputs import Outcome
    from flowllm.training.pairing.records import PairingOutcome

# Command -> module and function that writes its files from the shards.
_PUBLISHERS = {
    "sample": ("flowllm.generation.sampling_run", "publish_samples"),
    "refine": ("flowllm.generation.sampling_run", "publish_refined"),
    "mutate": ("flowllm.generation.mutation", "publish_mutants"),
    "relax": ("flowllm.energy.relaxation", "publish_relaxed"),
    "pair": ("flowllm.training.pairing.records", "publish_pairs"),
}


def merge(folder: str | Path) -> Outcome | PairingOutcome:
    """Write the results of a run whose parts have all ended. Those that exist stay.

    Args:
        folder: the run folder of `sample`, `refine`, `mutate`, `relax` or `pair`.

    Returns:
        The result of the command.

    Raises:
        UserError: if the folder is no such run, shards are missing or damaged, or another process
            works in the folder.
    """
    run = RunFolder.open(folder)
    command = run.run.get("command")
    if command not in _PUBLISHERS:
        raise UserError(
            f"{folder} is a run of {command}, whose results merge does not write; repeat the "
            "command without --part"
        )
    if missing := run.missing:
        raise UserError(
            f"{folder} lacks {len(missing)} of {len(run.batches)} shards (the first is "
            f"{missing[0].index}); run the parts again that have not ended, or the command without "
            "--part"
        )
    module, name = _PUBLISHERS[command]
    publish: Callable[[RunFolder], Outcome | PairingOutcome]
    publish = getattr(importlib.import_module(module), name)
    return publish(run)
