"""Run folders of sampling and refining: sharded, resumable, with files for everybody at the end."""

from __future__ import annotations

import functools
import logging
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from flowllm.crystals.cells import NIGGLI_TOLERANCE
from flowllm.crystals.formulas import KnownFormulas
from flowllm.crystals.io import Crystal, read
from flowllm.energy.calculators import potential_identity
from flowllm.errors import UserError
from flowllm.generation.capabilities import check_models
from flowllm.generation.config import Rank, Settings, merge_conditions, symbols
from flowllm.generation.pipeline import BATCH_SIZE, FlowLLM
from flowllm.generation.sample import Sample
from flowllm.generation.selection import RankingPotential
from flowllm.hub.locate import BUNDLED_PRIOR, BUNDLED_REFINER, announce, identity, resolve
from flowllm.runs.outcome import Outcome
from flowllm.runs.refined import structure_or_failure
from flowllm.runs.sample_files import publish_samples
from flowllm.runs.sharded import run_job
from flowllm.system.device import pick_device
from flowllm.system.files import sha256_path
from flowllm.system.versions import versions
from llm_prior import DEFAULT_ATTEMPTS, DEFAULT_TEMPERATURE, DEFAULT_TOP_P, Prior
from rfm import Refiner
from rfm import refine as refine_structures

logger = logging.getLogger(__name__)


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
    novel_to: str | Path | Sequence[str | Path] = (),
    best_of: int = 1,
    rank: Rank = "prior",
    potential: str | None = None,
    steps: int | None = None,
    method: str | None = None,
    position_slope: float | None = None,
    cell_slope: float | None = None,
    trajectory: bool = False,
    score: bool = False,
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
        novel_to: files of crystals, such as a training set; what has the reduced formula of one of
            them is drawn again, and counted as `known_formula`.
        best_of: candidates drawn for each crystal, all of the composition of the first.
        rank: which finished candidate stays, the likeliest under the `prior`, the one of lowest
            `energy`, or the likeliest under the `flow` (slow); see `flowllm.generation.selection`.
        potential: whose energy, see `flowllm.energy.calculators.load_calculator`; None is `chgnet`.
        steps, method, position_slope, cell_slope, trajectory, score: see `refine`.
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
    known = KnownFormulas(novel_to)
    settings = Settings(
        conditions=merge_conditions(formula, composition, conditions),
        refine=refine,
        seed=seed,
        temperature=temperature,
        top_p=top_p,
        max_attempts=max_attempts,
        constrain=constrain,
        exclude_elements=symbols(exclude_elements),
        novel_to=known.files,
        best_of=best_of,
        rank=rank,
        potential=potential,
        steps=steps,
        method=method,
        position_slope=position_slope,
        cell_slope=cell_slope,
        trajectory=trajectory,
        score=score,
    )
    known.check(settings.conditions)
    prior_folder = resolve(prior, BUNDLED_PRIOR)
    refiner_folder = resolve(refiner, BUNDLED_REFINER) if refine else None
    load = functools.partial(
        load_models,
        prior_folder,
        refiner_folder,
        pick_device(device),
        settings.ranking_potential,
    )
    model = load(check=True)
    models = {"prior": identity(prior_folder), "refiner": None}
    parameters = {"prior": announce("prior", prior_folder, models["prior"], model.prior.model)}
    if refiner_folder is not None:
        models["refiner"] = identity(refiner_folder)
        parameters["refiner"] = announce(
            "refiner", refiner_folder, models["refiner"], model.refiner
        )
    # Before the folder is claimed.
    check_models(settings, composition, model.prior, model.refiner, model.potential)
    manifest = {
        "command": "sample",
        "device": pick_device(device),  # another one draws other numbers
        **models,
        "niggli_tolerance": NIGGLI_TOLERANCE,
        **asdict(settings),
    }
    if settings.ranking_potential is not None:
        manifest["potential"] = potential_identity(settings.ranking_potential)
    folder = run_job(
        out,
        manifest=manifest,
        total=n,
        batch_size=batch_size,
        work=functools.partial(_sample_batch, settings, known),
        setup=load if workers > 1 else lambda: model,
        info={**versions(), "parameters": parameters},
        workers=workers,
        progress=progress,
        description="sampling",
    )
    return publish_samples(folder)


def refine(
    file: str | Path,
    *,
    out: str | Path,
    refiner: str | Path | None = None,
    seed: int = 0,
    steps: int | None = None,
    method: str | None = None,
    position_slope: float | None = None,
    cell_slope: float | None = None,
    trajectory: bool = False,
    score: bool = False,
    skip_invalid: bool = False,
    workers: int = 1,
    device: str = "auto",
    progress: bool = True,
) -> Outcome:
    """Refine the crystals of a file or folder into a run folder.

    Meant for rough crystals such as a prior's samples; one that is relaxed already usually comes
    out worse.

    Args:
        file: anything that `flowllm.crystals.io.read` reads.
        out: as for `sample`.
        refiner: folder or hub id; None takes the bundled one.
        seed: crystal k draws its noise from (seed, k).
        steps, method, position_slope, cell_slope: of the integration, see `rfm.integrate`; None
            takes the refiner's own.
        trajectory: write every state on the way, with its time, to `trajectories/NAME.extxyz`.
        score: add the log-likelihood of each refined crystal under the flow (`rfm.likelihood`), in
            all and per degree of freedom; takes many times as long as refining. Compare it among
            crystals of one composition.
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
    found = identity(refiner_folder)
    parameters = {"refiner": announce("refiner", refiner_folder, found, model.refiner)}
    if not model.refiner.config.base.from_crystals:
        logger.warning(
            "this refiner starts from noise: it uses the atoms of %s, not where they are", file
        )
    integration = {
        "steps": steps,
        "method": method,
        "position_slope": position_slope,
        "cell_slope": cell_slope,
    }
    model.refiner.config.integration.but(**integration)  # refuses what cannot be
    options = {**integration, "trajectory": trajectory, "score": score}
    crystals = read(file, skip_invalid=skip_invalid, max_atoms=model.refiner.config.max_atoms)
    manifest = {
        "command": "refine",
        "device": pick_device(device),
        "input": sha256_path(file),
        "refiner": found,
        "seed": seed,
        **options,
        "skip_invalid": skip_invalid,
        "niggli_tolerance": NIGGLI_TOLERANCE,
    }
    folder = run_job(
        out,
        manifest=manifest,
        total=len(crystals),
        batch_size=BATCH_SIZE,
        work=functools.partial(_refine_batch, list(crystals), seed, options),
        setup=load if workers > 1 else lambda: model,
        info={**versions(), "parameters": parameters},
        workers=workers,
        progress=progress,
        description="refining",
    )
    return publish_samples(folder)


def load_models(
    prior: Path | None,
    refiner: Path | None,
    device: str,
    potential: str | None = None,
    *,
    check: bool = False,
) -> FlowLLM:
    """The models that a job needs, from their folders, and what ranks; `check` tests the latter."""
    return FlowLLM(
        None if prior is None else Prior.from_pretrained(prior, device=device),
        None if refiner is None else Refiner.from_pretrained(refiner, device=device),
        None if potential is None else RankingPotential.load(potential, check=check),
    )


def _sample_batch(
    settings: Settings,
    known: KnownFormulas,
    model: FlowLLM,
    index: int,
    start: int,
    count: int,
) -> list[dict[str, Any]]:
    return [s.to_record() for s in model.sample_batch(settings, known, index, start, count)]


def _refine_batch(
    crystals: Sequence[Crystal],
    seed: int,
    options: dict[str, Any],
    model: FlowLLM,
    index: int,
    start: int,
    count: int,
) -> list[dict[str, Any]]:
    part = crystals[start : start + count]
    results = refine_structures(  # not `model.refine`: `read` has reduced the cells already
        model.refiner, [c.structure for c in part], seed=seed, first_index=start, **options
    )
    records = []
    for crystal, result in zip(part, results, strict=True):
        structure, failure = structure_or_failure(result)
        sample = Sample(
            id=crystal.id,
            prompt="",
            text="",
            prior_structure=crystal.structure,
            structure=structure,
            failure=failure,
            refinement=result,
        )
        records.append(sample.to_record())
    return records
