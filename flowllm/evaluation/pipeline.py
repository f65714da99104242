"""Steps of an evaluation: read the sets, relax them, measure them, write the results."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from flowllm.crystals import cells
from flowllm.crystals.crystal import ignore_missing_electronegativity
from flowllm.crystals.formulas import formula_ratios
from flowllm.crystals.io import read
from flowllm.crystals.run_folders import input_hash
from flowllm.energy.formation import read_references
from flowllm.energy.hull import Hull, materials_project_hull, read_hull
from flowllm.evaluation.config import (
    IDENTITY,
    LEMAT,
    MATBENCH,
    MATERIALS_PROJECT,
    EvaluationConfig,
)
from flowllm.evaluation.definitions import Definitions
from flowllm.evaluation.energies import (
    EnergyModel,
    RelaxedSet,
    load_energy_model,
    relax_set,
    warn_of_elements,
)
from flowllm.evaluation.features import read_scale
from flowllm.evaluation.leaderboards import write_submission
from flowllm.evaluation.matbench import write_matbench
from flowllm.evaluation.measurement import measure
from flowllm.evaluation.results import (
    RELAXED,
    STRUCTURES,
    Evaluation,
    SetResult,
    write_metrics,
    write_reference,
    write_structures,
)
from flowllm.evaluation.sets import GeneratedSet, read_generated, read_reference, read_training
from flowllm.metrics.composition_scale import CompositionScale
from flowllm.metrics.prototypes import SYMPREC
from flowllm.runs.identity import claimed
from flowllm.system.extras import require
from flowllm.system.files import file_names
from flowllm.system.versions import versions

logger = logging.getLogger(__name__)

_RELAXED_RUNS = "relaxed"
_EXTENDABLE = ("potential", "hull", "references")  # may be given to a finished evaluation
_REPLACEABLE = ("hull", "references")  # no relaxation depends on them


@ignore_missing_electronegativity()
def run_evaluation(
    samples: Sequence[Path],
    config: EvaluationConfig,
    out: Path,
    *,
    workers: int,
    executor: str,
    progress: bool,
) -> Evaluation:
    """Evaluate sets of generated crystals; see `flowllm.evaluation.evaluate.evaluate`.

    Args:
        samples: existing files or folders.
        config: options.
        out: folder to write.
        workers: number of processes, and of batches that are relaxed at a time.
        executor: where they are relaxed.
        progress: show bars on a terminal.

    Returns:
        The folder and the result of each set.

    Raises:
        UserError: if a file cannot be read, a package is missing, the potential is wrong or does
            not fit the hull, or `out` holds something else.
    """
    # Errors of the input come before the folder is claimed: the corrected call is another run.
    _require_packages(config)
    definitions = Definitions(
        own_images=not config.ignore_own_images,
        valid_coverage=config.valid_coverage,
        oxidation_states_set=config.oxidation_states,
    )
    scale = None if config.composition_scale is None else read_scale(config.composition_scale)
    sets = _distinctly_named([read_generated(path) for path in samples])
    model = _energy_model(config, sets)
    run = _run_identity(samples, config, definitions, model)
    if model is not None:
        for generated in sets:
            warn_of_elements(generated, model)
    with claimed(
        out, IDENTITY, run, info=versions(), extendable=_EXTENDABLE, replaceable=_REPLACEABLE
    ) as folder:
        if config.submission == LEMAT:
            write_submission(sets, folder)
        relaxed: list[RelaxedSet] | None = None
        if model is not None:
            relaxed = _relax_all(
                sets, model, folder, workers=workers, executor=executor, progress=progress
            )
            if config.submission == MATBENCH:
                write_matbench(sets, relaxed, folder)
        results = _measure_all(
            sets, relaxed, config, definitions, scale, folder, workers=workers, progress=progress
        )
        result = Evaluation(folder, results)
        write_metrics(result, run)
        write_structures(result, STRUCTURES, [generated.structures for generated in sets])
        if relaxed is not None:
            write_structures(result, RELAXED, [of_set.relaxed for of_set in relaxed])
        # Imported here because it needs plotly and jinja2, which `_require_packages` has checked.
        from flowllm.evaluation.report import write_report

        write_report(folder)
    for one in result.sets:
        for note in one.notes:
            logger.warning("%s: %s", one.name, note)
    return result


def _require_packages(config: EvaluationConfig) -> None:
    for module in ("smact.screening", "plotly.graph_objects", "jinja2"):
        require(module)
    if config.needs_features:
        require("matminer.featurizers.site.fingerprint")


def _energy_model(config: EvaluationConfig, sets: Sequence[GeneratedSet]) -> EnergyModel | None:
    if config.potential is None:
        return None
    return load_energy_model(
        config.potential,
        hull=_hull(config, sets),
        references=None if config.references is None else read_references(config.references),
        min_elements=config.min_elements,
    )


def _hull(config: EvaluationConfig, sets: Sequence[GeneratedSet]) -> Hull | None:
    if config.hull is None:
        return None
    if not config.hull_is_online:
        return read_hull(config.hull)
    systems = {
        frozenset(element.symbol for element in structure.composition.elements)
        for generated in sets
        for structure in generated.existing.values()
    }
    return materials_project_hull(systems)


def _run_identity(
    samples: Sequence[Path],
    config: EvaluationConfig,
    definitions: Definitions,
    model: EnergyModel | None,
) -> dict[str, Any]:
    online = config.hull_is_online
    return {
        "samples": [_file_identity(path) for path in samples],
        "train": [_file_identity(path) for path in config.train],
        "reference": _file_identity(config.reference),
        "targets": _file_identity(config.targets),
        "potential": None if model is None else dict(model.identity),
        "hull": {"name": MATERIALS_PROJECT} if online else _file_identity(config.hull),
        "references": _file_identity(config.references),
        "min_elements": config.min_elements,
        **asdict(definitions),
        "symprec": SYMPREC,
        "composition_scale": _file_identity(config.composition_scale),
        "feature_novelty": config.feature_novelty,
        "seed": config.seed,
    }


def _file_identity(path: Path | None) -> dict[str, str] | None:
    return None if path is None else {"name": path.name, "sha256": input_hash(path)}


def _relax_all(
    sets: Sequence[GeneratedSet],
    model: EnergyModel,
    folder: Path,
    *,
    workers: int,
    executor: str,
    progress: bool,
) -> list[RelaxedSet]:
    runs = folder / _RELAXED_RUNS
    runs.mkdir(exist_ok=True)
    return [
        relax_set(
            generated,
            model,
            out=runs / name,
            workers=workers,
            executor=executor,
            progress=progress,
        )
        for generated, name in zip(sets, file_names([s.name for s in sets]), strict=True)
    ]


def _measure_all(
    sets: Sequence[GeneratedSet],
    relaxed: Sequence[RelaxedSet] | None,
    config: EvaluationConfig,
    definitions: Definitions,
    scale: CompositionScale | None,
    folder: Path,
    *,
    workers: int,
    progress: bool,
) -> list[SetResult]:
    """Measure every set against the same references, which are read and computed once."""
    reference = None
    if config.reference is not None:
        reference = read_reference(
            config.reference, definitions, workers=workers, progress=progress
        )
        write_reference(folder, reference.crystals, reference.values, reference.prototypes)
    formulas = {
        formula_ratios(cells.atomic_numbers(structure))
        for generated in sets
        for structure in generated.existing.values()
    }
    train = [
        read_training(
            path,
            formulas,
            definitions,
            with_features=config.feature_novelty,
            workers=workers,
            progress=progress,
        )
        for path in config.train
    ]
    targets = [] if config.targets is None else read(config.targets, reduce=False)
    return [
        measure(
            generated,
            reference=reference,
            train=train,
            targets=targets,
            energies=None if relaxed is None else relaxed[i],
            definitions=definitions,
            scale=scale,
            seed=config.seed,
            workers=workers,
            progress=progress,
        )
        for i, generated in enumerate(sets)
    ]


def _distinctly_named(sets: Sequence[GeneratedSet]) -> list[GeneratedSet]:
    """Number the sets that share a name, as rows and columns are labelled by it."""
    seen: Counter[str] = Counter()
    named = []
    for generated in sets:
        seen[generated.name] += 1
        count = seen[generated.name]
        named.append(
            generated if count == 1 else replace(generated, name=f"{generated.name} ({count})")
        )
    return named
