"""Agreement of generated crystals with the conditions they were generated for."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from pymatgen.core import Structure

from flowllm.crystals.crystal import ignore_missing_electronegativity
from flowllm.metrics.intervals import Estimate, rate
from flowllm.metrics.prototypes import SYMPREC
from flowllm.metrics.symmetry import spacegroup_number
from llm_prior.prompts import BY_NAME, parse_composition
from llm_prior.spacegroups import parse_spacegroups

SYMPRECS = (0.2, SYMPREC)  # Angstrom; Gruver et al. 2024 use the first
HULL_TOLERANCE = 0.1  # eV/atom


@ignore_missing_electronegativity()
def conditions_met(
    structure: Structure | None,
    conditions: Mapping[str, Any],
    *,
    e_above_hull: float | None = None,
    spacegroup: int | None = None,
) -> dict[str, bool]:
    """Return for each condition whether a crystal meets it.

    - formula: the reduced formulas are equal.
    - elements: the sets of elements are equal.
    - num_atoms: the number of atoms in the cell as generated is the number or in the range.
    - spacegroup: the number at a tolerance of 0.2 Angstrom, as in Gruver et al. 2024 (arXiv
      2402.04379), or one of a set of numbers; with the name `spacegroup_0.1`, at 0.1 Angstrom.
    - e_above_hull: at most 0.1 eV/atom above the requested value; left out where the energy is
      unknown.

    Band gap and formation energy are not checked.

    Args:
        structure: crystal in the cell as generated; None for a failed one, which meets nothing.
        conditions: requested values by the names of `llm_prior.prompts.ATTRIBUTES`.
        e_above_hull: energy above the hull in eV/atom; infinite for a crystal that could not be
            relaxed, which does not meet the condition.
        spacegroup: number of the group at 0.1 Angstrom where it is known; None has it searched.

    Returns:
        Condition -> whether it is met.
    """
    found: dict[str, bool] = {}
    for name, value in conditions.items():
        match name:
            case "formula":
                requested = parse_composition(value).reduced_formula
                found[name] = (
                    structure is not None and structure.composition.reduced_formula == requested
                )
            case "elements":
                found[name] = structure is not None and _symbols(structure) == _requested(value)
            case "num_atoms":
                found[name] = structure is not None and BY_NAME[name].holds_for(structure, value)
            case "spacegroup":
                groups = parse_spacegroups(value)
                for symprec in SYMPRECS:
                    key = name if symprec == SYMPRECS[0] else f"{name}_{symprec}"
                    number = spacegroup if symprec == SYMPREC else None
                    if number is None and structure is not None:
                        number = spacegroup_number(structure, symprec=symprec)
                    found[key] = structure is not None and number in groups
            case "e_above_hull":
                if structure is None or e_above_hull is not None:
                    found[name] = (
                        e_above_hull is not None and e_above_hull <= float(value) + HULL_TOLERANCE
                    )
    return found


def condition_rates(
    judged: Sequence[Mapping[str, bool]], num_atoms: Sequence[int | None]
) -> dict[str, Estimate]:
    """Return the share of crystals that meet each condition, overall and by number of atoms.

    Args:
        judged: results of `conditions_met` for N crystals.
        num_atoms: (N,), atoms in the cell; None for a failed crystal, which counts in the overall
            share only.

    Returns:
        Shares under `NAME` and `NAME[num_atoms=N]`.
    """
    counts: dict[str, list[bool]] = defaultdict(list)
    for conditions, size in zip(judged, num_atoms, strict=True):
        for name, ok in conditions.items():
            counts[name].append(ok)
            if size is not None:
                counts[f"{name}[num_atoms={size}]"].append(ok)
    return {name: rate(sum(values), len(values)) for name, values in counts.items()}


def _symbols(structure: Structure) -> set[str]:
    return {element.symbol for element in structure.composition.elements}


def _requested(value: Any) -> set[str]:
    words = value.replace("-", ",").split(",") if isinstance(value, str) else value
    return {str(word).strip() for word in words}
