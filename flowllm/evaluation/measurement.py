"""All metrics of one set of generated crystals, and a row for each crystal."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pymatgen.core import Structure

from flowllm.crystals.crystal import Crystal, ignore_missing_electronegativity
from flowllm.evaluation.definitions import Definitions
from flowllm.evaluation.energies import RelaxedSet, add_energy_metrics
from flowllm.evaluation.features import cached_fingerprints, cached_prototypes
from flowllm.evaluation.remarks import remarks
from flowllm.evaluation.results import SetResult, symmetry_columns
from flowllm.evaluation.sets import GeneratedSet, ReferenceSet, TrainingSet
from flowllm.metrics.composition_scale import CompositionScale
from flowllm.metrics.conditions import condition_rates, conditions_met
from flowllm.metrics.coverage import (
    coverage,
    covered,
    diversity,
    feature_novelty,
    nearest_distances,
)
from flowllm.metrics.csp import everyone_to_reference, match_metrics, metre, paired_distances
from flowllm.metrics.distances import PROPERTIES, properties, property_distance
from flowllm.metrics.fingerprints import Fingerprints
from flowllm.metrics.intervals import rate
from flowllm.metrics.prototypes import is_first
from flowllm.metrics.symmetry import symmetry_metrics
from flowllm.metrics.uniqueness import duplicates, matches

Rows = Sequence[dict[str, Any]]


@ignore_missing_electronegativity()
def measure(
    generated: GeneratedSet,
    *,
    reference: ReferenceSet | None = None,
    train: Sequence[TrainingSet] = (),
    targets: Sequence[Crystal] = (),
    energies: RelaxedSet | None = None,
    definitions: Definitions = Definitions(),  # noqa: B008 (frozen)
    scale: CompositionScale | None = None,
    seed: int = 0,
    workers: int = 1,
    progress: bool = False,
) -> SetResult:
    """Compute every metric that the given sets allow.

    Validity counts over all requested crystals, where a failed one is invalid. Uniqueness and
    novelty count over the existing crystals; `valid_unique_novel` over all requested ones. Property
    distances, diversity and feature novelty are over the valid crystals, as published; figures of
    symmetry are over all existing crystals in which a space group is found.

    Args:
        generated: the set.
        reference: set for distributions and coverage, usually a test set.
        train: sets for the novelty, against each one and against all together.
        targets: crystals to be predicted.
        energies: the relaxed crystals of the set, for relaxation figures, stability and S.U.N.
        definitions: choice among published definitions.
        scale: scale of compositions; None computes it over the reference set, or over the first
            training set with features.
        seed: seed of the bootstrap intervals.
        workers: number of processes for the features.
        progress: show a bar on a terminal.

    Returns:
        Metrics, rows and remarks.
    """
    crystals = generated.crystals
    result = SetResult(
        name=generated.name,
        num_generated=len(crystals),
        failures=Counter(c.failure for c in crystals if c.failure is not None),
        rows=[{"set": generated.name, "id": c.id, "failure": c.failure} for c in crystals],
    )
    existing = generated.existing
    structures = list(existing.values())
    rows = [result.rows[i] for i in existing]
    valid = _add_validity(result, structures, rows, definitions)
    _add_uniqueness_and_novelty(result, structures, rows, train)
    prototypes = cached_prototypes(
        structures,
        workers=workers,
        progress=progress,
        description=f"symmetry of {generated.name}",
    )
    for row, one in zip(rows, prototypes, strict=True):
        row |= symmetry_columns(one)
    _add_uniqueness_and_novelty_of_genes(result, rows, train)
    result.metrics |= symmetry_metrics(
        prototypes, None if reference is None else reference.prototypes, seed=seed
    )
    featured = [(s.name, s.prints) for s in (reference, *train) if s and s.prints is not None]
    if featured:
        name, prints = featured[0]
        scale = scale or CompositionScale.over(prints, name)
        result.composition_scale = scale.source
        label = f"features of {generated.name}"
        own = scale(
            cached_fingerprints(structures, workers=workers, progress=progress, description=label)
        )
        result.metrics |= diversity(own[valid])
        if reference is not None:
            _add_coverage(result, own, rows, valid, scale(reference.prints), definitions)
            _add_distances(result, rows, valid, reference, seed)
        for known in train:
            if known.prints is not None:
                found = feature_novelty(nearest_distances(own[valid], scale(known.prints)))
                result.metrics |= {f"{key}[{known.name}]": v for key, v in found.items()}
    if energies is not None:
        add_energy_metrics(result, energies, train, seed=seed)
    if targets:
        _add_prediction(result, generated, targets, seed)
    if generated.conditions:
        _add_conditions(result, generated, energies)
    result.notes += remarks(result, generated, reference=reference, train=train, energies=energies)
    return result


def _add_validity(
    result: SetResult, structures: Sequence[Structure], rows: Rows, definitions: Definitions
) -> NDArray[np.bool_]:
    """Add validity and properties; return the validity of the existing crystals."""
    values = properties(structures)
    for i, (row, structure) in enumerate(zip(rows, structures, strict=True)):
        structural, compositional = definitions.validity(structure)
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


def _add_uniqueness_and_novelty(
    result: SetResult, structures: Sequence[Structure], rows: Rows, train: Sequence[TrainingSet]
) -> None:
    for row, first in zip(rows, duplicates(structures), strict=True):
        row["duplicate_of"] = None if first is None else rows[first]["id"]
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


def _add_uniqueness_and_novelty_of_genes(
    result: SetResult, rows: Rows, train: Sequence[TrainingSet]
) -> None:
    """Add uniqueness and novelty by prototype, over the crystals with a gene."""
    rows = [row for row in rows if row["gene"] is not None]
    genes = [row["gene"] for row in rows]
    for row, first in zip(rows, is_first(genes), strict=True):
        row["gene_unique"] = bool(first)
    result.metrics["gene_uniqueness"] = rate(sum(r["gene_unique"] for r in rows), len(rows))
    if not train:
        return
    for known in train:
        found = sum(gene not in known.genes for gene in genes)
        result.metrics[f"gene_novelty[{known.name}]"] = rate(found, len(rows))
    for row in rows:
        row["gene_novel"] = all(row["gene"] not in known.genes for known in train)
    both = sum(row["gene_unique"] and row["gene_novel"] for row in rows)
    result.metrics |= {
        "gene_novelty": rate(sum(row["gene_novel"] for row in rows), len(rows)),
        "gene_unique_novel": rate(both, len(rows)),
    }


def _add_coverage(
    result: SetResult,
    prints: Fingerprints,
    rows: Rows,
    valid: NDArray[np.bool_],
    reference: Fingerprints,
    definitions: Definitions,
) -> None:
    distances = nearest_distances(prints, reference)
    within = covered(distances.sample_structure, distances.sample_composition)
    for row, structure, composition, inside in zip(
        rows, distances.sample_structure, distances.sample_composition, within, strict=True
    ):
        row |= {
            "nearest_structure": _finite(structure),
            "nearest_composition": _finite(composition),
            "covered": bool(inside),
        }
    count = result.num_generated
    if definitions.valid_coverage:
        distances, count = nearest_distances(prints[valid], reference), int(valid.sum())
    result.metrics |= coverage(distances, num_generated=count)
    if missing := int((~prints.usable).sum()):
        result.notes.append(f"{missing} crystals have no structure fingerprint and cover nothing")


def _add_distances(
    result: SetResult, rows: Rows, valid: NDArray[np.bool_], reference: ReferenceSet, seed: int
) -> None:
    values = _columns([row for row, ok in zip(rows, valid, strict=True) if ok])
    for name in PROPERTIES:
        result.metrics[f"{name}_distance"] = property_distance(
            values[name], reference.values[name], seed=seed
        )


def _add_prediction(
    result: SetResult, generated: GeneratedSet, targets: Sequence[Crystal], seed: int
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
    distances = everyone_to_reference(list(named.values()), list(generated.existing.values()))
    result.metrics |= metre(distances, seed=seed)


def _add_conditions(
    result: SetResult, generated: GeneratedSet, energies: RelaxedSet | None
) -> None:
    above: Sequence[float | None] = [None] * len(generated.crystals)
    if energies is not None:
        above = energies.for_conditions()
    judged = [
        conditions_met(
            structure,
            generated.conditions,
            e_above_hull=energy,
            spacegroup=row.get("spacegroup"),
        )
        for structure, energy, row in zip(generated.structures, above, result.rows, strict=True)
    ]
    sizes = [None if structure is None else len(structure) for structure in generated.structures]
    for row, found in zip(result.rows, judged, strict=True):
        row |= {f"meets_{name}": ok for name, ok in found.items()}
    result.metrics |= {f"meets_{key}": v for key, v in condition_rates(judged, sizes).items()}


def _columns(rows: Sequence[Mapping[str, Any]]) -> dict[str, NDArray[np.float64]]:
    return {name: np.array([row[name] for row in rows], dtype=np.float64) for name in PROPERTIES}


def _finite(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
