"""Stability against the known compounds, and S.U.N.: stable, unique and novel."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pymatgen.core import Structure

from flowllm.energy.formation import (
    NoFormationEnergy,
    References,
    check_fit,
    formation_energy_per_atom,
)
from flowllm.energy.hull import Hull
from flowllm.errors import UserError
from flowllm.metrics.intervals import Estimate, rate

THRESHOLDS = (0.0, 0.03, 0.1)  # eV/atom
METASTABLE = 0.1  # eV/atom; Zeni et al. 2025
Mask = NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True)
class HullDistance:
    """Where a crystal lies against the hull.

    Attributes:
        formation_energy_per_atom: eV/atom, or None.
        e_above_hull: eV/atom, negative below the known compounds, or None.
        failure: why there are no numbers, else None.
    """

    formation_energy_per_atom: float | None = None
    e_above_hull: float | None = None
    failure: str | None = None


def hull_distances(
    structures: Sequence[Structure | None],
    energies_per_atom: Sequence[float | None],
    hull: Hull,
    *,
    scheme: str,
    potential: Mapping[str, Any],
    references: References | None = None,
) -> list[HullDistance]:
    """Energy above the hull of relaxed crystals: E_f - E_hull(composition), eV/atom.

    Args:
        structures: N relaxed crystals; None for one that failed.
        energies_per_atom: of the potential, eV/atom; None for one that failed.
        hull: of the known compounds.
        scheme: what the energies are; see `flowllm.energy.calculators.EnergyScheme`.
        potential: identity of the potential; see `flowllm.energy.calculators.potential_identity`.
        references: of the elements; None takes those of the hull.

    Raises:
        UserError: no references, or such that do not go with the potential.
    """
    references = references if references is not None else hull.references
    name = str(potential.get("name"))
    if references is None:
        raise UserError(
            f"the hull {hull.source} holds formation energies and {name} gives absolute ones: give "
            "energies of the elements as references"
        )
    check_fit(references, scheme=scheme, potential=potential, name=name)
    found = []
    for structure, energy in zip(structures, energies_per_atom, strict=True):
        if structure is None or energy is None:
            found.append(HullDistance(failure="not relaxed"))
            continue
        try:
            formation = formation_energy_per_atom(
                structure, energy, scheme=scheme, references=references
            )
        except NoFormationEnergy as error:
            found.append(HullDistance(failure=str(error)))
            continue
        above = hull.e_above_hull(structure.composition, formation)
        found.append(HullDistance(formation_energy_per_atom=formation, e_above_hull=above))
    return found


def is_stable(
    e_above_hull: Sequence[float | None],
    *,
    threshold: float = 0.0,
    num_elements: Sequence[int] | None = None,
    min_elements: int = 1,
) -> Mask:
    """Which crystals lie below a threshold: e_above_hull < threshold, (N,).

    FlowLLM (Sriram et al. 2024) and FlowMM (Miller et al. 2024) count a crystal as stable for
    threshold 0 and at least two elements (`min_elements=2`). What has no energy is not stable.

    Args:
        e_above_hull: eV/atom; None where there is none.
        threshold: eV/atom.
        num_elements: of each crystal; needed for `min_elements`.
        min_elements: crystals of fewer are not counted as stable.
    """
    below = np.array([e is not None and e < threshold for e in e_above_hull], dtype=bool)
    if min_elements == 1:
        return below
    if num_elements is None:
        raise UserError("min_elements needs the number of elements of each crystal")
    return below & (np.asarray(num_elements, dtype=int) >= min_elements)


def stability_rates(
    e_above_hull: Sequence[float | None],
    *,
    unique: Mask | None = None,
    novel: Mask | None = None,
    num_elements: Sequence[int] | None = None,
    min_elements: int = 1,
    thresholds: Sequence[float] = THRESHOLDS,
) -> dict[str, Estimate]:
    """Shares of all N crystals, those without an energy included.

    `stable_0`, `stable_0.03`, `stable_0.1`: below each threshold. `sun`: stable (threshold 0),
    unique and novel; `metastable_sun`: the same below 0.1 eV/atom (Zeni et al. 2025, Nature 639,
    624). The last two only where both masks are given.

    Args:
        e_above_hull: (N,), eV/atom; None where there is none.
        unique: (N,), one crystal of each group of equal ones.
        novel: (N,), in no reference set.
        num_elements, min_elements: see `is_stable`.
        thresholds: eV/atom.
    """
    count = len(e_above_hull)

    def stable(threshold: float) -> Mask:
        return is_stable(
            e_above_hull,
            threshold=threshold,
            num_elements=num_elements,
            min_elements=min_elements,
        )

    rates = {
        f"stable_{threshold:g}": rate(int(stable(threshold).sum()), count)
        for threshold in thresholds
    }
    if unique is not None and novel is not None:
        both = np.asarray(unique, dtype=bool) & np.asarray(novel, dtype=bool)
        rates["sun"] = rate(int((stable(0.0) & both).sum()), count)
        rates["metastable_sun"] = rate(int((stable(METASTABLE) & both).sum()), count)
    return rates
