"""The volume that known crystals suggest for a crystal."""

from __future__ import annotations

import functools
from collections.abc import Collection

from pymatgen.core import Lattice, Structure

from flowllm.crystals.symmetry import symmetry_of
from flowllm.errors import FlowLLMError
from flowllm.system.files import sha256_file
from flowllm.templates.library import BUNDLED, TemplateLibrary
from flowllm.templates.proposals import propose_templates
from flowllm.templates.ranking import ranking_sha256


def template_files() -> dict[str, str]:
    """Return the hashes of the files that the volumes come from, by the names of manifests."""
    return {"templates": sha256_file(BUNDLED), "ranking": ranking_sha256()}


def template_volume(
    structure: Structure,
    *,
    exclude_formula: bool = False,
    exclude_ids: Collection[str] = (),
    library: TemplateLibrary | None = None,
) -> float | None:
    """Return the volume of a crystal according to the templates of its stoichiometry.

    The templates get the elements of the crystal, and their cells are scaled by
    `flowllm.templates.ranking.Ranking.growth`. Of those with the space group and Wyckoff letters of
    the crystal the likeliest one counts, else the likeliest one of all.

    Args:
        structure: an ordered crystal.
        exclude_formula: leave out templates of the same reduced formula.
        exclude_ids: leave out these templates.
        library: the templates; None: the bundled ones.

    Returns:
        The volume of the cell of `structure`, Angstrom^3; None without templates.
    """
    propose = functools.partial(
        propose_templates,
        structure.composition.formula,
        exclude_formula=exclude_formula,
        exclude_ids=exclude_ids,
        library=library,
    )
    symmetry = symmetry_of(structure)
    try:
        chosen = None
        if symmetry is not None:
            found = propose(n=None, spacegroups=[symmetry.spacegroup])
            chosen = next((p for p in found if p.gene == symmetry.gene), None)
        if chosen is None:
            chosen = next(iter(propose(n=1)), None)
        if chosen is None:
            return None
        crystal = chosen.crystal
    except FlowLLMError:  # too many elements or atoms for a template
        return None
    conventional = Lattice.from_parameters(*crystal.parameters).volume
    primitive = conventional / len(crystal.group.centring)
    return float(primitive / crystal.num_atoms * len(structure))


def with_template_volume(
    structure: Structure,
    *,
    exclude_formula: bool = False,
    exclude_ids: Collection[str] = (),
    library: TemplateLibrary | None = None,
) -> Structure:
    """Return a crystal scaled to `template_volume`, or as it is where there is none.

    Args:
        structure: an ordered crystal; not changed.
        exclude_formula: leave out templates of the same reduced formula.
        exclude_ids: leave out these templates.
        library: the templates; None: the bundled ones.
    """
    volume = template_volume(
        structure, exclude_formula=exclude_formula, exclude_ids=exclude_ids, library=library
    )
    if volume is None:
        return structure
    scaled = structure.copy()
    scaled.scale_lattice(volume)
    return scaled
