"""Prototypes: space group and Wyckoff letters of a crystal, without its elements."""

from __future__ import annotations

import itertools
from collections import defaultdict
from typing import NamedTuple

from llm_prior.wyckoff.crystal import WyckoffCrystal
from llm_prior.wyckoff.orbits import coset_letter

MAX_ELEMENTS = 6  # of a template: there are up to 720 ways to give 6 slots their elements
Swap = tuple[int, ...]


class Slot(NamedTuple):
    """The positions of one element.

    Attributes:
        num_atoms: atoms in the primitive cell.
        letters: places of the Wyckoff letters in the group, sorted.
    """

    num_atoms: int
    letters: tuple[int, ...]


class Prototype(NamedTuple):
    """Space group and Wyckoff letters of each element of a crystal, for elements without names.

    Attributes:
        spacegroup: International number.
        slots: the positions of each element, sorted; of all choices of origin and axes, the one
            that comes first.
    """

    spacegroup: int
    slots: tuple[Slot, ...]


class Placement(NamedTuple):
    """A prototype with its elements.

    Attributes:
        prototype: the prototype.
        elements: symbol of the element in each slot.
        swaps: permutations of the slots that give the same gene, the identity among them: slot i
            gets the element of slot `swap[i]`.
    """

    prototype: Prototype
    elements: tuple[str, ...]
    swaps: tuple[Swap, ...]


def place(crystal: WyckoffCrystal) -> Placement:
    """Return the prototype of a crystal and the elements in its slots.

    Two crystals have the same gene (`flowllm.crystals.symmetry.Symmetry.gene`) if they have the
    same prototype, and their elements agree up to one of its swaps.

    Args:
        crystal: of at most `MAX_ELEMENTS` elements, in its canonical description.
    """
    group = crystal.group
    letters: dict[str, list[str]] = defaultdict(list)
    for orbit in crystal.orbits:
        letters[orbit.element].append(orbit.letter)
    named: dict[tuple[Slot, ...], list[tuple[str, ...]]] = defaultdict(list)
    for coset in range(len(group.cosets)):
        rows = []
        for element, old in letters.items():
            new = [coset_letter(group.number, coset, letter)[0] for letter in old]
            positions = [group.position(letter) for letter in new]
            slot = Slot(
                sum(position.num_atoms for position in positions),
                tuple(sorted(position.index for position in positions)),
            )
            rows.append((slot, element))
        rows.sort()
        named[tuple(slot for slot, _ in rows)].append(tuple(element for _, element in rows))
    slots = min(named)
    elements = min(named[slots])
    alike = [
        [place for place, other in enumerate(slots) if other == slot]
        for slot in dict.fromkeys(slots)
    ]
    within = [  # permutations of the slots that have the same letters
        tuple(itertools.chain.from_iterable(parts))
        for parts in itertools.product(*map(itertools.permutations, alike))
    ]
    swaps = {
        tuple(elements.index(order[place]) for place in permutation)
        for order in set(named[slots])
        for permutation in within
    }
    return Placement(Prototype(group.number, slots), elements, tuple(sorted(swaps)))
