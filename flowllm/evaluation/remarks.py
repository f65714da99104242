"""Remarks on an evaluation: suspicious results, and results without meaning."""

from __future__ import annotations

from collections.abc import Sequence

from flowllm.energy.elements import holding_others
from flowllm.evaluation.energies import RelaxedSet
from flowllm.evaluation.results import SetResult
from flowllm.evaluation.sets import GeneratedSet, ReferenceSet, TrainingSet
from flowllm.metrics.prototypes import SYMPREC

_MANY_FAILED = 0.05
_NAMED = 5  # elements or crystals that a remark names


def remarks(
    result: SetResult,
    generated: GeneratedSet,
    *,
    reference: ReferenceSet | None,
    train: Sequence[TrainingSet],
    energies: RelaxedSet | None,
) -> list[str]:
    """Return a sentence for each suspicion about a set.

    Args:
        result: result of the set, with its metrics.
        generated: the set.
        reference: set that it was compared with.
        train: sets that novelty was counted against.
        energies: its relaxed crystals.

    Returns:
        The sentences.
    """
    found = _set_remarks(result, generated, train)
    if reference is not None:
        found += _reference_remarks(result, reference)
    if energies is not None:
        found += _energy_remarks(generated, energies)
    return found


def _set_remarks(
    result: SetResult, generated: GeneratedSet, train: Sequence[TrainingSet]
) -> list[str]:
    found = []
    failed = result.failures.total()
    if failed > _MANY_FAILED * result.num_generated:
        reasons = ", ".join(f"{reason} {count}" for reason, count in result.failures.most_common())
        names = [crystal.id for crystal in generated.crystals if crystal.failure is not None]
        more = ", ..." if failed > _NAMED else ""
        found.append(
            f"{failed} of {result.num_generated} crystals are missing or unreadable: {reasons} "
            f"({', '.join(names[:_NAMED])}{more})"
        )
    unknown = [row["id"] for row in result.rows if "gene" in row and row["gene"] is None]
    if unknown:
        more = ", ..." if len(unknown) > _NAMED else ""
        found.append(
            f"{len(unknown)} crystals have no space group at a tolerance of {SYMPREC} Angstrom "
            f"({', '.join(unknown[:_NAMED])}{more}): no figure of symmetry counts them"
        )
    if (existing := result.num_generated - failed) > 1:
        if result.metrics["uniqueness"].successes == 1:
            found.append("all crystals are the same one")
        if train and result.metrics["novelty"].successes == existing:
            found.append("every crystal is novel: see that the right training set was given")
        if train and result.metrics["novelty"].successes == 0:
            found.append(
                "no crystal is novel: the model repeats its training set, or this is that set"
            )
    return found


def _reference_remarks(result: SetResult, reference: ReferenceSet) -> list[str]:
    if not reference.prints.usable.any():
        return [f"{reference.name} has no crystal with a fingerprint: coverage means nothing"]
    if result.num_generated < len(reference.prints):
        return [
            f"{result.num_generated} crystals cannot cover {len(reference.prints)}: the recall "
            "grows with the number of samples; compare sets of one size"
        ]
    return []


def _energy_remarks(generated: GeneratedSet, energies: RelaxedSet) -> list[str]:
    found = []
    relaxed = [structure for structure in energies.relaxed if structure is not None]
    failed = energies.num_tried - len(relaxed)
    if failed > _MANY_FAILED * energies.num_tried:
        found.append(
            f"{failed} of {energies.num_tried} relaxations failed: what failed counts as not stable"
        )
    found += _unknown_elements(generated, energies)
    above = energies.e_above_hull
    if above is None:
        return found
    known = [energy for energy in above if energy is not None]
    if without := len(relaxed) - len(known):
        found.append(
            f"{without} relaxed crystals have no energy above the hull (structures.parquet says "
            "why) and count as not stable"
        )
    if len(known) > 1 and max(known) < 0:
        found.append(
            "every crystal with an energy is stable: see that the hull holds the known compounds "
            "and goes with the potential"
        )
    return found


def _unknown_elements(generated: GeneratedSet, energies: RelaxedSet) -> list[str]:
    count, unknown = holding_others(list(generated.existing.values()), energies.model.elements)
    if not unknown:
        return []
    more = ", ..." if len(unknown) > _NAMED else ""
    return [
        f"{count} crystals hold elements that {energies.model.potential} has not learnt "
        f"({', '.join(unknown[:_NAMED])}{more}): their energies mean nothing"
    ]
