"""Names of well-known prototypes, such as rock salt.

A name goes with a space group and Wyckoff letters, whatever the values of the free parameters.
Where a structure and its anti-type have names of their own, the place of the most electronegative
element decides.
"""

from __future__ import annotations

from collections import defaultdict
from functools import cache

from flowllm.templates.prototypes import MAX_ELEMENTS, Placement, Prototype, place
from llm_prior.errors import PriorError
from llm_prior.wyckoff.crystal import Orbit, WyckoffCrystal, element_order
from llm_prior.wyckoff.table import space_group

# Name and gene of the compound that the prototype is named after, in the setting of
# `flowllm.crystals.symmetry.Symmetry`.
ARCHETYPES = (
    ("fcc", "225 Cu:a"),
    ("bcc", "229 W:a"),
    ("hcp", "194 Mg:c"),
    ("simple cubic", "221 Po:a"),
    ("diamond", "227 C:a"),
    ("rock salt", "225 Na:a Cl:b"),
    ("CsCl", "221 Cs:a Cl:b"),
    ("zinc blende", "216 Zn:a S:c"),
    ("wurtzite", "186 Zn:b S:b"),
    ("NiAs", "194 Ni:a As:c"),
    ("WC", "187 W:a C:d"),
    ("h-BN", "194 B:c N:d"),
    ("litharge", "129 O:a Pb:c"),
    ("CuAu", "123 Cu:a Au:d"),
    ("fluorite", "225 Ca:a F:c"),
    ("antifluorite", "225 Li:c O:a"),
    ("rutile", "136 Ti:a O:f"),
    ("anatase or ThSi2", "141 Ti:a O:e"),
    ("pyrite", "205 Fe:a S:c"),
    ("marcasite", "58 Fe:a S:g"),
    ("CdI2", "164 Cd:a I:d"),
    ("CdCl2", "166 Cd:a Cl:c"),
    ("2H-MoS2", "194 Mo:c S:f"),
    ("cotunnite or Co2Si", "62 Pb:c Cl:c Cl:c"),
    ("AlB2", "191 Al:a B:d"),
    ("MoSi2", "139 Mo:a Si:e"),
    ("C14 Laves phase", "194 Mg:f Zn:a Zn:h"),
    ("C15 Laves phase", "227 Mg:a Cu:d"),
    ("Cu3Au", "221 Au:a Cu:c"),
    ("Al3Ti", "139 Ti:a Al:b Al:d"),
    ("ReO3", "221 Re:a O:d"),
    ("BiF3", "225 Bi:a F:b F:c"),
    ("A15", "223 Si:a Cr:c"),
    ("Ni3Sn", "194 Sn:c Ni:h"),
    ("skutterudite", "204 Co:c As:g"),
    ("CaCu5", "191 Ca:a Cu:c Cu:g"),
    ("CaB6", "221 Ca:a B:f"),
    ("corundum", "167 Al:c O:e"),
    ("cementite", "62 C:c Fe:c Fe:d"),
    ("perovskite", "221 Sr:a Ti:b O:c"),
    ("antiperovskite", "221 N:b Ga:a Mn:c"),
    ("tetragonal perovskite", "99 Ba:a Ti:b O:b O:c"),
    ("GdFeO3", "62 Gd:c Fe:a O:c O:d"),
    ("ilmenite", "148 Fe:c Ti:c O:f"),
    ("LiNbO3", "161 Li:a Nb:a O:b"),
    ("calcite", "167 Ca:b C:a O:e"),
    ("spinel", "227 Mg:a Al:d O:e"),
    ("chalcopyrite", "122 Cu:a Fe:b S:d"),
    ("NaFeO2 or delafossite", "166 Na:a Fe:b O:c"),
    ("half-Heusler", "216 Mg:a Ag:c As:b"),
    ("Heusler", "225 Mn:a Al:b Cu:c"),
    ("inverse Heusler", "216 Hg:a Cu:b Ti:c Cu:d"),
    ("ThCr2Si2", "139 Th:a Cr:d Si:e"),
    ("K2NiF4", "139 K:e Ni:a F:c F:e"),
    ("PbFCl", "129 Pb:c F:a Cl:c"),
    ("zircon", "141 Zr:a Si:b O:h"),
    ("scheelite", "88 Ca:a W:b O:f"),
    ("elpasolite", "225 K:c Na:a Al:b F:e"),
    ("K2PtCl6", "225 K:c Pt:a Cl:e"),
)


def prototype_name(crystal: WyckoffCrystal) -> str | None:
    """Return the name of the prototype of a crystal; None if it has none here.

    Args:
        crystal: in its canonical description.
    """
    if len(crystal.composition) > MAX_ELEMENTS:
        return None
    placement = place(crystal)
    names = _names().get(placement.prototype, {})
    if len(names) == 1:
        return next(iter(names.values()))
    return names.get(_role(placement))


@cache
def _names() -> dict[Prototype, dict[int, str]]:
    """The names of each prototype by the slot of the most electronegative element."""
    found: dict[Prototype, dict[int, str]] = defaultdict(dict)
    for name, gene in ARCHETYPES:
        placement = place(crystal_of_gene(gene))
        found[placement.prototype][_role(placement)] = name
    return dict(found)


def _role(placement: Placement) -> int:
    """Return the slot of the most electronegative element, the first of equivalent ones."""
    order = element_order()
    anion = max(placement.elements, key=lambda symbol: order[symbol])
    place_of = placement.elements.index(anion)
    return min(swap.index(place_of) for swap in placement.swaps)


def crystal_of_gene(gene: str) -> WyckoffCrystal:
    """Return a crystal of a gene, with values of no meaning for its free parameters.

    Args:
        gene: such as `225 Na:a Cl:b`.

    Raises:
        PriorError: if the group has no such letter.
    """
    number, *orbits = gene.split()
    group = space_group(int(number))
    made = []
    for orbit in orbits:
        element, _, letter = orbit.partition(":")
        try:
            num_free = group.position(letter).num_free
        except (KeyError, StopIteration) as error:
            raise PriorError(f"group {number} has no position {letter}") from error
        made.append(Orbit(element=element, letter=letter, coords=(0.1,) * num_free))
    return WyckoffCrystal(spacegroup=group.number, orbits=tuple(made), cell=())
