"""Energies of generated crystals: relaxation with a potential, distance to a hull, stability."""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from pymatgen.core import Structure

from flowllm.crystals.crystal import Crystal
from flowllm.energy.calculators import (
    energy_scheme,
    known_elements,
    load_calculator,
    pick_potential_device,
    potential_identity,
)
from flowllm.energy.elements import holding_others, warn_of_unlearnt
from flowllm.energy.formation import References
from flowllm.energy.hull import Hull, HullDistance, fitting_references, hull_distances
from flowllm.energy.relaxation import read_relaxed, relax_crystals
from flowllm.evaluation.results import SetResult
from flowllm.evaluation.sets import GeneratedSet, TrainingSet
from flowllm.metrics.intervals import bootstrap
from flowllm.metrics.relaxation import RelaxationChange, relaxation_change, relaxation_metrics
from flowllm.metrics.stability import METASTABLE, is_stable, stability_rates
from flowllm.metrics.uniqueness import duplicates, matches
from flowllm.metrics.validity import structural_validity
from flowllm.system.device import num_gpus
from flowllm.system.pools import LOCAL

if TYPE_CHECKING:
    from ase.calculators.calculator import Calculator

logger = logging.getLogger(__name__)

_INVALID = "atoms within 0.5 Angstrom: not relaxed"


@dataclass(frozen=True, kw_only=True)
class EnergyModel:
    """A tested potential, and the hull that its energies are compared with.

    Attributes:
        potential: name, see `flowllm.energy.calculators.check_potential_name`.
        identity: identity of the potential.
        scheme: scheme of its energies.
        elements: elements that it was trained on; None if unknown.
        hull: hull of the known compounds; None for no energies above a hull.
        references: energies of the elements; None takes the references of the hull.
        min_elements: crystals with fewer elements do not count as stable.
    """

    potential: str
    identity: Mapping[str, Any]
    scheme: str
    elements: frozenset[str] | None
    hull: Hull | None = None
    references: References | None = None
    min_elements: int = 1


@dataclass(frozen=True, kw_only=True)
class RelaxedSet:
    """The N crystals of a generated set after relaxation, in their order.

    Attributes:
        model: potential and hull.
        relaxed: relaxed crystals; None for a missing, invalid or failed one.
        failures: reason why an existing crystal was not relaxed; else None.
        energies_per_atom: energies by the potential, eV/atom; None without a relaxed crystal.
        changes: changes from the generated to the relaxed crystals.
        distances: distances to the hull; None without a hull.
        num_tried: number of attempted relaxations.
    """

    model: EnergyModel
    relaxed: Sequence[Structure | None]
    failures: Sequence[str | None]
    energies_per_atom: Sequence[float | None]
    changes: Sequence[RelaxationChange]
    distances: Sequence[HullDistance] | None
    num_tried: int

    @property
    def e_above_hull(self) -> list[float | None] | None:
        """(N,), energies above the hull in eV/atom; None without a hull."""
        return None if self.distances is None else [d.e_above_hull for d in self.distances]

    def for_conditions(self) -> list[float | None]:
        """Return energies above the hull (N,), infinite for missing ones; all None without a hull.

        A crystal without an energy does not meet a condition on the energy.
        """
        if self.e_above_hull is None:
            return [None] * len(self.relaxed)
        return [math.inf if energy is None else energy for energy in self.e_above_hull]


def load_energy_model(
    potential: str,
    *,
    hull: Hull | None,
    references: References | None,
    min_elements: int,
    calculator: Calculator | None = None,
) -> EnergyModel:
    """Load and test a potential, and check that its energies fit the hull.

    Args:
        potential: name, see `flowllm.energy.calculators.check_potential_name`.
        hull: hull of the known compounds, or None.
        references: energies of the elements; None takes the references of the hull.
        min_elements: crystals with fewer elements do not count as stable.
        calculator: the potential if it is loaded and tested already.

    Returns:
        Potential and hull.

    Raises:
        UserError: if the potential is wrong, or does not fit the references.
    """
    scheme = energy_scheme(potential, calculator or load_calculator(potential))
    identity = potential_identity(potential)
    if hull is not None:
        references = fitting_references(hull, references, scheme=scheme, potential=identity)
    return EnergyModel(
        potential=potential,
        identity=identity,
        scheme=scheme,
        elements=known_elements(potential),
        hull=hull,
        references=references,
        min_elements=min_elements,
    )


def warn_of_elements(generated: GeneratedSet, model: EnergyModel) -> None:
    """Log, before hours of relaxing, what elements of a set will have no meaningful energy.

    Args:
        generated: the set.
        model: potential and hull.
    """
    structures = list(generated.existing.values())
    warn_of_unlearnt(structures, model.potential, name=generated.name)
    if model.references is None:
        return
    count, missing = holding_others(structures, frozenset(model.references.energies))
    if count:
        logger.warning(
            "%s: %d crystals hold elements without a reference in %s (%s): they will have no "
            "energy above the hull",
            *(generated.name, count, model.references.source, ", ".join(missing)),
        )


def relax_set(
    generated: GeneratedSet,
    model: EnergyModel,
    *,
    out: Path,
    workers: int,
    executor: str,
    progress: bool,
) -> RelaxedSet:
    """Relax the crystals of a set, starting from the cells of its file.

    Crystals with atoms within 0.5 Angstrom of each other (images included) are not relaxed:
    potentials are not trained on them, and their neighbour lists fill the memory. They count as
    failed.

    Args:
        generated: the set.
        model: potential and hull.
        out: run folder of `flowllm.energy.relaxation.relax_crystals`; a later call resumes it.
        workers: batches at work at a time; on this machine not more than GPUs, if it has some.
        executor: where they work.
        progress: show a bar on a terminal.

    Returns:
        The relaxed set.
    """
    count = len(generated.crystals)
    tried = {i: s for i, s in generated.existing.items() if structural_validity(s)}
    relaxed: list[Structure | None] = [None] * count
    failures = [None if s is None else _INVALID for s in generated.structures]
    energies: list[float | None] = [None] * count
    changes = [RelaxationChange()] * count
    if tried:
        device = pick_potential_device(model.potential, "auto")
        if executor == LOCAL:
            workers = min(workers, num_gpus(device) or workers)
        ids = _distinct([generated.crystals[i].id for i in tried])
        relax_crystals(
            [
                Crystal(id=name, structure=structure)
                for name, structure in zip(ids, tried.values(), strict=True)
            ],
            potential=model.potential,
            out=out,
            workers=workers,
            executor=executor,
            device=device,
            progress=progress,
        )
        run = read_relaxed(out)
        for k, i in enumerate(tried):
            relaxed[i], failures[i] = run.structures[k], run.failures[k]
            energies[i] = run.energies_per_atom[k]
            changes[i] = relaxation_change(
                run.initial[k],
                run.structures[k],
                initial_energy_per_atom=run.initial_energies_per_atom[k],
                energy_per_atom=run.energies_per_atom[k],
                steps=run.steps[k],
            )
    distances = None
    if model.hull is not None:
        distances = hull_distances(
            relaxed,
            energies,
            model.hull,
            scheme=model.scheme,
            potential=model.identity,
            references=model.references,
        )
    return RelaxedSet(
        model=model,
        relaxed=relaxed,
        failures=failures,
        energies_per_atom=energies,
        changes=changes,
        distances=distances,
        num_tried=len(tried),
    )


def add_energy_metrics(
    result: SetResult, energies: RelaxedSet, train: Sequence[TrainingSet], *, seed: int
) -> None:
    """Add relaxation figures, stability and S.U.N. to the metrics and rows of a set.

    All rates count over all requested crystals. For S.U.N. the relaxed crystals are compared with
    each other and with the training sets, since stability is a property of the relaxed crystal; of
    equal ones the lowest counts.

    Args:
        result: result of the set, extended in place.
        energies: the relaxed set.
        train: training sets for the novelty.
        seed: seed of the bootstrap intervals.
    """
    for row, failure, energy, change in zip(
        result.rows, energies.failures, energies.energies_per_atom, energies.changes, strict=True
    ):
        row |= {
            "relaxation_failure": failure,
            "energy_per_atom": energy,
            "relaxed_rmsd": change.rmsd,
            "energy_drop": change.energy_drop_per_atom,
            "relaxation_steps": change.steps,
        }
    result.metrics |= relaxation_metrics(energies.changes, seed=seed)
    above = energies.e_above_hull
    if energies.distances is None or above is None:
        return
    num_elements = [0 if s is None else len(s.composition) for s in energies.relaxed]
    min_elements = energies.model.min_elements
    stable, metastable = (
        is_stable(above, threshold=limit, num_elements=num_elements, min_elements=min_elements)
        for limit in (0.0, METASTABLE)
    )
    unique, novel = _unique_and_novel(energies.relaxed, above, train)
    both = None if novel is None else unique & novel
    for i, (row, distance) in enumerate(zip(result.rows, energies.distances, strict=True)):
        row |= {
            "formation_energy_per_atom": distance.formation_energy_per_atom,
            "e_above_hull": distance.e_above_hull,
            "hull_failure": None if energies.relaxed[i] is None else distance.failure,
            "stable": bool(stable[i]),
        }
        if novel is not None and both is not None and distance.e_above_hull is not None:
            row |= {"relaxed_unique": bool(unique[i]), "relaxed_novel": bool(novel[i])}
        if both is not None:
            row |= {
                "sun": bool(stable[i] and both[i]),
                "metastable_sun": bool(metastable[i] and both[i]),
            }
    known = [energy for energy in above if energy is not None]
    result.metrics["median_e_above_hull"] = bootstrap(known, np.median, seed=seed)
    result.metrics |= stability_rates(
        above, unique=unique, novel=novel, num_elements=num_elements, min_elements=min_elements
    )


def _unique_and_novel(
    relaxed: Sequence[Structure | None],
    above: Sequence[float | None],
    train: Sequence[TrainingSet],
) -> tuple[NDArray[np.bool_], NDArray[np.bool_] | None]:
    """Return two masks (N,); the second is None without training sets."""
    unique = np.zeros(len(relaxed), dtype=bool)
    novel = np.zeros(len(relaxed), dtype=bool)
    # The lowest of equal crystals comes first, as others may lie above a threshold.
    ranked = sorted(
        (energy, i, structure)
        for i, (energy, structure) in enumerate(zip(above, relaxed, strict=True))
        if energy is not None and structure is not None
    )
    order = [i for _, i, _ in ranked]
    structures = [structure for _, _, structure in ranked]
    unique[order] = [first is None for first in duplicates(structures)]
    if not train:
        return unique, None
    novel[order] = True
    for known in train:
        found = matches(structures, [c.structure for c in known.crystals])
        novel[order] &= [index is None for index in found]
    return unique, novel


def _distinct(ids: Sequence[str]) -> list[str]:
    """Return ids with a number added to those that occur more than once."""
    count = Counter(ids)
    names: list[str] = []
    taken = set(ids)
    for number, name in enumerate(ids):
        if count[name] > 1:
            name = f"{name} #{number}"
            while name in taken:
                name += "'"
            taken.add(name)
        names.append(name)
    return names
