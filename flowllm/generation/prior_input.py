"""The input of score, ipt and infill: the crystals of a file and the prior that reads them."""

from __future__ import annotations

from pathlib import Path

import llm_prior
from flowllm.crystals.io import Crystals, check_input, read
from flowllm.hub.locate import BUNDLED_PRIOR, resolve
from flowllm.system.device import check_device, pick_device


def read_with_prior(
    file: str | Path,
    *,
    prior: str | Path | None,
    limit: int | None,
    skip_invalid: bool,
    device: str,
) -> tuple[llm_prior.Prior, Crystals]:
    """Load a prior and read the crystals of a file that it can write.

    Args:
        file: any input of `flowllm.crystals.io.read`.
        prior: folder or hub id; None takes the bundled prior.
        limit: read at most this many rows.
        skip_invalid: leave out bad rows and crystals with too many atoms.
        device: `cpu`, `cuda`, `cuda:NUMBER` or `auto`.

    Returns:
        The prior and the crystals.

    Raises:
        UserError: if the file, a row or the device is bad, or there is no such model.
        PriorError: if the folder holds no prior.
    """
    check_input(file)
    check_device(device)
    folder = resolve(prior, BUNDLED_PRIOR)  # before anything imports torch
    model = llm_prior.Prior.from_pretrained(folder, device=pick_device(device))
    crystals = read(file, limit=limit, skip_invalid=skip_invalid, max_atoms=model.fmt.max_atoms)
    return model, crystals
