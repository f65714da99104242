"""Run folders of sampling and refining: sharded, resumable, with files for everybody at the end."""

from __future__ import annotations

import functools
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from flowllm.data import Crystal, read, write
from flowllm.files import sha256_file, sha256_folder
from flowllm.jobs import RunFolder, run_job
from flowllm.models import BUNDLED_PRIOR, BUNDLED_REFINER, identity, resolve
from flowllm.sampler import (
    BATCH_SIZE,
    FlowLLM,
    Sample,
    Settings,
    check_request,
    merge_conditions,
    pick_device,
)
from flowllm.versions import versions
from llm_prior import DEFAULT_ATTEMPTS, DEFAULT_TEMPERATURE, DEFAULT_TOP_P, Prior
from rfm import Refiner


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
    steps: int | None = None,
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
        temperature, top_p, max_attempts: see `llm_prior.propose`.
        steps: integration steps; None takes the refiner's own.
        workers: processes.
        device: `cpu`, `cuda` or `auto`.
        progress: show a bar on a terminal.
        **conditions: further ones, such as `spacegroup=225`.

    Raises:
        UserError, PriorError, RefinerError: bad request, models or folder.
    """
    settings = Settings(
        conditions=merge_conditions(formula, composition, conditions),
        refine=refine,
        seed=seed,
        temperature=temperature,
        top_p=top_p,
        max_attempts=max_attempts,
        steps=steps,
    )
    prior_folder = resolve(prior, BUNDLED_PRIOR)
    refiner_folder = resolve(refiner, BUNDLED_REFINER) if refine else None
    load = functools.partial(load_models, prior_folder, refiner_folder, pick_device(device))
    model = load()
    check_request(model.prior, settings.conditions)
    manifest = {
        "command": "sample",
        "prior": identity(prior_folder),
        "refiner": identity(refiner_folder) if refiner_folder else None,
        **asdict(settings),
    }
    folder = run_job(
        out,
        manifest=manifest,
        total=n,
        batch_size=BATCH_SIZE,
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

    Args:
        file: anything that `flowllm.data.read` reads.
        out: as for `sample`.
        refiner: folder or hub id; None takes the bundled one.
        seed: crystal k draws its noise from (seed, k).
        steps: integration steps; None takes the refiner's own.
        skip_invalid: leave out bad rows of `file` instead of stopping.
        workers, device, progress: as for `sample`.

    Raises:
        UserError, RefinerError: bad file, model or folder.
    """
    file = Path(file)
    crystals = read(file, skip_invalid=skip_invalid)
    refiner_folder = resolve(refiner, BUNDLED_REFINER)
    load = functools.partial(load_models, None, refiner_folder, pick_device(device))
    manifest = {
        "command": "refine",
        "input": sha256_folder(file) if file.is_dir() else sha256_file(file),
        "refiner": identity(refiner_folder),
        "seed": seed,
        "steps": steps,
        "skip_invalid": skip_invalid,
    }
    folder = run_job(
        out,
        manifest=manifest,
        total=len(crystals),
        batch_size=BATCH_SIZE,
        work=functools.partial(_refine_batch, list(crystals), seed, steps),
        setup=load,
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
    results = model.refine([c.structure for c in part], seed=seed, steps=steps, first_index=start)
    return [
        Sample(
            id=crystal.id,
            prompt="",
            text="",
            prior_structure=crystal.structure,
            structure=result.structure,
            failure=f"refiner: {result.failure}" if result.failure else None,
        ).to_record()
        for crystal, result in zip(part, results, strict=True)
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
        row = sample.to_record()
        final = sample.structure
        for name in ("structure", "prior_structure"):
            structure = getattr(sample, name)
            row[name] = None if structure is None else structure.to(fmt="json")
        row["rejects"] = str(sample.rejects) if sample.rejects else ""
        row["cif"] = None if final is None else final.to(fmt="cif")
        row["formula"] = None if final is None else final.composition.reduced_formula
        row["num_atoms"] = None if final is None else len(final)
        rows.append(row)
    pd.DataFrame(rows).to_parquet(path, index=False)


def _write_cifs(crystals: Sequence[Crystal], path: Path) -> None:
    write([Crystal(id=_file_name(c.id), structure=c.structure) for c in crystals], path)


def _file_name(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]", "_", name)
