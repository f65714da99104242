"""Run folders of sampling and refining: resumable, with files in common formats at the end.

Everything that can be checked without the models is checked before torch is imported.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flowllm.errors import UserError
from flowllm.generation.capabilities import check_request
from flowllm.generation.config import SMALL_BATCH, RefinementConfig, SamplingConfig
from flowllm.generation.engines import Engine, check_engine, load_prior
from flowllm.generation.precision import check_precision, check_resumed, refiner_precision
from flowllm.hub.locate import (
    BUNDLED_PRIOR,
    BUNDLED_REFINER,
    announce,
    identity,
    resolve,
    resolve_pair,
)
from flowllm.runs.cif_form import CifForm, check_cif_form
from flowllm.runs.identity import check_folder
from flowllm.runs.parts import check_placement
from flowllm.runs.sharded import MANIFEST, Batch, RunFolder, default_batch_size, run_job
from flowllm.system.device import check_device, pick_device
from flowllm.system.options import check_count, from_arguments
from flowllm.system.pools import check_gpus
from flowllm.system.versions import versions
from llm_prior import TextFormat
from llm_prior.settings import read_settings

if TYPE_CHECKING:
    from flowllm.crystals.crystal import Crystal
    from flowllm.crystals.formulas import KnownFormulas
    from flowllm.generation.analogues import Analogues
    from flowllm.generation.pipeline import FlowLLM
    from flowllm.runs.outputs import Outcome

logger = logging.getLogger(__name__)


def run_sampling(
    n: int,
    config: SamplingConfig | None = None,
    *,
    out: str | Path,
    prior: str | Path | None = None,
    refiner: str | Path | None = None,
    cif: CifForm = "symmetrized",
    workers: int = 1,
    executor: str = "local",
    part: str | None = None,
    device: str = "auto",
    progress: bool = True,
    **options: Any,
) -> Outcome:
    """Generate `n` crystals into a run folder. The same call resumes a killed run.

    Args:
        n: number of crystals.
        config: the request; None: the defaults.
        out: folder for `manifest.json`, `shards/` and, at the end, `samples.parquet`,
            `samples.extxyz` and `cif/`.
        prior: folder or hub id of a prior or a pair; None takes the bundled prior.
        refiner: folder or hub id; None takes that of the pair that `prior` names, else the bundled
            one.
        cif: form of the files in `cif/`; see `flowllm.runs.outputs.publish_crystals`.
        workers: batches at work at a time; with the executor `local`, processes. They do not change
            the result.
        executor: where they work: `local`, `slurm` or `MODULE:FACTORY`; see
            `flowllm.system.pools.check_executor`.
        part: `I/N` computes every N-th shard, beside other parts in the same folder.
        device: `cpu`, `cuda`, `cuda:NUMBER` or `auto`.
        progress: show a progress bar on a terminal.
        **options: fields of `SamplingConfig` and conditions; they replace those of `config`.

    Returns:
        The crystals and the counts of failures.

    Raises:
        UserError: if an option, a file, the name of a model or the folder is bad.
        PriorError: if a condition or the prior is bad.
        RefinerError: if the refiner is bad.
        Unfinished: at the end of a part while other parts are missing.
    """
    config = SamplingConfig.of(config, **options)
    check_count("n", n, 0)
    check_placement(workers, executor, part)
    check_cif_form(cif)
    if refiner is not None and not config.refine:
        raise UserError("a refiner is given, but not used; refine, or leave the refiner out")
    if prior is not None and config.like is not None:
        raise UserError("like takes the place of a prior; leave one of them out")
    check_folder(out, MANIFEST)
    check_device(device)
    prior_folder: Path | None = None
    refiner_folder: Path | None = None
    if config.like is not None:
        refiner_folder = resolve(refiner, BUNDLED_REFINER) if config.refine else None
    elif config.refine:
        prior_folder, refiner_folder = resolve_pair(prior, refiner)
    else:
        prior_folder = resolve(prior, BUNDLED_PRIOR)

    from flowllm.crystals.cells import NIGGLI_TOLERANCE
    from flowllm.crystals.formulas import KnownFormulas
    from flowllm.energy.calculators import potential_identity

    analogues = None
    if prior_folder is not None:
        settings = read_settings(str(prior_folder))
        check_request(config, TextFormat(**settings["text"]), settings.get("info", {}))
        check_engine(config.engine, prior_folder)
    else:
        from flowllm.generation.analogues import Analogues

        analogues = Analogues(config)
        analogues.check(n, None)
    known = KnownFormulas(config.novel_to)
    known.check(config.conditions)
    potential = config.ranking_potential
    ranked_by = None if potential is None else potential_identity(potential)
    where = pick_device(device)  # the first to import torch
    check_gpus(where, workers, executor)
    load = functools.partial(
        load_models, prior_folder, refiner_folder, where, potential, engine=config.engine
    )
    model = load(check=True)
    precision = refiner_precision(model.refiner)
    check_resumed(out, precision)
    models: dict[str, Any] = {"prior": None, "refiner": None}
    parameters = {"prior": 0}
    if prior_folder is not None:
        assert model.prior is not None
        models["prior"] = identity(prior_folder)
        parameters["prior"] = announce("prior", prior_folder, models["prior"], model.prior)
    if refiner_folder is not None:
        assert model.refiner is not None
        models["refiner"] = identity(refiner_folder)
        parameters["refiner"] = announce(
            "refiner", refiner_folder, models["refiner"], model.refiner
        )
    model.prepare(config, known)  # before the folder is claimed
    model.check_analogues(config, analogues, n)
    manifest = {
        "command": "sample",
        "device": where,  # another one draws other numbers
        "precision": precision,
        **models,
        "niggli_tolerance": NIGGLI_TOLERANCE,
        **config.identity(),
        "novel_to": known.files,
        "like": None if analogues is None else analogues.file,
        **_template_files(config),
        "potential": ranked_by,
        "cif": cif,
    }
    folder = run_job(
        out,
        manifest=manifest,
        total=n,
        batch_size=config.batch_size_for(n, parameters["prior"]),
        work=functools.partial(_sample_batch, config, known, analogues),
        setup=functools.partial(load, precision=precision),
        loaded=model,
        info={**versions(), "parameters": parameters},
        workers=workers,
        executor=executor,
        part=part,
        device=where,
        progress=progress,
        description="sampling",
    )
    return publish_samples(folder)


def _template_files(config: SamplingConfig) -> dict[str, Any]:
    """Return the hashes of the files that the volumes, or the crystals of `like`, come from."""
    from flowllm.templates.ranking import ranking_sha256
    from flowllm.templates.volumes import template_files

    if config.like is not None:
        return {"templates": None, "ranking": ranking_sha256()}
    if config.refine and config.volume == "templates":
        return dict(template_files())
    return {"templates": None, "ranking": None}


def run_refinement(
    file: str | Path,
    config: RefinementConfig | None = None,
    *,
    out: str | Path,
    refiner: str | Path | None = None,
    skip_invalid: bool = False,
    limit: int | None = None,
    cif: CifForm = "symmetrized",
    workers: int = 1,
    executor: str = "local",
    part: str | None = None,
    device: str = "auto",
    progress: bool = True,
    **options: Any,
) -> Outcome:
    """Refine the crystals of a file, folder or run into a run folder.

    Meant for rough crystals such as the samples of a prior. A relaxed crystal usually comes out
    worse.

    Args:
        file: anything that `flowllm.read` reads.
        config: settings of refining; None: the defaults.
        out: run folder, as for `run_sampling`.
        refiner: folder or hub id; None takes the bundled refiner.
        skip_invalid: leave out bad crystals, and those with more atoms than the refiner was
            trained on, instead of stopping at the first.
        limit: read the first so many crystals only.
        cif: as for `run_sampling`.
        workers: batches at work at a time; with the executor `local`, processes. They do not change
            the result.
        executor: where they work: `local`, `slurm` or `MODULE:FACTORY`; see
            `flowllm.system.pools.check_executor`.
        part: `I/N` computes every N-th shard, beside other parts in the same folder.
        device: `cpu`, `cuda`, `cuda:NUMBER` or `auto`.
        progress: show a progress bar on a terminal.
        **options: fields of `RefinementConfig`; they replace those of `config`.

    Returns:
        The crystals and the counts of failures.

    Raises:
        UserError: if the file, an option, the name of the model or the folder is bad.
        RefinerError: if the refiner is bad.
        Unfinished: at the end of a part while other parts are missing.
    """
    config = from_arguments(RefinementConfig, options, base=config)
    check_placement(workers, executor, part)
    check_cif_form(cif)
    if limit is not None:
        check_count("limit", limit, 1)
    check_folder(out, MANIFEST)
    check_device(device)

    from flowllm.crystals.cells import NIGGLI_TOLERANCE
    from flowllm.crystals.io import check_input, read
    from flowllm.crystals.run_folders import input_hash

    check_input(file)
    file = Path(file)
    refiner_folder = resolve(refiner, BUNDLED_REFINER)
    where = pick_device(device)  # the first to import torch
    check_gpus(where, workers, executor)
    load = functools.partial(load_models, None, refiner_folder, where)
    model = load()
    assert model.refiner is not None
    precision = refiner_precision(model.refiner)
    check_resumed(out, precision)
    found = identity(refiner_folder)
    parameters = {"refiner": announce("refiner", refiner_folder, found, model.refiner)}
    if not model.refiner.config.base.from_crystals:
        logger.warning(
            "this refiner starts from noise: it uses the atoms of %s, but not their positions", file
        )
    model.refiner.config.integration.but(**config.integration)  # raises for impossible settings
    crystals = read(
        file,
        skip_invalid=skip_invalid,
        limit=limit,
        max_atoms=model.refiner.config.max_atoms,
    )
    manifest = {
        "command": "refine",
        "device": where,
        "precision": precision,
        "input": input_hash(file),
        "limit": limit,
        "refiner": found,
        **vars(config),
        "skip_invalid": skip_invalid,
        "niggli_tolerance": NIGGLI_TOLERANCE,
        "cif": cif,
    }
    folder = run_job(
        out,
        manifest=manifest,
        total=len(crystals),
        batch_size=SMALL_BATCH if config.score else default_batch_size(len(crystals)),
        work=functools.partial(_refine_batch, list(crystals), config),
        setup=functools.partial(load, precision=precision),
        loaded=model,
        info={**versions(), "parameters": parameters},
        workers=workers,
        executor=executor,
        part=part,
        device=where,
        progress=progress,
        description="refining",
    )
    return publish_refined(folder)


def load_models(
    prior: Path | None,
    refiner: Path | None,
    device: str,
    potential: str | None = None,
    *,
    engine: Engine = "plain",
    check: bool = False,
    precision: str | None = None,
) -> FlowLLM:
    """Load the models of a run from their folders, and the potential that ranks.

    Args:
        prior: folder of the prior, or None.
        refiner: folder of the refiner, or None.
        device: `cpu`, `cuda` or `cuda:NUMBER`.
        potential: name of the potential, or None.
        engine: what writes the texts of the prior.
        check: test the potential.
        precision: of the run, see `refiner_precision`; None: any.

    Returns:
        The models together.

    Raises:
        UserError: if the potential is bad, or this machine refines in another precision.
        PriorError: if the prior is bad.
        RefinerError: if the refiner is bad.
    """
    from flowllm.generation.pipeline import FlowLLM
    from flowllm.generation.selection import RankingPotential
    from rfm import Refiner

    loaded = None if refiner is None else Refiner.from_pretrained(refiner, device=device)
    check_precision(refiner_precision(loaded), precision, "the run")
    return FlowLLM(
        None if prior is None else load_prior(prior, device, engine),
        loaded,
        None if potential is None else RankingPotential.load(potential, check=check),
    )


def _sample_batch(
    config: SamplingConfig,
    known: KnownFormulas,
    analogues: Analogues | None,
    model: FlowLLM,
    batch: Batch,
    progress: Callable[[int], None],
) -> list[dict[str, Any]]:
    indices = range(batch.start, batch.start + batch.count)
    samples = model.sample_batch(config, known, indices, progress, analogues=analogues)
    return [sample.to_record().to_json() for sample in samples]


def _refine_batch(
    crystals: Sequence[Crystal],
    config: RefinementConfig,
    model: FlowLLM,
    batch: Batch,
    progress: Callable[[int], None],
) -> list[dict[str, Any]]:
    from flowllm.generation.sample import Sample
    from rfm import refine

    assert model.refiner is not None
    indices = range(batch.start, batch.start + batch.count)
    part = [crystals[index] for index in indices]
    results = refine(  # not `FlowLLM.refine`, as `read` has reduced the cells already
        model.refiner,
        [crystal.structure for crystal in part],
        seed=config.seed,
        indices=indices,
        integration=model.refiner.config.integration.but(**config.integration),
        trajectory=config.trajectory,
        score=config.score,
        on_finished=progress,
        symmetry=config.symmetry,
    )
    records = []
    for crystal, result in zip(part, results, strict=True):
        sample = Sample(id=crystal.id, prompt="", text="", prior_structure=crystal.structure)
        sample.add_refinement(result)
        records.append(sample.to_record().to_json())
    return records


def publish_samples(folder: RunFolder) -> Outcome:
    """Write the files of a run of samples whose shards all exist.

    Args:
        folder: the run.

    Returns:
        The crystals and the counts of failures.

    Raises:
        UserError: if shards are missing or damaged.
    """
    run = folder.run
    columns = ["prompt", "text", "attempts"] if run["like"] is None else ["template"]
    if run["best_of"] > 1:
        columns.append("rank_score")
    return _publish(folder, columns, scored=run["score"] or run["rank"] == "flow")


def publish_refined(folder: RunFolder) -> Outcome:
    """Write the files of a run of refinements whose shards all exist; see `publish_samples`.

    Args:
        folder: the run.

    Returns:
        The crystals and the counts of failures.

    Raises:
        UserError: if shards are missing or damaged.
    """
    return _publish(folder, [], scored=folder.run["score"])


def _publish(folder: RunFolder, columns: list[str], *, scored: bool) -> Outcome:
    import pyarrow as pa

    from flowllm.generation.sample import SCORE_COLUMNS
    from flowllm.runs.outputs import publish_crystals

    types = {
        "prompt": pa.string(),
        "text": pa.string(),
        "template": pa.string(),
        "attempts": pa.int64(),
    }
    names = [*columns, *(SCORE_COLUMNS if scored else ())]
    columns_by_name = {name: types.get(name, pa.float64()) for name in names}
    return publish_crystals(folder, columns_by_name, cif=folder.run["cif"], table_only=columns)
