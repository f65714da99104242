"""Run folders of sampling and refining: sharded, resumable, with files for everybody at the end."""

from __future__ import annotations

import functools
import json
import logging
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from flowllm.cells import NIGGLI_TOLERANCE
from flowllm.cif import cif_text
from flowllm.data import Crystal, read, write
from flowllm.device import pick_device
from flowllm.errors import UserError
from flowllm.files import sha256_path
from flowllm.jobs import RunFolder, run_job
from flowllm.models import BUNDLED_PRIOR, BUNDLED_REFINER, identity, resolve
from flowllm.request import Settings, check_size, merge_conditions, symbols
from flowllm.sampler import (
    BATCH_SIZE,
    FlowLLM,
    Sample,
    refined,
)
from flowllm.versions import versions
from llm_prior import (
    DEFAULT_ATTEMPTS,
    DEFAULT_TEMPERATURE,
    DEFAULT_TOP_P,
    Prior,
    check_conditions,
    warn_of_untrained,
)
from rfm import Refiner
from rfm import refine as refine_structures

logger = logging.getLogger(__name__)

# A row a requested crystal, the failed ones included; the structures as pymatgen JSON.
_TABLE = pa.schema(
    {
        **dict.fromkeys(("id", "formula"), pa.string()),
        "num_atoms": pa.int64(),
        "cif": pa.string(),
        **dict.fromkeys(("structure", "prior_structure", "prompt", "text"), pa.string()),
        "attempts": pa.int64(),
        **dict.fromkeys(("rejects", "failure"), pa.string()),
    }
)
_LONGEST_NAME = 100  # of a CIF; file systems take 255 bytes


@dataclass(frozen=True)
class Outcome:
    """A finished run: its folder, the crystals it made, and the failures by reason."""

    folder: Path
    crystals: list[Crystal]
    failures: Counter[str]


def sample(
    n: int,
    *,
    out: str | Path,
    formula: str | None = None,
    composition: str | None = None,
    prior: str | Path | None = None,
    refiner: str | Path | None = None,
    refine: bool = False,
    seed: int = 0,
    temperature: float = DEFAULT_TEMPERATURE,
    top_p: float = DEFAULT_TOP_P,
    max_attempts: int = DEFAULT_ATTEMPTS,
    constrain: bool = True,
    exclude_elements: str | Sequence[str] | None = None,
    steps: int | None = None,
    batch_size: int = BATCH_SIZE,
    workers: int = 1,
    device: str = "auto",
    progress: bool = True,
    **conditions: Any,
) -> Outcome:
    """Generate `n` crystals into a run folder; called again, it goes on where it was killed.

    Args:
        n: how many.
        out: folder for `manifest.json`, `shards/`, then `samples.parquet`, `samples.extxyz`
            and `cif/`.
        formula: any number of formula units of this.
        composition: exactly these atoms.
        prior: folder or hub id; None takes the bundled one.
        refiner: folder or hub id; None takes the bundled one.
        refine: move the prior's crystals with the refiner.
        seed: decides every draw.
        temperature, top_p, max_attempts, constrain: see `llm_prior.propose`.
        exclude_elements: symbols (`["Pb", "Cd"]` or `"Pb,Cd"`) that no crystal may have.
        steps: integration steps; None takes the refiner's own.
        batch_size: crystals at a time and in a shard, as memory allows; another size draws other
            crystals.
        workers: processes; how many does not change the result.
        device: `cpu`, `cuda` or `auto`.
        progress: show a bar on a terminal.
        **conditions: further ones, such as `spacegroup=225`.

    Raises:
        UserError, PriorError, RefinerError: bad request, models or folder.
    """
    if refiner is not None and not refine:
        raise UserError("a refiner is given and not used; ask for refine as well, or leave it out")
    settings = Settings(
        conditions=merge_conditions(formula, composition, conditions),
        refine=refine,
        seed=seed,
        temperature=temperature,
        top_p=top_p,
        max_attempts=max_attempts,
        constrain=constrain,
        exclude_elements=symbols(exclude_elements),
        steps=steps,
    )
    prior_folder = resolve(prior, BUNDLED_PRIOR)
    refiner_folder = resolve(refiner, BUNDLED_REFINER) if refine else None
    load = functools.partial(load_models, prior_folder, refiner_folder, pick_device(device))
    model = load()
    second = f"refiner {refiner_folder}" if refiner_folder else "no refiner"
    logger.info("prior %s, %s, on %s", prior_folder, second, model.prior.device)
    check_size(composition, settings.conditions, model.prior.fmt)
    check_conditions(
        settings.conditions, model.prior.fmt, exclude_elements=settings.exclude_elements
    )
    warn_of_untrained(model.prior, settings.conditions)
    manifest = {
        "command": "sample",
        "device": pick_device(device),  # another one draws other numbers
        "prior": identity(prior_folder),
        "refiner": identity(refiner_folder) if refiner_folder else None,
        "niggli_tolerance": NIGGLI_TOLERANCE,
        **asdict(settings),
    }
    folder = run_job(
        out,
        manifest=manifest,
        total=n,
        batch_size=batch_size,
        work=functools.partial(_sample_batch, settings),
        setup=load if workers > 1 else lambda: model,
        info=versions(),
        workers=workers,
        progress=progress,
        description="sampling",
    )
    return _publish(folder)


def refine(
    file: str | Path,
    *,
    out: str | Path,
    refiner: str | Path | None = None,
    seed: int = 0,
    steps: int | None = None,
    skip_invalid: bool = False,
    workers: int = 1,
    device: str = "auto",
    progress: bool = True,
) -> Outcome:
    """Refine the crystals of a file or folder into a run folder.

    Meant for rough crystals such as a prior's samples; one that is relaxed already usually comes
    out worse.

    Args:
        file: anything that `flowllm.data.read` reads.
        out: as for `sample`.
        refiner: folder or hub id; None takes the bundled one.
        seed: crystal k draws its noise from (seed, k).
        steps: integration steps; None takes the refiner's own.
        skip_invalid: leave out bad rows of `file`, and crystals larger than any the refiner was
            trained on, instead of stopping.
        workers, device, progress: as for `sample`.

    Raises:
        UserError, RefinerError: bad file, model or folder.
    """
    file = Path(file)
    refiner_folder = resolve(refiner, BUNDLED_REFINER)
    load = functools.partial(load_models, None, refiner_folder, pick_device(device))
    model = load()
    crystals = read(file, skip_invalid=skip_invalid, max_atoms=model.refiner.config.max_atoms)
    manifest = {
        "command": "refine",
        "device": pick_device(device),
        "input": sha256_path(file),
        "refiner": identity(refiner_folder),
        "seed": seed,
        "steps": steps,
        "skip_invalid": skip_invalid,
        "niggli_tolerance": NIGGLI_TOLERANCE,
    }
    folder = run_job(
        out,
        manifest=manifest,
        total=len(crystals),
        batch_size=BATCH_SIZE,
        work=functools.partial(_refine_batch, list(crystals), seed, steps),
        setup=load if workers > 1 else lambda: model,
        info=versions(),
        workers=workers,
        progress=progress,
        description="refining",
    )
    return _publish(folder)


def load_models(prior: Path | None, refiner: Path | None, device: str) -> FlowLLM:
    """The models that a job needs, from their folders."""
    return FlowLLM(
        None if prior is None else Prior.from_pretrained(prior, device=device),
        None if refiner is None else Refiner.from_pretrained(refiner, device=device),
    )


def _sample_batch(
    settings: Settings, model: FlowLLM, index: int, start: int, count: int
) -> list[dict[str, Any]]:
    return [s.to_record() for s in model.sample_batch(settings, index, start, count)]


def _refine_batch(
    crystals: Sequence[Crystal],
    seed: int,
    steps: int | None,
    model: FlowLLM,
    index: int,
    start: int,
    count: int,
) -> list[dict[str, Any]]:
    part = crystals[start : start + count]
    results = refine_structures(  # not `model.refine`: `read` has reduced the cells already
        model.refiner, [c.structure for c in part], seed=seed, first_index=start, steps=steps
    )
    return [
        Sample(
            id=crystal.id,
            prompt="",
            text="",
            prior_structure=crystal.structure,
            structure=structure,
            failure=failure,
        ).to_record()
        for crystal, (structure, failure) in zip(part, refined(results), strict=True)
    ]


def _publish(folder: RunFolder) -> Outcome:
    """Write the files for people from the shards, each whole or not at all."""
    samples = [Sample.from_record(record) for record in folder.records()]
    crystals = [Crystal(id=s.id, structure=s.structure) for s in samples if s.structure is not None]
    folder.publish("samples.parquet", functools.partial(_write_table, samples))
    if crystals:
        folder.publish("samples.extxyz", lambda path: write(crystals, path))
        folder.publish("cif", lambda path: _write_cifs(crystals, path))
    failures = Counter(s.failure for s in samples if s.failure is not None)
    return Outcome(folder.path, crystals, failures)


def _write_table(samples: Sequence[Sample], path: Path) -> None:
    rows = []
    for sample in samples:
        final = sample.structure
        row = {**vars(sample), "rejects": json.dumps(sample.rejects)}
        for name in ("structure", "prior_structure"):
            row[name] = None if row[name] is None else row[name].to(fmt="json")
        if final is not None:
            row["cif"] = cif_text(final)
            row["formula"] = final.composition.reduced_formula
            row["num_atoms"] = len(final)
        rows.append(row)
    pq.write_table(pa.Table.from_pylist(rows, schema=_TABLE), path, compression="zstd")


def _write_cifs(crystals: Sequence[Crystal], path: Path) -> None:
    names = _file_names([crystal.id for crystal in crystals])
    write(
        [Crystal(id=n, structure=c.structure) for n, c in zip(names, crystals, strict=True)], path
    )


def _file_names(ids: Sequence[str]) -> list[str]:
    """A name for each id that every file system takes, each its own."""
    names: list[str] = []
    taken: set[str] = set()
    for number, name in enumerate(ids):
        plain = re.sub(r"[^A-Za-z0-9._-]", "_", name)[:_LONGEST_NAME]
        plain = plain if re.match(r"\w", plain) else f"_{plain}"
        while plain.casefold() in taken:  # some file systems do not tell CO from Co
            plain = f"{plain}_{number}"
        taken.add(plain.casefold())
        names.append(plain)
    return names
