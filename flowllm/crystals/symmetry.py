"""Space group, Wyckoff orbits and prototype of a crystal."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from pymatgen.core import Structure

from flowllm.crystals.cells import make_structure
from flowllm.crystals.crystal import UNREADABLE
from flowllm.crystals.lattices import comparable, unskewed
from llm_prior.errors import PriorError
from llm_prior.wyckoff.analysis import DEFAULT_SYMPREC as SYMPREC
from llm_prior.wyckoff.analysis import describe, describe_at
from llm_prior.wyckoff.crystal import WyckoffCrystal
from llm_prior.wyckoff.normal_form import canonical, canonical_letters

__all__ = ["SYMPREC", "OccupiedOrbit", "Symmetry", "gene_of", "symmetry_of"]

_EXACT = 1e-3  # Angstrom; symprec for a crystal that is exactly symmetric
_BINS = 1000  # of a coordinate, where descriptions of one crystal are compared


class OccupiedOrbit(NamedTuple):
    """An element on a Wyckoff position.

    Attributes:
        element: symbol.
        letter: Wyckoff letter.
        multiplicity: number of atoms in the conventional cell.
    """

    element: str
    letter: str
    multiplicity: int


@dataclass(frozen=True, kw_only=True)
class Symmetry:
    """The symmetry of a crystal.

    Attributes:
        crystal: the crystal, made exactly symmetric, in its canonical description: of all choices
            of origin and axes that keep the setting and the hand, the one with the first letters.
            The setting is spglib's default: origin choice 1, hexagonal axes, unique axis b.
        misfit: largest distance in Angstrom of an atom, or of the end of a vector of the
            conventional cell, from its place in `crystal`.
    """

    crystal: WyckoffCrystal
    misfit: float

    @property
    def spacegroup(self) -> int:
        """International number, 1 to 230."""
        return self.crystal.spacegroup

    @property
    def orbits(self) -> tuple[OccupiedOrbit, ...]:
        """The orbits, by electronegativity of the element, then letter."""
        group = self.crystal.group
        return tuple(
            OccupiedOrbit(o.element, o.letter, group.position(o.letter).multiplicity)
            for o in self.crystal.orbits
        )

    @property
    def wyckoff(self) -> str:
        """`ELEMENT:LETTER` of each orbit with a space between, such as `Na:a Cl:b`.

        An element with several orbits of one letter has as many entries. The letters are those of
        the canonical description; a text in the layout `wyckoff` may have chosen another origin.
        """
        return _letters(self.crystal)

    @property
    def num_free(self) -> int:
        """Number of free parameters: of the cell and of the coordinates.

        The origin along polar axes is no parameter.
        """
        group = self.crystal.group
        coords = sum(group.position(orbit.letter).num_free for orbit in self.crystal.orbits)
        return len(self.crystal.cell) + coords - len(group.polar_axes)

    @cached_property
    def gene(self) -> str:
        """The prototype with its elements: group and letters, such as `225 Na:a Cl:b`.

        Two crystals have the same gene if their groups and orbits are the same for some choice of
        origin and axes. Mirror images have the same gene; it names the first group of an
        enantiomorphic pair.
        """
        return gene_of(self.crystal)


def gene_of(crystal: WyckoffCrystal) -> str:
    """Return the gene of a crystal, see `Symmetry.gene`.

    Args:
        crystal: in any description.
    """
    partner = crystal.group.enantiomorph
    if partner is not None and partner < crystal.spacegroup:
        crystal = describe(crystal.primitive(), _EXACT)  # its mirror image
    orbits = " ".join(f"{element}:{letter}" for element, letter in canonical_letters(crystal))
    return f"{crystal.spacegroup} {orbits}"


def symmetry_of(structure: Structure, symprec: float = SYMPREC) -> Symmetry | None:
    """Return the symmetry of a crystal by moyo, where it is exact, or spglib.

    Args:
        structure: an ordered crystal in any cell.
        symprec: distance in Angstrom within which atoms count as symmetric.

    Returns:
        The symmetry; None if the search fails at this `symprec`, or a lattice vector is shorter
        than 1 Angstrom: spglib would take hours for such a cell.

    Raises:
        llm_prior.PriorError: if a site is disordered or no chemical element.
    """
    try:
        if not comparable(structure):
            return None
        found = describe_at(unskewed(structure), symprec)
    except PriorError:
        raise
    except UNREADABLE:  # for cells of a diverging generator
        return None
    if found is None:
        return None
    try:
        crystal = canonical(found.crystal, _BINS, keep_hand=True)
    except PriorError:  # no Niggli cell
        return None
    return Symmetry(crystal=crystal, misfit=found.misfit)


def symmetrized(structure: Structure, symprec: float = SYMPREC) -> Structure | None:
    """Return a crystal made exactly symmetric, in its own cell and with its sites in order.

    Args:
        structure: an ordered crystal.
        symprec: see `symmetry_of`.

    Returns:
        The crystal, of which no atom moved by much more than `symprec`; None if the search fails.

    Raises:
        llm_prior.PriorError: if a site is disordered or no chemical element.
    """
    found = describe_at(structure, symprec)
    if found is None:
        return None
    return make_structure(found.lattice, structure.atomic_numbers, found.frac_coords)


def _letters(crystal: WyckoffCrystal) -> str:
    return " ".join(f"{orbit.element}:{orbit.letter}" for orbit in crystal.orbits)
