"""The volume that known crystals suggest for a crystal."""

from __future__ import annotations

import functools
from collections.abc import Collection

from pymatgen.core import Lattice, Structure

from flowllm.crystals.symmetry import SYMPREC, gene_of, symmetry_of
from flowllm.errors import FlowLLMError
from flowllm.system.files import sha256_file
from flowllm.templates.library import BUNDLED, TemplateLibrary
from flowllm.templates.proposals import propose_templates
from flowllm.templates.ranking import ranking_sha256
from llm_prior.wyckoff.crystal import WyckoffCrystal, moyo_group


def template_files() -> dict[str, str]:
    """Return the hashes of the files that the volumes come from, by the names of manifests."""
    return {"templates": sha256_file(BUNDLED), "ranking": ranking_sha256()}


def template_volume(
    structure: Structure,
    *,
    exclude_formula: bool = False,
    exclude_ids: Collection[str] = (),
    library: TemplateLibrary | None = None,
    crystal: WyckoffCrystal | None = None,
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
        crystal: space group and orbits that `structure` was made from, if they are known; this
            saves a search, and changes nothing.

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
    if crystal is None or moyo_group(structure, SYMPREC) != crystal.spacegroup:
        symmetry = symmetry_of(structure)
        crystal = None if symmetry is None else symmetry.crystal
    try:
        chosen = None
        if crystal is not None:
            gene = gene_of(crystal)
            found = propose(n=None, spacegroups=[crystal.spacegroup])
            chosen = next((p for p in found if p.gene == gene), None)
        if chosen is None:
            chosen = next(iter(propose(n=1)), None)
        if chosen is None:
            return None
        known = chosen.crystal
    except FlowLLMError:  # too many elements or atoms for a template
        return None
    conventional = Lattice.from_parameters(*known.parameters).volume
    primitive = conventional / len(known.group.centring)
    return float(primitive / known.num_atoms * len(structure))


def with_template_volume(
    structure: Structure,
    *,
    exclude_formula: bool = False,
    exclude_ids: Collection[str] = (),
    library: TemplateLibrary | None = None,
    crystal: WyckoffCrystal | None = None,
) -> Structure:
    """Return a crystal scaled to `template_volume`, or as it is where there is none.

    A scaled crystal has no site properties and no charge.

    Args:
        structure: an ordered crystal; not changed.
        exclude_formula: leave out templates of the same reduced formula.
        exclude_ids: leave out these templates.
        library: the templates; None: the bundled ones.
        crystal: see `template_volume`.
    """
    volume = template_volume(
        structure,
        exclude_formula=exclude_formula,
        exclude_ids=exclude_ids,
        library=library,
        crystal=crystal,
    )
    if volume is None:
        return structure
    species = [site.species for site in structure]
    return Structure(structure.lattice.scale(volume), species, structure.frac_coords)
