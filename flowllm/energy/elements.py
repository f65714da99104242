"""Elements of crystals that a potential or a table does not have."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

from flowllm.energy.calculators import known_elements

if TYPE_CHECKING:
    from pymatgen.core import Structure

logger = logging.getLogger(__name__)


def holding_others(
    structures: Sequence[Structure], elements: frozenset[str] | None
) -> tuple[int, list[str]]:
    """Return the number of crystals that hold other elements than some, and these other elements.

    Args:
        structures: crystals.
        elements: symbols; None counts nothing.

    Returns:
        The number, and symbols in alphabetical order.
    """
    if elements is None:
        return 0, []
    found = [structure.chemical_system_set - elements for structure in structures]
    return sum(map(bool, found)), sorted(frozenset().union(*found))


def warn_of_unlearnt(structures: Sequence[Structure], potential: str, *, name: str) -> None:
    """Log the elements of crystals that a potential has not learnt.

    Args:
        structures: the crystals.
        potential: name, see `flowllm.energy.calculators.check_potential_name`.
        name: of the file or set, for the message.
    """
    count, unlearnt = holding_others(structures, known_elements(potential))
    if count:
        logger.warning(
            "%s: %d of %d crystals hold elements that %s has not learnt (%s): their energies mean "
            "nothing",
            *(name, count, len(structures), potential, ", ".join(unlearnt)),
        )
