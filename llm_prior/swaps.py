"""Which element may stand in for which: the swap table of CrystalLLM's template method."""

from __future__ import annotations

from functools import cache
from itertools import combinations

from pymatgen.core import Element

from llm_prior.text import SYMBOLS

RADIUS_TOLERANCE = 0.1  # Angstrom
_ROUNDING = 1e-9  # 1.26 - 1.16 is a little more than 0.1 in binary


@cache
def allowed_swaps() -> dict[str, frozenset[str]]:
    """For every element the elements that may replace it.

    Two elements swap if they share an oxidation state in which their ionic radii differ by at most
    0.1 Angstrom (Gruver et al. 2024, arXiv 2402.04379, template method). As in the authors' code,
    states and radii are pymatgen's `Element.ionic_radii`: one radius of Shannon (1976) for each
    state that is known in crystals, rare ones included, so the table errs on the side of allowing
    (Br may take the place of Fe by way of +3) and leaves it to the model's distribution or a
    potential to judge. It keeps ions of other sizes apart (Na+ and K+ differ by 0.36). An element
    without a partner of its size (Na), or without a radius (the noble gases but Xe, most of the
    heaviest), swaps with none. The relation is symmetric, and no element swaps with itself.
    """
    radii = {symbol: Element(symbol).ionic_radii for symbol in SYMBOLS}
    partners: dict[str, set[str]] = {symbol: set() for symbol in SYMBOLS}
    for one, other in combinations(SYMBOLS, 2):
        states = radii[one].keys() & radii[other].keys()
        limit = RADIUS_TOLERANCE + _ROUNDING
        if any(abs(radii[one][state] - radii[other][state]) <= limit for state in states):
            partners[one].add(other)
            partners[other].add(one)
    return {symbol: frozenset(found) for symbol, found in partners.items()}
