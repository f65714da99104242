"""Evaluation of generated crystals: files in, every metric and a row per structure out."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, replace
from pathlib import Path

from flowllm.crystals import cells
from flowllm.crystals.crystal import Crystal, ignore_missing_electronegativity
from flowllm.crystals.formulas import formula_ratios
from flowllm.crystals.io import input_hash, read
from flowllm.energy.formation import read_references
from flowllm.energy.hull import Hull, materials_project_hull, read_hull
from flowllm.errors import UserError
from flowllm.evaluation.energies import Energies, Judge, energies_of, load_judge
from flowllm.evaluation.known import read_known
from flowllm.evaluation.leaderboards import check_submission, write_submission
from flowllm.evaluation.measured import Measured, Reading, Reference
from flowllm.evaluation.measurement import measure, reference_features
from flowllm.evaluation.results import (
    RELAXED,
    STRUCTURES,
    Evaluation,
    write_metrics,
    write_reference,
    write_structures,
)
from flowllm.evaluation.sets import GeneratedSet, read_generated
from flowllm.metrics.composition_scale import CompositionScale, read_scale
from flowllm.metrics.validity import OXIDATION_STATES, check_oxidation_states
from flowllm.runs.identity import claimed
from flowllm.runs.outputs import file_names
from flowllm.system.extras import require
from flowllm.system.versions import versions

logger = logging.getLogger(__name__)

MATERIALS_PROJECT = "materials-project"
_IDENTITY = "evaluation.json"
_RELAXED_RUNS = "relaxed"


@ignore_missing_electronegativity()
def evaluate(
    samples: str | Path | Sequence[str | Path],
    *,
    out: str | Path,
    train: str | Path | Sequence[str | Path] = (),
    reference: str | Path | None = None,
    targets: str | Path | None = None,
    potential: str | None = None,
    hull: str | Path | None = None,
    references: str | Path | None = None,
    min_elements: int = 1,
    ignore_own_images: bool = False,
    valid_coverage: bool = False,
    composition_scale: str | Path | None = None,
    oxidation_states: str = OXIDATION_STATES,
    feature_novelty: bool = False,
    submission: str | None = None,
    seed: int = 0,
    workers: int = 1,
    progress: bool = True,
) -> Evaluation:
    """Measure sets of generated crystals: `metrics.json`, `structures.parquet`, `report.html`.

    With a potential every crystal is relaxed as well, in a run folder for each set under
    `relaxed/`; `relaxed.parquet` is `structures.parquet` with the relaxed crystals. A killed call
    goes on when it is repeated. The docstrings in `flowllm.metrics` give every definition with its
    source. Features are cached on the disk: those of MP-20's test set take some minutes of one
    core, once.

    Args:
        samples: one or more sets to put side by side, of any generator: a run folder of `flowllm`
            (failed crystals included), a folder or `.zip` of CIFs, CSV, parquet, extxyz, JSON.
        out: folder to write; the same call again writes the same.
        train: sets that novelty is counted against.
        reference: set that coverage and property distances are against, usually a test set.
        targets: crystals that were to be predicted, for match rate, METRe and cRMSE.
        potential: relaxes every crystal, for the refinement figures and the energies; see
            `flowllm.energy.calculators.load_calculator`.
        hull: of the known compounds, for stability and S.U.N.: a file
            (`flowllm.energy.hull.read_hull`), or `materials-project` for its present database
            (mp-api, with a key).
        references: elemental energies, where the hull has none or not those of the potential; see
            `flowllm.energy.formation.read_references`.
        min_elements: crystals of fewer elements do not count as stable (FlowLLM: 2).
        ignore_own_images: structural validity as published code has it, which does not compare an
            atom with its own periodic images.
        valid_coverage: coverage and feature novelty over valid crystals alone, on both sides
            (Gruver et al. 2024); else coverage over all generated (Xie et al. 2021).
        composition_scale: file with the constants by which composition features are scaled; see
            `flowllm.metrics.composition_scale`. None: those of the reference set, with which
            coverage, diversity and feature novelty are not the published ones.
        oxidation_states: SMACT's table for the compositional validity; `smact14` is what published
            figures mean.
        feature_novelty: also novelty by distance of features, which needs the features of every
            crystal of `train` (MP-20: some minutes of one core, once).
        submission: `lemat` also writes what the LeMat-GenBench leaderboard takes; see
            `flowllm.evaluation.leaderboards.write_submission`.
        seed: of the bootstrap intervals.
        workers: processes.
        progress: show bars on a terminal.

    Raises:
        UserError: no such file, nothing readable in one, a missing extra, a potential that is wrong
            or does not go with the hull, or a folder of something else.
    """
    paths = _paths(samples)
    known_paths = _paths(train)
    if not paths:
        raise UserError("no samples are given; name at least one file or folder")
    online = hull is not None and str(hull) == MATERIALS_PROJECT
    given = [reference, targets, composition_scale, references, None if online else hull]
    for path in (*paths, *known_paths, *(Path(p) for p in given if p is not None)):
        if not path.exists():
            raise UserError(f"{path}: no such file or folder; check the path")
    # Mistakes come before the folder is claimed: the mended call is another run.
    if feature_novelty and not known_paths:
        raise UserError("feature_novelty needs a training set; give train (--train) as well")
    features = reference is not None or feature_novelty
    if composition_scale is not None and not features:
        raise UserError("composition_scale needs a reference set; give reference (--reference)")
    if hull is not None and potential is None:
        raise UserError("hull needs a potential; give potential (--potential) as well")
    if references is not None and hull is None:
        raise UserError("references need a hull; give hull (--hull) as well")
    if submission is not None:
        check_submission(submission)
    check_oxidation_states(oxidation_states)
    for module in ("smact.screening", "plotly.graph_objects", "jinja2"):
        require(module)
    if features:
        require("matminer.featurizers.site.fingerprint")
    reading = Reading(
        own_images=not ignore_own_images,
        valid_coverage=valid_coverage,
        oxidation_states_set=oxidation_states,
    )
    scale = None if composition_scale is None else read_scale(composition_scale)
    sets = _named_apart([read_generated(path) for path in paths])
    judge = None
    if potential is not None:
        judge = load_judge(
            potential,
            hull=None if hull is None else _hull(hull, online, sets),
            references=None if references is None else read_references(references),
            min_elements=min_elements,
        )
    run = {
        "samples": [_identity(path) for path in paths],
        "train": [_identity(path) for path in known_paths],
        "reference": _identity(reference),
        "targets": _identity(targets),
        "potential": None if judge is None else dict(judge.identity),
        "hull": {"name": MATERIALS_PROJECT} if online else _identity(hull),
        "references": _identity(references),
        "min_elements": min_elements,
        **asdict(reading),
        "composition_scale": _identity(composition_scale),
        "feature_novelty": feature_novelty,
        "seed": seed,
    }
    with claimed(out, _IDENTITY, run, info=versions()) as folder:
        if submission is not None:
            write_submission(sets, folder)
        energies: Sequence[Energies | None] = [None] * len(sets)
        if judge is not None:
            energies = _relax_all(sets, judge, folder, workers=workers, progress=progress)
        result = Evaluation(
            folder,
            _measure_all(
                sets,
                energies,
                None if reference is None else Path(reference),
                known_paths,
                [] if targets is None else read(targets, reduce=False),
                reading,
                scale,
                feature_novelty=feature_novelty,
                seed=seed,
                workers=workers,
                progress=progress,
                folder=folder,
            ),
        )
        write_metrics(result, run)
        write_structures(result, STRUCTURES, [[c.structure for c in s.crystals] for s in sets])
        if judge is not None:
            write_structures(result, RELAXED, [e.relaxed for e in energies if e is not None])
        # Here, as it needs plotly and jinja2, of whose absence `require` has said a line.
        from flowllm.evaluation.report import write_report

        write_report(folder)
    for measured in result.sets:
        for note in measured.notes:
            logger.warning("%s: %s", measured.name, note)
    return result


def _relax_all(
    sets: Sequence[GeneratedSet], judge: Judge, folder: Path, *, workers: int, progress: bool
) -> list[Energies]:
    runs = folder / _RELAXED_RUNS
    runs.mkdir(exist_ok=True)
    return [
        energies_of(generated, judge, out=runs / name, workers=workers, progress=progress)
        for generated, name in zip(sets, file_names([s.name for s in sets]), strict=True)
    ]


def _measure_all(
    sets: Sequence[GeneratedSet],
    energies: Sequence[Energies | None],
    reference_path: Path | None,
    train: Sequence[Path],
    targets: Sequence[Crystal],
    reading: Reading,
    scale: CompositionScale | None,
    *,
    feature_novelty: bool,
    seed: int,
    workers: int,
    progress: bool,
    folder: Path,
) -> list[Measured]:
    """Every set against the same references, which are read and computed once."""
    reference: Reference | None = None
    if reference_path is not None:
        crystals = read(reference_path, skip_invalid=True, reduce=False)
        reference = reference_features(
            reference_path.name,
            [crystal.structure for crystal in crystals],
            reading,
            workers=workers,
            progress=progress,
        )
        write_reference(folder, crystals, reference.values)
    formulas = {
        formula_ratios(cells.atomic_numbers(crystal.structure))
        for generated in sets
        for crystal in generated.crystals
        if crystal.structure is not None
    }
    known = [
        read_known(path, formulas, feature_novelty, reading, workers=workers, progress=progress)
        for path in train
    ]
    return [
        measure(
            generated,
            reference=reference,
            train=known,
            targets=targets,
            energies=of_set,
            reading=reading,
            scale=scale,
            seed=seed,
            workers=workers,
            progress=progress,
        )
        for generated, of_set in zip(sets, energies, strict=True)
    ]


def _hull(hull: str | Path, online: bool, sets: Sequence[GeneratedSet]) -> Hull:
    if not online:
        return read_hull(hull)
    systems = {
        frozenset(element.symbol for element in crystal.structure.composition.elements)
        for generated in sets
        for crystal in generated.crystals
        if crystal.structure is not None
    }
    return materials_project_hull(systems)


def _paths(given: str | Path | Iterable[str | Path]) -> list[Path]:
    return [Path(given)] if isinstance(given, str | Path) else [Path(path) for path in given]


def _identity(path: str | Path | None) -> dict[str, str] | None:
    return None if path is None else {"name": Path(path).name, "sha256": input_hash(path)}


def _named_apart(sets: Sequence[GeneratedSet]) -> list[GeneratedSet]:
    """Sets of one name get a number: rows and columns go by it."""
    seen: Counter[str] = Counter()
    named = []
    for generated in sets:
        seen[generated.name] += 1
        count = seen[generated.name]
        named.append(
            generated if count == 1 else replace(generated, name=f"{generated.name} ({count})")
        )
    return named
