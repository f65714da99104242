"""Generated crystals relaxed with a potential and put against a hull."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pymatgen.core import Structure

from flowllm.crystals.crystal import Crystal
from flowllm.energy.calculators import (
    energy_scheme,
    known_elements,
    load_calculator,
    potential_identity,
)
from flowllm.energy.formation import References
from flowllm.energy.hull import Hull
from flowllm.energy.relaxation import read_relaxed, relax_crystals
from flowllm.evaluation.measured import Known, Measured
from flowllm.evaluation.sets import GeneratedSet
from flowllm.metrics.intervals import bootstrap
from flowllm.metrics.refinement import Refinement, refinement, refinement_figures
from flowllm.metrics.stability import (
    METASTABLE,
    HullDistance,
    hull_distances,
    is_stable,
    stability_rates,
)
from flowllm.metrics.uniqueness import duplicates, matches
from flowllm.metrics.validity import structural_validity

_INVALID = "atoms within 0.5 Angstrom: not relaxed"


@dataclass(frozen=True, kw_only=True)
class Judge:
    """A potential that was tested, and the hull that its energies are put against.

    Attributes:
        potential: as `flowllm.energy.calculators.load_calculator` takes it.
        identity: of the potential.
        scheme: of its energies.
        elements: that it has learnt; None where it does not say.
        hull: of the known compounds; None: no energies above a hull.
        references: of the elements; None takes the hull's own.
        min_elements: crystals of fewer elements do not count as stable.
    """

    potential: str
    identity: Mapping[str, Any]
    scheme: str
    elements: frozenset[str] | None
    hull: Hull | None = None
    references: References | None = None
    min_elements: int = 1


@dataclass(frozen=True, kw_only=True)
class Energies:
    """What a potential makes of a set, N crystals in the order of the set.

    Attributes:
        judge: that said so.
        relaxed: None for a crystal that is missing, impossible, or failed.
        failures: why there is none, else None; None as well for a crystal that is missing.
        energies_per_atom: eV/atom by the potential.
        refinements: against the crystals as generated.
        distances: to the hull; None without a hull.
        num_tried: relaxations.
    """

    judge: Judge
    relaxed: Sequence[Structure | None]
    failures: Sequence[str | None]
    energies_per_atom: Sequence[float | None]
    refinements: Sequence[Refinement]
    distances: Sequence[HullDistance] | None
    num_tried: int

    @property
    def e_above_hull(self) -> list[float | None] | None:
        """Of each crystal, eV/atom; None as a whole without a hull."""
        return None if self.distances is None else [d.e_above_hull for d in self.distances]

    def for_conditions(self) -> list[float | None]:
        """Energies above the hull, infinite for what has none, or None for all without a hull."""
        if self.e_above_hull is None:
            return [None] * len(self.relaxed)
        return [math.inf if energy is None else energy for energy in self.e_above_hull]


def load_judge(
    potential: str, *, hull: Hull | None, references: References | None, min_elements: int
) -> Judge:
    """Load and test a potential, and see that its energies go with the hull.

    Raises:
        UserError: the potential is wrong, or does not go with the references.
    """
    scheme = energy_scheme(potential, load_calculator(potential))
    identity = potential_identity(potential)
    if hull is not None:
        hull_distances([], [], hull, scheme=scheme, potential=identity, references=references)
    return Judge(
        potential=potential,
        identity=identity,
        scheme=scheme,
        elements=known_elements(potential),
        hull=hull,
        references=references,
        min_elements=min_elements,
    )


def energies_of(
    generated: GeneratedSet, judge: Judge, *, out: Path, workers: int, progress: bool
) -> Energies:
    """Relax the crystals of a set, in the cells that they came in.

    Crystals with atoms within 0.5 Angstrom of each other (images included) are not relaxed: a
    potential knows nothing of them, and their neighbours fill the memory. They count as failed.

    Args:
        generated: the set.
        judge: potential and hull.
        out: run folder of `flowllm.energy.relaxation.relax_crystals`; a later call resumes it.
        workers, progress: as there.
    """
    crystals = generated.crystals
    tried = [
        i
        for i, c in enumerate(crystals)
        if c.structure is not None and structural_validity(c.structure)
    ]
    relaxed: list[Structure | None] = [None] * len(crystals)
    failures = [None if c.structure is None else _INVALID for c in crystals]
    energies: list[float | None] = [None] * len(crystals)
    refinements = [Refinement(rmsd=None, energy_drop_per_atom=None, steps=None)] * len(crystals)
    if tried:
        ids = _names_apart([crystals[i].id for i in tried])
        relax_crystals(
            [
                Crystal(id=name, structure=crystals[i].structure)
                for i, name in zip(tried, ids, strict=True)
            ],
            potential=judge.potential,
            out=out,
            workers=workers,
            progress=progress,
        )
        run = read_relaxed(out)
        for k, i in enumerate(tried):
            relaxed[i], failures[i] = run.structures[k], run.failures[k]
            energies[i] = run.energies_per_atom[k]
            refinements[i] = refinement(
                run.initial[k],
                run.structures[k],
                initial_energy_per_atom=run.initial_energies_per_atom[k],
                energy_per_atom=run.energies_per_atom[k],
                steps=run.steps[k],
            )
    distances = None
    if judge.hull is not None:
        distances = hull_distances(
            relaxed,
            energies,
            judge.hull,
            scheme=judge.scheme,
            potential=judge.identity,
            references=judge.references,
        )
    return Energies(
        judge=judge,
        relaxed=relaxed,
        failures=failures,
        energies_per_atom=energies,
        refinements=refinements,
        distances=distances,
        num_tried=len(tried),
    )


def add_energies(
    result: Measured, energies: Energies, train: Sequence[Known], *, seed: int
) -> None:
    """Add refinement figures, stability and S.U.N. to the metrics and rows of a set.

    All rates count over all crystals asked for. For S.U.N. the relaxed crystals are compared, with
    each other and with the training sets, as what is stable is the relaxed one; of equal ones the
    lowest counts.
    """
    for row, failure, energy, change in zip(
        result.rows,
        energies.failures,
        energies.energies_per_atom,
        energies.refinements,
        strict=True,
    ):
        row |= {
            "relaxation_failure": failure,
            "energy_per_atom": energy,
            "relaxed_rmsd": change.rmsd,
            "energy_drop": change.energy_drop_per_atom,
            "relaxation_steps": change.steps,
        }
    result.metrics |= refinement_figures(energies.refinements, seed=seed)
    above = energies.e_above_hull
    if energies.distances is None or above is None:
        return
    num_elements = [0 if s is None else len(s.composition) for s in energies.relaxed]
    counted = {"num_elements": num_elements, "min_elements": energies.judge.min_elements}
    unique, novel = _unique_and_novel(energies.relaxed, above, train)
    both = None if novel is None else unique & novel
    stable = is_stable(above, **counted)
    metastable = is_stable(above, threshold=METASTABLE, **counted)
    for i, (row, distance) in enumerate(zip(result.rows, energies.distances, strict=True)):
        row |= {
            "formation_energy_per_atom": distance.formation_energy_per_atom,
            "e_above_hull": distance.e_above_hull,
            "hull_failure": None if energies.relaxed[i] is None else distance.failure,
            "stable": bool(stable[i]),
        }
        if both is not None:
            row |= {
                "sun": bool(stable[i] and both[i]),
                "metastable_sun": bool(metastable[i] and both[i]),
            }
    known = [energy for energy in above if energy is not None]
    result.metrics["median_e_above_hull"] = bootstrap(known, np.median, seed=seed)
    result.metrics |= stability_rates(above, unique=unique, novel=novel, **counted)


def _unique_and_novel(
    relaxed: Sequence[Structure | None], above: Sequence[float | None], train: Sequence[Known]
) -> tuple[np.ndarray, np.ndarray | None]:
    """(N,) each; novel is None without training sets."""
    unique = np.zeros(len(relaxed), dtype=bool)
    novel = np.zeros(len(relaxed), dtype=bool)
    # The lowest first: it stands for its copies, which may lie on the other side of a threshold.
    order = sorted((i for i, e in enumerate(above) if e is not None), key=lambda i: above[i])
    structures = [relaxed[i] for i in order]
    unique[order] = [first is None for first in duplicates(structures)]
    if not train:
        return unique, None
    novel[order] = True
    for known in train:
        found = matches(structures, [c.structure for c in known.crystals])
        novel[order] &= [index is None for index in found]
    return unique, novel


def _names_apart(ids: Sequence[str]) -> list[str]:
    """Ids that occur once stay; others get a number."""
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
