"""Run folders of predictions: resumable, a shard for each formula.

Everything that can be checked without the models is checked before torch is imported.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flowllm.errors import FlowLLMError, UserError, one_line
from flowllm.generation.precision import check_resumed, refiner_precision
from flowllm.generation.sampling_run import load_models
from flowllm.hub.locate import BUNDLED_PRIOR, announce, identity, resolve, resolve_pair
from flowllm.prediction.config import MATERIALS_PROJECT, PredictionConfig
from flowllm.prediction.outputs import PredictionRun, publish_predictions, record_of
from flowllm.runs.cif_form import CifForm, check_cif_form
from flowllm.runs.identity import check_folder
from flowllm.runs.parts import check_placement
from flowllm.runs.sharded import MANIFEST, Batch, Progress, run_job
from flowllm.system.device import check_device, pick_device
from flowllm.system.files import sha256_file
from flowllm.system.isolation import SetupFailed
from flowllm.system.options import check_count, from_arguments, specs
from flowllm.system.pools import check_gpus
from flowllm.system.versions import versions

if TYPE_CHECKING:
    from flowllm.evaluation.energies import EnergyModel
    from flowllm.generation.pipeline import FlowLLM
    from flowllm.prediction.prediction import Energies
    from flowllm.templates.library import TemplateLibrary


@dataclass(frozen=True, kw_only=True)
class _Models:
    """What a process needs for its formulas."""

    model: FlowLLM | None
    library: TemplateLibrary
    energies: Energies | None


def predict(
    formulas: str | Path | Sequence[str | Path],
    n: int = 5,
    config: PredictionConfig | None = None,
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
) -> PredictionRun:
    """Predict the structures of formulas into a run folder. The same call resumes a killed run.

    The candidates for a formula come from templates and from the prior. A formula that fails is
    recorded with its reason, and the others go on.

    Args:
        formulas: one or several, and files of them; see `flowllm.prediction.formulas`.
        n: structures for each formula, the best first.
        config: the request; None: the defaults.
        out: folder for `manifest.json`, `shards/` and, at the end, `predictions.parquet`,
            `predictions.extxyz`, `cif/FORMULA-RANK.cif` and, if plotly is installed, `report.html`.
        prior: folder or hub id of a prior or a pair; None takes the bundled prior.
        refiner: folder or hub id; None takes that of the pair that `prior` names, else the bundled
            one.
        cif: form of the files in `cif/`; see `flowllm.runs.outputs.publish_crystals`.
        workers: formulas at a time, each in a process; it does not change the result.
        executor: where they work: `local`, `slurm` or `MODULE:FACTORY`; see
            `flowllm.system.pools.check_executor`.
        part: `I/N` computes every N-th shard, beside other parts in the same folder.
        device: of the models: `cpu`, `cuda`, `cuda:NUMBER` or `auto`.
        progress: show a progress bar on a terminal.
        **options: fields of `PredictionConfig`; they replace those of `config`.

    Returns:
        What was found for each formula.

    Raises:
        UserError: if a formula, an option, a file, a potential or the folder is bad, or no formula
            fits into the largest cell.
        PriorError: if the prior is bad.
        RefinerError: if the refiner is bad.
        Unfinished: at the end of a part while other parts are missing.
    """
    config = from_arguments(PredictionConfig, options, base=config)
    check_count("n", n, 1)
    check_placement(workers, executor, part)
    check_cif_form(cif)
    check_use(config, prior=prior, refiner=refiner)
    check_folder(out, MANIFEST)
    check_device(device)
    from flowllm.prediction.candidates import check_sources
    from flowllm.prediction.formulas import read_formulas
    from flowllm.prediction.resources import (
        library_path,
        load_energies,
        read_hull_data,
        read_library,
    )
    from flowllm.templates.ranking import ranking_sha256

    asked = read_formulas(formulas)
    _check_sizes(asked, config)
    library_file = library_path(config)
    library = read_library(library_file)  # before the models are loaded
    prior_folder: Path | None = None
    refiner_folder: Path | None = None
    if config.num_samples and config.refine:
        prior_folder, refiner_folder = resolve_pair(prior, refiner)
    elif config.num_samples:
        prior_folder = resolve(prior, BUNDLED_PRIOR)
    hull_data = read_hull_data(config, asked)
    where = pick_device(device) if config.num_samples else "cpu"  # the first to import torch
    check_gpus(where, workers, executor)
    energy = load_energies(config, *hull_data)
    model = None
    if prior_folder is not None:
        model = load_models(prior_folder, refiner_folder, where)
    check_sources(model, config)
    models = _identities(model, prior_folder, refiner_folder)
    check_resumed(out, models["precision"])
    without_hull = None
    if energy is not None:
        without_hull = dataclasses.replace(energy, hull=None, references=None)
    manifest = {
        "command": "predict",
        "device": where,
        **models,
        **_request(config),
        "formulas": asked,
        "n": n,
        "templates": {"name": library_file.name, "sha256": sha256_file(library_file)},
        "ranking": ranking_sha256(),
        "weights": _weights(),
        "potential": None if energy is None else dict(energy.identity),
        "hull": _hull_identity(config),
        "references": _file_identity(config.references),
        "cif": cif,
    }
    context = functools.partial(
        _load,
        *(prior_folder, refiner_folder, where, models["precision"]),
        library_file,
        without_hull,
    )
    with contextlib.ExitStack() as stack:
        energies = _isolated(without_hull, stack)
        folder = run_job(
            out,
            manifest=manifest,
            total=len(asked),
            batch_size=1,
            work=functools.partial(_predict_batch, asked, n, config),
            setup=context,
            loaded=_Models(model=model, library=library, energies=energies),
            info=versions(),
            workers=workers,
            executor=executor,
            part=part,
            device=where,
            progress=progress,
            description="predicting",
        )
    return publish_predictions(folder, energy, cif)


def check_use(config: PredictionConfig, *, prior: object, refiner: object) -> None:
    """Check that models which are given are used.

    Args:
        config: the request.
        prior: as it was given, or None.
        refiner: as it was given, or None.

    Raises:
        UserError: if one is not used.
    """
    if prior is not None and not config.num_samples:
        raise UserError("a prior is given, but num_samples is 0; leave one of them out")
    if refiner is not None and not (config.num_samples and config.refine):
        raise UserError("a refiner is given, but not used; refine samples, or leave it out")


def _check_sizes(formulas: Sequence[str], config: PredictionConfig) -> None:
    """Raise the first problem if none of the formulas fits."""
    from flowllm.prediction.candidates import check_units

    problems = []
    for formula in formulas:
        try:
            check_units(formula, config)
        except UserError as error:
            problems.append(error)
    if len(problems) == len(formulas):
        raise problems[0]


def _request(config: PredictionConfig) -> dict[str, Any]:
    """Return the options as plain JSON; equal requests give equal JSON."""
    left_out = ("templates", "potential", "hull", "references", "crystal_system", "spacegroup")
    values = {name: getattr(config, name) for name in specs(config) if name not in left_out}
    return {
        **values,
        "z": list(config.z),
        "exclude_ids": list(config.exclude_ids),
        "spacegroups": list(config.spacegroups),
    }


def _weights() -> dict[str, float]:
    from flowllm.prediction.scores import fitted

    return dataclasses.asdict(fitted())


def _hull_identity(config: PredictionConfig) -> dict[str, str] | None:
    return {"name": MATERIALS_PROJECT} if config.hull_is_online else _file_identity(config.hull)


def _file_identity(path: Path | None) -> dict[str, str] | None:
    if path is None:
        return None
    from flowllm.crystals.run_folders import input_hash

    return {"name": path.name, "sha256": input_hash(path)}


def _identities(model: FlowLLM | None, prior: Path | None, refiner: Path | None) -> dict[str, Any]:
    found: dict[str, Any] = {"prior": None, "refiner": None, "precision": None}
    if model is not None and prior is not None:
        assert model.prior is not None
        found["prior"] = identity(prior)
        announce("prior", prior, found["prior"], model.prior)
    if model is not None and refiner is not None:
        assert model.refiner is not None
        found["refiner"] = identity(refiner)
        announce("refiner", refiner, found["refiner"], model.refiner)
        found["precision"] = refiner_precision(model.refiner)
    return found


def _load(
    prior: Path | None,
    refiner: Path | None,
    device: str,
    precision: str | None,
    library: Path,
    energy: EnergyModel | None,
) -> _Models:
    from flowllm.prediction.resources import read_library

    return _Models(
        model=None if prior is None else load_models(prior, refiner, device, precision=precision),
        library=read_library(library),
        energies=_isolated(energy, contextlib.ExitStack()),  # ends with this process
    )


def _isolated(energy: EnergyModel | None, stack: contextlib.ExitStack) -> Energies | None:
    """Return a potential in a process of its own, which ends with `stack`."""
    if energy is None:
        return None
    from flowllm.energy.isolated import IsolatedRelaxation
    from flowllm.prediction.minima import isolated_relaxer
    from flowllm.prediction.prediction import Energies

    isolated = stack.enter_context(contextlib.closing(IsolatedRelaxation(energy.potential)))
    return Energies(model=energy, relax=isolated_relaxer(isolated))


def _predict_batch(
    formulas: Sequence[str],
    n: int,
    config: PredictionConfig,
    models: _Models,
    batch: Batch,
    progress: Progress,
) -> list[dict[str, Any]]:
    from flowllm.prediction.prediction import FormulaOutcome, predict_formula

    records = []
    for formula in formulas[batch.start : batch.stop]:
        try:
            outcome = predict_formula(
                models.model, formula, n, config, models.library, models.energies
            )
        except SetupFailed:  # another start of the run may succeed
            raise
        except FlowLLMError as error:
            outcome = FormulaOutcome(formula=formula, predictions=[], problem=one_line(error))
        records.append(record_of(outcome))
        progress(1)
    return records
