"""The volume that known crystals suggest for a crystal."""

from __future__ import annotations

import functools

from pymatgen.core import Structure

from flowllm.crystals.symmetry import symmetry_of
from flowllm.errors import FlowLLMError
from flowllm.templates.library import TemplateLibrary
from flowllm.templates.proposals import Proposal, propose_templates

_ALL = 1000  # more genes than the templates of a stoichiometry have in one group


def template_volume(
    structure: Structure, *, exclude_formula: bool = False, library: TemplateLibrary | None = None
) -> float | None:
    """Return the volume of a crystal according to the templates of its stoichiometry.

    The templates get the elements of the crystal, and their cells are scaled by
    `flowllm.templates.ranking.Ranking.growth`. Of those with the space group and Wyckoff letters of
    the crystal the likeliest one counts, else the likeliest one of all.

    Args:
        structure: an ordered crystal.
        exclude_formula: leave out templates of the same reduced formula.
        library: the templates; None: the bundled ones.

    Returns:
        The volume of the cell of `structure`, Angstrom^3; None without templates.
    """
    formula = structure.composition.reduced_formula
    propose = functools.partial(propose_templates, exclude_formula=exclude_formula, library=library)
    symmetry = symmetry_of(structure)
    chosen: Proposal | None = None
    try:
        if symmetry is not None:
            found = propose(formula, n=_ALL, spacegroups=[symmetry.spacegroup])
            chosen = next((p for p in found if p.gene == symmetry.gene), None)
        if chosen is None:
            chosen = next(iter(propose(formula, n=1)), None)
    except FlowLLMError:  # no template has so many elements or so few atoms
        return None
    if chosen is None:
        return None
    per_atom = chosen.structure.volume / len(chosen.structure)
    return float(per_atom * len(structure))


def with_template_volume(structure: Structure, *, exclude_formula: bool = False) -> Structure:
    """Return a crystal scaled to `template_volume`, or as it is where there is none.

    Args:
        structure: an ordered crystal; not changed.
        exclude_formula: leave out templates of the same reduced formula.
    """
    volume = template_volume(structure, exclude_formula=exclude_formula)
    if volume is None:
        return structure
    scaled = structure.copy()
    scaled.scale_lattice(volume)
    return scaled
