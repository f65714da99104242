"""Whether generated crystals have what was asked of them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from pymatgen.core import Composition, Structure

from flowllm.crystals.crystal import ignore_missing_electronegativity
from flowllm.metrics.intervals import Estimate, rate
from flowllm.metrics.symmetry import spacegroup_number
from llm_prior.prompts import BY_NAME
from llm_prior.spacegroups import parse_spacegroup

SYMPRECS = (0.2, 0.1)  # Angstrom; Gruver et al. 2024 take the first
HULL_TOLERANCE = 0.1  # eV/atom


@ignore_missing_electronegativity()
def met(
    structure: Structure | None,
    conditions: Mapping[str, Any],
    *,
    e_above_hull: float | None = None,
) -> dict[str, bool]:
    """Which of the conditions a crystal meets; a failed one (None) meets none.

    formula: equal reduced formulas. elements: the same set of elements. num_atoms: in the cell as
    generated, the number or within the range. spacegroup: its number at a tolerance of 0.2
    Angstrom, as in Gruver et al. 2024 (arXiv 2402.04379), and, named `spacegroup_0.1`, at 0.1.
    e_above_hull: at most 0.1 eV/atom above what was asked; only where it is known (relaxed
    crystals). Band gap and formation energy are not judged.

    Args:
        structure: in the cell it was generated in.
        conditions: by the names of `llm_prior.prompts.ATTRIBUTES`.
        e_above_hull: eV/atom; infinite for a crystal that could not be relaxed, which misses it.
    """
    found: dict[str, bool] = {}
    for name, value in conditions.items():
        match name:
            case "formula":
                asked = Composition(str(value)).reduced_formula
                found[name] = (
                    structure is not None and structure.composition.reduced_formula == asked
                )
            case "elements":
                found[name] = structure is not None and _symbols(structure) == _asked(value)
            case "num_atoms":
                found[name] = structure is not None and BY_NAME[name].holds_for(structure, value)
            case "spacegroup":
                for symprec in SYMPRECS:
                    key = name if symprec == SYMPRECS[0] else f"{name}_{symprec}"
                    found[key] = structure is not None and (
                        spacegroup_number(structure, symprec=symprec) == parse_spacegroup(value)
                    )
            case "e_above_hull":
                if structure is None or e_above_hull is not None:
                    found[name] = (
                        e_above_hull is not None and e_above_hull <= float(value) + HULL_TOLERANCE
                    )
    return found


def shares(
    judged: Sequence[Mapping[str, bool]], num_atoms: Sequence[int | None]
) -> dict[str, Estimate]:
    """Share of crystals that meet each condition, overall and by number of atoms.

    Args:
        judged: from `met`, one a crystal.
        num_atoms: of each; None for a failed one, which counts in the overall share only.

    Returns:
        `NAME` and `NAME[num_atoms=N]`.
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


def _asked(value: Any) -> set[str]:
    words = value.replace("-", ",").split(",") if isinstance(value, str) else value
    return {str(word).strip() for word in words}
