"""Element infilling: the elements that the prior would put in place of a masked one."""

from __future__ import annotations

import functools
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import llm_prior
from flowllm.crystals.cells import NIGGLI_TOLERANCE
from flowllm.crystals.crystal import ignore_missing_electronegativity
from flowllm.crystals.io import Crystal, input_hash
from flowllm.errors import UserError
from flowllm.generation.prior_input import read_with_prior
from flowllm.hub.locate import BUNDLED_PRIOR, identity, resolve
from flowllm.runs.cif_form import CifForm, check_cif_form
from flowllm.runs.identity import check_folder
from flowllm.runs.sharded import MANIFEST, Batch, Progress, Record, run_job
from flowllm.system.options import Options, from_arguments, option
from flowllm.system.tables import check_absent, write_rows
from flowllm.system.versions import versions
from llm_prior.text import SYMBOLS, site_symbols

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class InfillingConfig(Options):
    """Settings of infilling."""

    temperature: float = option(
        1.0, "Divides the log-probabilities; 0 keeps the likeliest element.", minimum=0
    )
    swap_table: bool = option(
        False, "Only elements that the swap table allows, so never the masked one."
    )
    batch_size: int = option(16, "Crystals in a batch, as memory allows.", minimum=1)


@dataclass(frozen=True)
class Infilled:
    """One crystal with a masked element.

    Attributes:
        crystal: as it was read.
        probabilities: of each element, likeliest first.
    """

    crystal: Crystal
    probabilities: dict[str, float]


@ignore_missing_electronegativity()
def infill(
    file: str | Path,
    mask: str,
    config: InfillingConfig | None = None,
    *,
    prior: str | Path | None = None,
    out: str | Path | None = None,
    structures: str | Path | None = None,
    cif: CifForm = "symmetrized",
    limit: int | None = None,
    skip_invalid: bool = False,
    device: str = "auto",
    **options: Any,
) -> list[Infilled]:
    """Return the distribution over elements for the masked element of each crystal.

    Crystals without the element are left out and counted in the log.

    Args:
        file: any input of `flowllm.crystals.io.read`.
        mask: symbol of the element; all its sites are masked.
        config: the settings; None: the defaults.
        prior: folder or hub id; None takes the bundled prior.
        out: CSV file to write, with a row for each crystal and element.
        structures: run folder to write, with each crystal after its likeliest swap: the masked
            element replaced by the likeliest other one; cell and positions stay.
        cif: form of the CIFs in that folder; see `flowllm.runs.outputs.publish_crystals`.
        limit: read at most this many rows.
        skip_invalid: leave out bad rows and crystals with too many atoms.
        device: `cpu`, `cuda`, `cuda:NUMBER` or `auto`.
        **options: fields of `InfillingConfig`; they replace those of `config`.

    Returns:
        One result for each crystal that holds the element.

    Raises:
        UserError: if the file, an option or the model is bad, no crystal holds the element, the
            swap table has no element for it, or `out` exists.
        PriorError: if the folder holds no prior, or a crystal makes too long a prompt.
    """
    config = from_arguments(InfillingConfig, options, base=config)
    table = check_absent(out)
    check_cif_form(cif)
    if structures is None and cif == "p1":
        raise UserError("cif is the form of the CIFs in structures; give structures as well")
    if structures is not None:
        check_folder(structures, MANIFEST)
        if config.temperature == 0:
            raise UserError(
                "temperature 0 gives probability 0 to all elements but one, so there may be no "
                "likeliest swap; give a temperature above 0, or leave structures out"
            )
    if mask not in SYMBOLS:
        raise UserError(f"mask {mask!r} is not the symbol of an element; give one such as Na")
    candidates = llm_prior.allowed_swaps().get(mask) if config.swap_table else None
    if config.swap_table and not candidates:
        raise UserError(f"the swap table has no element for {mask}; leave the table out")
    model, crystals = read_with_prior(
        file, prior=prior, limit=limit, skip_invalid=skip_invalid, device=device
    )
    llm_prior.warn_of_untrained(model, infill=True)
    masked = [crystal for crystal in crystals if mask in site_symbols(crystal.structure)]
    if not masked:
        first = crystals[0]
        raise UserError(
            f"{mask} is in no crystal of {file}; mask another element, such as "
            f"{site_symbols(first.structure)[0]} of {first.id}"
        )
    if absent := len(crystals) - len(masked):
        logger.warning("left out: %d of %d crystals without %s", absent, len(crystals), mask)
    found = llm_prior.element_probabilities(
        model,
        [crystal.structure for crystal in masked],
        [mask] * len(masked),
        temperature=config.temperature,
        candidates=None if candidates is None else [candidates] * len(masked),
        batch_size=config.batch_size,
    )
    results = [Infilled(c, p) for c, p in zip(masked, found, strict=True)]
    if structures is not None:
        # Before the table: a folder that holds another run is refused, and nothing is written.
        _write_structures(
            results,
            mask,
            structures,
            manifest={
                "command": "infill",
                "device": str(model.device),
                "input": input_hash(file),
                "mask": mask,
                "prior": identity(resolve(prior, BUNDLED_PRIOR)),
                "limit": limit,
                "skip_invalid": skip_invalid,
                "niggli_tolerance": NIGGLI_TOLERANCE,
                "temperature": config.temperature,
                "swap_table": config.swap_table,
                "cif": cif,
            },
            cif=cif,
        )
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


def _write_structures(
    results: Sequence[Infilled],
    mask: str,
    out: str | Path,
    *,
    manifest: dict[str, Any],
    cif: CifForm,
) -> None:
    import pyarrow as pa

    from flowllm.runs.outputs import publish_crystals

    folder = run_job(
        out,
        manifest=manifest,
        total=len(results),
        batch_size=len(results),
        work=functools.partial(_replace, results, mask),
        info=versions(),
        progress=False,
    )
    publish_crystals(folder, {"swap": pa.string(), "probability": pa.float64()}, cif=cif)


def _replace(
    results: Sequence[Infilled], mask: str, context: None, batch: Batch, progress: Progress
) -> list[Record]:
    from flowllm.runs.records import CrystalRecord
    from llm_prior.infilling import replace_element

    records = []
    for result in results[batch.start : batch.stop]:
        element, probability = next(
            (symbol, p) for symbol, p in result.probabilities.items() if symbol != mask
        )
        record = CrystalRecord(
            id=result.crystal.id,
            structure=replace_element(result.crystal.structure, mask, element),
            initial_structure=result.crystal.structure,
            properties={"swap": f"{mask}->{element}", "probability": probability},
        )
        records.append(record.described().to_json())
    return records
