"""What a reader of an evaluation should be told: results too good, too bad, or without meaning."""

from __future__ import annotations

from collections.abc import Sequence

from flowllm.evaluation.energies import Energies
from flowllm.evaluation.measured import Known, Measured, Reference
from flowllm.evaluation.sets import GeneratedSet

_MANY_FAILED = 0.05
_NAMED = 5  # elements or crystals in a remark


def remarks(
    result: Measured,
    generated: GeneratedSet,
    *,
    reference: Reference | None,
    train: Sequence[Known],
    energies: Energies | None,
) -> list[str]:
    """A sentence for each suspicion, from the metrics that `measure` has put into `result`."""
    said = _of_the_set(result, generated, train)
    if reference is not None:
        said += _of_the_reference(result, reference)
    if energies is not None:
        said += _of_the_energies(generated, energies)
    return said


def _of_the_set(result: Measured, generated: GeneratedSet, train: Sequence[Known]) -> list[str]:
    said = []
    failed = result.failures.total()
    if failed > _MANY_FAILED * result.num_generated:
        reasons = ", ".join(f"{reason} {count}" for reason, count in result.failures.most_common())
        names = [crystal.id for crystal in generated.crystals if crystal.failure is not None]
        more = ", ..." if failed > _NAMED else ""
        said.append(
            f"{failed} of {result.num_generated} crystals are missing or unreadable: {reasons} "
            f"({', '.join(names[:_NAMED])}{more})"
        )
    if (there := result.num_generated - failed) > 1:
        if result.metrics["uniqueness"].successes == 1:
            said.append("all crystals are the same one")
        if train and result.metrics["novelty"].successes == there:
            said.append("every crystal is novel: see that the right training set was given")
        if train and result.metrics["novelty"].successes == 0:
            said.append(
                "no crystal is novel: the model repeats its training set, or this is that set"
            )
    return said


def _of_the_reference(result: Measured, reference: Reference) -> list[str]:
    if not reference.prints.usable.any():
        return [f"{reference.name} has no crystal with a fingerprint: coverage means nothing"]
    if result.num_generated < len(reference.prints):
        return [
            f"{result.num_generated} crystals cannot cover {len(reference.prints)}: the recall "
            "grows with the number of samples; compare sets of one size"
        ]
    return []


def _of_the_energies(generated: GeneratedSet, energies: Energies) -> list[str]:
    said = []
    name = energies.judge.potential
    relaxed = [structure for structure in energies.relaxed if structure is not None]
    failed = energies.num_tried - len(relaxed)
    if failed > _MANY_FAILED * energies.num_tried:
        said.append(
            f"{failed} of {energies.num_tried} relaxations failed: what failed counts as not stable"
        )
    if energies.judge.elements is not None:
        strange: set[str] = set()
        concerned = 0
        for crystal in generated.crystals:
            if crystal.structure is not None:
                symbols = {e.symbol for e in crystal.structure.composition.elements}
                strange |= (outside := symbols - energies.judge.elements)
                concerned += bool(outside)
        if strange:
            more = ", ..." if len(strange) > _NAMED else ""
            said.append(
                f"{concerned} crystals hold elements that {name} has not learnt "
                f"({', '.join(sorted(strange)[:_NAMED])}{more}): their energies mean nothing"
            )
    above = energies.e_above_hull
    if above is None:
        return said
    known = [energy for energy in above if energy is not None]
    if without := len(relaxed) - len(known):
        said.append(
            f"{without} relaxed crystals have no energy above the hull (structures.parquet says "
            "why) and count as not stable"
        )
    if len(known) > 1 and max(known) < 0:
        said.append(
            "every crystal with an energy is stable: see that the hull holds the known compounds "
            "and goes with the potential"
        )
    return said
