"""Which element the prior would put in the place of one, for the crystals of a file."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

from flowllm.crystals.io import Crystal, read
from flowllm.errors import UserError
from flowllm.hub.locate import BUNDLED_PRIOR, resolve
from flowllm.system.device import pick_device
from flowllm.system.tables import check_absent, write_rows
from llm_prior import Prior, warn_of_untrained
from llm_prior.infilling import INFILL_BATCH_SIZE, allowed_swaps, element_probabilities
from llm_prior.text import site_symbols

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Infilled:
    """One crystal with an element masked.

    Attributes:
        crystal: as it was read.
        probabilities: symbol -> probability, likeliest first.
    """

    crystal: Crystal
    probabilities: dict[str, float]


def infill(
    file: str | Path,
    mask: str,
    *,
    prior: str | Path | None = None,
    temperature: float = 1.0,
    swap_table: bool = False,
    out: str | Path | None = None,
    batch_size: int = INFILL_BATCH_SIZE,
    limit: int | None = None,
    skip_invalid: bool = False,
    device: str = "auto",
) -> list[Infilled]:
    """The distribution over elements for the masked element of each crystal.

    Args:
        file: anything that `flowllm.crystals.io.read` reads.
        mask: the element all of whose sites are masked.
        prior: folder or hub id; None takes the bundled one.
        temperature: divides the log-probabilities; 0 gives everything to the likeliest.
        swap_table: only elements that the swap table allows (`llm_prior.infilling`), so never the
            masked one.
        out: CSV to write, with a row for each crystal and element.
        batch_size: crystals at a time, as memory allows.
        limit: the first so many crystals only.
        skip_invalid: leave bad rows of `file` and too large crystals out.
        device: `cpu`, `cuda` or `auto`.

    Raises:
        UserError, PriorError: bad file or model, no crystal with the element, an element for
            which the table has no swap, or an `out` that exists.
    """
    table = check_absent(out)
    candidates = allowed_swaps().get(mask) if swap_table else None
    if swap_table and not candidates:
        raise UserError(f"the swap table has no element for {mask}; leave the table out")
    model = Prior.from_pretrained(resolve(prior, BUNDLED_PRIOR), device=pick_device(device))
    warn_of_untrained(model, infill=True)
    crystals = read(file, limit=limit, skip_invalid=skip_invalid, max_atoms=model.fmt.max_atoms)
    count, first = len(crystals), crystals[0]
    crystals = [crystal for crystal in crystals if mask in site_symbols(crystal.structure)]
    if not crystals:
        raise UserError(
            f"{mask} is in no crystal of {file}; mask another element, such as "
            f"{site_symbols(first.structure)[0]} of {first.id}"
        )
    if len(crystals) < count:
        absent = count - len(crystals)
        logger.warning("%d of %d crystals have no %s and are left out", absent, count, mask)
    found = element_probabilities(
        model,
        [crystal.structure for crystal in crystals],
        [mask] * len(crystals),
        temperature=temperature,
        candidates=None if candidates is None else [candidates] * len(crystals),
        batch_size=batch_size,
    )
    results = [Infilled(c, p) for c, p in zip(crystals, found, strict=True)]
    if table is not None:
        write_rows(
            [
                {"id": result.crystal.id, "mask": mask, "element": symbol, "probability": p}
                for result in results
                for symbol, p in result.probabilities.items()
            ],
            table,
        )
    return results
