"""All metrics of one set of generated crystals, with a row for each crystal."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pymatgen.core import Structure

from flowllm.crystals.crystal import Crystal, ignore_missing_electronegativity
from flowllm.evaluation.energies import Energies, add_energies
from flowllm.evaluation.measured import Known, Measured, Reading, Reference
from flowllm.evaluation.remarks import remarks
from flowllm.evaluation.sets import GeneratedSet
from flowllm.metrics import conditions as asked
from flowllm.metrics import coverage as cov
from flowllm.metrics.composition_scale import CompositionScale
from flowllm.metrics.csp import (
    everyone_to_reference,
    match_metrics,
    metre,
    paired_distances,
)
from flowllm.metrics.distances import PROPERTIES, properties, property_distance
from flowllm.metrics.fingerprints import Fingerprints, fingerprints
from flowllm.metrics.intervals import rate
from flowllm.metrics.uniqueness import duplicates, matches


def reference_prints(
    name: str, structures: Sequence[Structure], reading: Reading, *, workers: int, progress: bool
) -> Fingerprints:
    """Fingerprints of those crystals of a reference set that take part under this reading."""
    return fingerprints(
        [s for s in structures if all(reading.valid(s))] if reading.valid_coverage else structures,
        workers=workers,
        progress=progress,
        description=f"features of {name}",
    )


def reference_features(
    name: str, structures: Sequence[Structure], reading: Reading, *, workers: int, progress: bool
) -> Reference:
    """Everything that is needed of a reference set."""
    return Reference(
        name=name,
        prints=reference_prints(name, structures, reading, workers=workers, progress=progress),
        values=properties(structures),
    )


@ignore_missing_electronegativity()
def measure(
    generated: GeneratedSet,
    *,
    reference: Reference | None = None,
    train: Sequence[Known] = (),
    targets: Sequence[Crystal] = (),
    energies: Energies | None = None,
    reading: Reading = Reading(),  # noqa: B008 (frozen)
    scale: CompositionScale | None = None,
    seed: int = 0,
    workers: int = 1,
    progress: bool = False,
) -> Measured:
    """Every metric that can be computed from what is given.

    Validity counts over all that were asked for, a failed one being invalid. Uniqueness and novelty
    count over the crystals that exist; `valid_unique_novel` over all again. Property distances,
    diversity and feature novelty are those of the valid crystals, as published.

    Args:
        generated: the set.
        reference: to compare distributions and coverage with, usually a test set.
        train: sets for the novelty, each by itself and all together.
        targets: crystals that were to be predicted.
        energies: of the same set, for refinement figures, stability and S.U.N.
        reading: of the definitions.
        scale: of compositions; None: that of the reference set, without one of the first training
            set with features.
        seed: of the bootstrap intervals.
        workers: processes for the fingerprints.
        progress: show bars on a terminal.
    """
    crystals = generated.crystals
    result = Measured(
        name=generated.name,
        num_generated=len(crystals),
        failures=Counter(c.failure for c in crystals if c.failure is not None),
        rows=[{"set": generated.name, "id": c.id, "failure": c.failure} for c in crystals],
    )
    there = np.array([i for i, c in enumerate(crystals) if c.structure is not None], dtype=int)
    structures = [crystals[i].structure for i in there]
    rows = [result.rows[i] for i in there]
    valid = _validity(result, structures, rows, reading)
    _uniqueness_and_novelty(result, structures, rows, [crystals[i].id for i in there], train)
    others = [(s.name, s.prints) for s in (reference, *train) if s and s.prints is not None]
    if others:
        first, prints_of_first = others[0]
        scale = scale or CompositionScale.over(prints_of_first, first)
        result.composition_scale = scale.source
        prints = scale(
            fingerprints(
                structures,
                workers=workers,
                progress=progress,
                description=f"features of {generated.name}",
            )
        )
        result.metrics |= cov.diversity(prints[valid])
        if reference is not None:
            _coverage(result, prints, rows, valid, scale(reference.prints), reading)
            _distances(result, rows, valid, reference, seed)
        for known in train:
            if known.prints is not None:
                found = cov.feature_novelty(cov.nearest(prints[valid], scale(known.prints)))
                result.metrics |= {f"{key}[{known.name}]": v for key, v in found.items()}
    if energies is not None:
        add_energies(result, energies, train, seed=seed)
    if targets:
        _prediction(result, generated, targets, seed)
    if generated.conditions:
        _conditions(result, generated, energies)
    result.notes += remarks(result, generated, reference=reference, train=train, energies=energies)
    return result


def _validity(
    result: Measured, structures: Sequence[Structure], rows: Sequence[dict[str, Any]],
    reading: Reading,
) -> NDArray[np.bool_]:  # fmt: skip
    values = properties(structures)
    for i, (row, structure) in enumerate(zip(rows, structures, strict=True)):
        structural, compositional = reading.valid(structure)
        row |= {
            "formula": structure.composition.reduced_formula,
            "num_atoms": len(structure),
            "structural_validity": structural,
            "compositional_validity": compositional,
            "valid": structural and compositional,
            **{name: float(values[name][i]) for name in PROPERTIES},
        }
    for name in ("structural_validity", "compositional_validity", "valid"):
        for row in result.rows:
            row.setdefault(name, False)
        result.metrics[name] = rate(sum(r[name] for r in result.rows), result.num_generated)
    return np.array([row["valid"] for row in rows], dtype=bool)


def _uniqueness_and_novelty(
    result: Measured, structures: Sequence[Structure], rows: Sequence[dict[str, Any]],
    ids: Sequence[str], train: Sequence[Known],
) -> None:  # fmt: skip
    for row, first in zip(rows, duplicates(structures), strict=True):
        row["duplicate_of"] = None if first is None else ids[first]
        row["unique"] = first is None
    result.metrics["uniqueness"] = rate(sum(r["unique"] for r in rows), len(rows))
    if not train:
        return
    for row in rows:
        row["novel"], row["found_in"] = True, None
    for known in train:
        found = matches(structures, [c.structure for c in known.crystals])
        result.metrics[f"novelty[{known.name}]"] = rate(
            sum(i is None for i in found), len(structures)
        )
        for row, index in zip(rows, found, strict=True):
            if index is not None and row["novel"]:
                row["novel"] = False
                row["found_in"] = f"{known.name}: {known.crystals[index].id}"
    both = [row["unique"] and row["novel"] for row in rows]
    all_three = [b and row["valid"] for b, row in zip(both, rows, strict=True)]
    result.metrics |= {
        "novelty": rate(sum(row["novel"] for row in rows), len(rows)),
        "unique_novel": rate(sum(both), len(rows)),
        "valid_unique_novel": rate(sum(all_three), result.num_generated),
    }


def _coverage(
    result: Measured, prints: Fingerprints, rows: Sequence[dict[str, Any]],
    valid: NDArray[np.bool_], reference: Fingerprints, reading: Reading,
) -> None:  # fmt: skip
    distances = cov.nearest(prints, reference)
    within = cov.covered(distances.sample_structure, distances.sample_composition)
    for row, structure, composition, inside in zip(
        rows, distances.sample_structure, distances.sample_composition, within, strict=True
    ):
        row |= {
            "nearest_structure": _finite(structure),
            "nearest_composition": _finite(composition),
            "covered": bool(inside),
        }
    count = result.num_generated
    if reading.valid_coverage:
        distances, count = cov.nearest(prints[valid], reference), int(valid.sum())
    result.metrics |= cov.coverage(distances, num_generated=count)
    if missing := int((~prints.usable).sum()):
        result.notes.append(f"{missing} crystals have no structure fingerprint and cover nothing")


def _distances(
    result: Measured, rows: Sequence[dict[str, Any]], valid: NDArray[np.bool_],
    reference: Reference, seed: int,
) -> None:  # fmt: skip
    values = _columns([row for row, ok in zip(rows, valid, strict=True) if ok])
    for name in PROPERTIES:
        result.metrics[f"{name}_distance"] = property_distance(
            values[name], reference.values[name], seed=seed
        )


def _prediction(
    result: Measured, generated: GeneratedSet, targets: Sequence[Crystal], seed: int
) -> None:
    named = {target.id: target.structure for target in targets}
    samples = [(str(c.properties.get("target", c.id)), c.structure) for c in generated.crystals]
    if any(name in named for name, _ in samples):
        result.metrics |= match_metrics(paired_distances(named, samples), seed=seed)
    else:
        result.notes.append(
            "no crystal says which target it was made for (by its id, or a column 'target'): "
            "no match rate, only METRe"
        )
    everyone = [structure for _, structure in samples if structure is not None]
    result.metrics |= metre(everyone_to_reference(list(named.values()), everyone), seed=seed)


def _conditions(result: Measured, generated: GeneratedSet, energies: Energies | None) -> None:
    above = [None] * len(generated.crystals) if energies is None else energies.for_conditions()
    judged = [
        asked.met(c.structure, generated.conditions, e_above_hull=energy)
        for c, energy in zip(generated.crystals, above, strict=True)
    ]
    sizes = [None if c.structure is None else len(c.structure) for c in generated.crystals]
    for row, found in zip(result.rows, judged, strict=True):
        row |= {f"meets_{name}": ok for name, ok in found.items()}
    result.metrics |= {f"meets_{key}": v for key, v in asked.shares(judged, sizes).items()}


def _columns(rows: Sequence[Mapping[str, Any]]) -> dict[str, NDArray[np.float64]]:
    return {name: np.array([row[name] for row in rows], dtype=np.float64) for name in PROPERTIES}


def _finite(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
