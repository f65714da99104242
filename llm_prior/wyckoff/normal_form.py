"""The many descriptions of one crystal: choice of origin, axes, representative and order.

The normalizer of a group maps the crystal's description onto others of the same crystal (for an
improper element, of its mirror image). The canonical one is the smallest; for augmentation one is
drawn.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from pymatgen.core import Lattice

from llm_prior.wyckoff.crystal import Orbit, WyckoffCrystal, element_order, free_cell, niggli
from llm_prior.wyckoff.orbits import cell_letter, coset_letter, equivalents, induced
from llm_prior.wyckoff.table import GRID, AffineMap, IntArray, SpaceGroup, space_group

LetterMap = Callable[[str], tuple[str, IntArray, IntArray]]


def canonical(crystal: WyckoffCrystal, bins: int, *, keep_hand: bool = False) -> WyckoffCrystal:
    """Return the smallest of all descriptions of a crystal.

    Compared are, in this order, the sorted orbits (element by electronegativity, letter), the cell
    and the free coordinates on the grid. In polar groups the first orbit's coordinates along the
    polar axes are 0.

    Args:
        crystal: in any description.
        bins: bins of a coordinate.
        keep_hand: leave out descriptions of the mirror image, which has the same energy.
    """
    crystal = reduce_cell(crystal)
    genes = {i: sorted(_names(crystal, i)) for i in _cosets(crystal.group, keep_hand)}
    smallest = min(genes.values())
    choices = [i for i, gene in genes.items() if gene == smallest]
    moved = [apply_coset(crystal, i) for i in choices]
    cells = [tuple(round(x, 2) for x in c.cell) for c in moved]  # Angstrom, degrees
    smallest_cell = min(cells)
    forms = [
        _normal_coords(c, bins)
        for c, cell in zip(moved, cells, strict=True)
        if cell == smallest_cell
    ]
    return min(forms, key=lambda form: form.ticks).crystal


def canonical_letters(crystal: WyckoffCrystal) -> list[tuple[str, str]]:
    """Return element and Wyckoff letter of each orbit of the canonical description, in its order.

    Args:
        crystal: in any description; its mirror image has the same letters.
    """
    crystal = reduce_cell(crystal)
    smallest = min(sorted(_names(crystal, i)) for i in _cosets(crystal.group, keep_hand=False))
    elements = {element_order()[orbit.element]: orbit.element for orbit in crystal.orbits}
    positions = crystal.group.positions
    return [(elements[rank], positions[index].letter) for rank, index in smallest]


def augment(
    crystal: WyckoffCrystal, bins: int, rng: np.random.Generator, *, keep_hand: bool = False
) -> WyckoffCrystal:
    """Return a description drawn at random over the normalizer.

    Representatives and order are canonical for the origin and axes drawn; in polar groups the
    orbit at the origin is the first one for that draw.

    Args:
        crystal: in any description.
        bins: bins of a coordinate.
        rng: source of randomness.
        keep_hand: leave out descriptions of the mirror image.
    """
    crystal = reduce_cell(crystal)
    choices = _cosets(crystal.group, keep_hand)
    return _normal_coords(apply_coset(crystal, int(rng.choice(choices))), bins).crystal


def reduce_cell(crystal: WyckoffCrystal) -> WyckoffCrystal:
    """Return the crystal with the shortest axes that the setting of its group allows.

    Triclinic: the Niggli cell. Monoclinic: the shortest a and c, beta not acute, and a not longer
    than c where they may be exchanged. Other families have no choice.

    Args:
        crystal: in any description.
    """
    group = crystal.group
    if group.family == "triclinic":
        lattice = Lattice.from_parameters(*crystal.parameters).matrix
        steps = np.rint(niggli(lattice) @ np.linalg.inv(lattice)).astype(np.int64)
        # Rows r' = steps r, so that coordinates are x' = steps^-T x.
        linear = np.rint(np.linalg.inv(steps.T)).astype(np.int64)
        change = AffineMap(linear=linear, shift=np.zeros(3, dtype=np.int64))
        return _apply(crystal, change, lambda letter: induced(group, change, letter))
    if group.family != "monoclinic":
        return crystal
    while True:
        scores = [_score(crystal.cell), *_changed_scores(crystal)]
        best = min(range(len(scores)), key=scores.__getitem__)
        if best == 0:
            return crystal
        crystal = _apply_cell(crystal, best - 1)


def apply_coset(crystal: WyckoffCrystal, coset: int) -> WyckoffCrystal:
    """Return the description of a crystal after an element of its group's normalizer.

    Args:
        crystal: the crystal.
        coset: place in `SpaceGroup.cosets`.
    """
    if coset == 0:
        return crystal
    number = crystal.spacegroup
    return _apply(
        crystal, crystal.group.cosets[coset], lambda letter: coset_letter(number, coset, letter)
    )


def order_orbits(crystal: WyckoffCrystal) -> WyckoffCrystal:
    """Return the crystal with its orbits ordered by element, letter and coordinates.

    Args:
        crystal: the crystal.
    """
    rank, group = element_order(), crystal.group

    def key(orbit: Orbit) -> tuple[int, int, tuple[float, ...]]:
        return rank[orbit.element], group.position(orbit.letter).index, orbit.coords

    return replace(crystal, orbits=tuple(sorted(crystal.orbits, key=key)))


def _cosets(group: SpaceGroup, keep_hand: bool) -> list[int]:
    """Places of the cosets that may be applied."""
    return [
        place
        for place, change in enumerate(group.cosets)
        if change.is_proper or not keep_hand or not group.is_sohncke
    ]


class _Form(NamedTuple):
    ticks: list[tuple[int, ...]]
    crystal: WyckoffCrystal


def _names(crystal: WyckoffCrystal, coset: int) -> Iterator[tuple[int, int]]:
    """(element, letter) as numbers of each orbit after an element of the normalizer."""
    rank, group = element_order(), crystal.group
    for orbit in crystal.orbits:
        letter, _, _ = coset_letter(crystal.spacegroup, coset, orbit.letter)
        yield rank[orbit.element], group.position(letter).index


def _apply(crystal: WyckoffCrystal, change: AffineMap, letter_map: LetterMap) -> WyckoffCrystal:
    orbits = []
    for orbit in crystal.orbits:
        letter, linear, shift = letter_map(orbit.letter)
        coords = linear @ np.array(orbit.coords, dtype=float) + shift / GRID
        orbits.append(Orbit(element=orbit.element, letter=letter, coords=tuple(coords.tolist())))
    return replace(crystal, orbits=tuple(orbits), cell=_mapped_cell(crystal, change))


def _apply_cell(crystal: WyckoffCrystal, place: int) -> WyckoffCrystal:
    number = crystal.spacegroup
    return _apply(
        crystal, crystal.group.cells[place], lambda letter: cell_letter(number, place, letter)
    )


def _mapped_cell(crystal: WyckoffCrystal, change: AffineMap) -> tuple[float, ...]:
    linear = change.linear
    if crystal.group.family in ("tetragonal", "hexagonal", "cubic"):
        return crystal.cell  # symmetries of the metric
    lattice = Lattice.from_parameters(*crystal.parameters).matrix
    mapped = np.linalg.inv(linear).T @ lattice
    moved = Lattice(mapped)
    return free_cell(crystal.group.family, moved.lengths, moved.angles)


def _changed_scores(crystal: WyckoffCrystal) -> list[tuple[float, bool, bool]]:
    """The scores of a monoclinic crystal after each change of its cell."""
    lattice = Lattice.from_parameters(*crystal.parameters).matrix
    vectors = _cell_changes(crystal.spacegroup) @ lattice  # (k, 3, 3)
    first, _, third = vectors.transpose(1, 0, 2)
    a, b, c = np.linalg.norm(vectors, axis=2).T
    beta = np.degrees(np.arccos(np.clip((first * third).sum(1) / (a * c), -1, 1)))
    return [_score(cell) for cell in zip(*(x.tolist() for x in (a, b, c, beta)), strict=True)]


@cache
def _cell_changes(number: int) -> NDArray[np.float64]:
    """Matrices (k, 3, 3) that make the vectors of each changed cell of those of a monoclinic one.

    Args:
        number: space group.
    """
    return np.linalg.inv([change.linear for change in space_group(number).cells]).mT


def _score(cell: tuple[float, ...]) -> tuple[float, bool, bool]:
    a, _, c, beta = cell
    return round(a * a + c * c, 2), beta < 89.99, a > c + 1e-3


def _normal_coords(crystal: WyckoffCrystal, bins: int) -> _Form:
    """The crystal with the smallest coordinates for its axes and origin, orbits in order."""
    crystal = order_orbits(crystal)
    number, polar = crystal.spacegroup, crystal.group.polar_axes
    names = [(orbit.element, orbit.letter) for orbit in crystal.orbits]
    coords = [np.array(orbit.coords, dtype=float) for orbit in crystal.orbits]
    if not polar:
        rest = [
            (name, _smallest(number, name[1], u, bins))
            for name, u in zip(names, coords, strict=True)
        ]
        return _form(crystal, [], rest, bins)
    # Some point of the first orbits goes to the origin of the polar axes. Operations leave these
    # axes as they are, so that shifting the crystal adds the same to every free coordinate.
    starts = []
    for leader, name in enumerate(names):
        if name != names[0]:
            continue
        places = polar_places(number, name[1])
        for start in equivalents(number, name[1])(coords[leader]):
            shift = -start[places]
            start[places] = 0.0
            starts.append((_ticks(start, bins), leader, start, shift))
    least = min(ticks for ticks, *_ in starts)
    forms = []
    for ticks, leader, start, shift in starts:
        if ticks != least:
            continue
        others: list[_Entry] = []
        for i, (name, u) in enumerate(zip(names, coords, strict=True)):
            if i != leader:
                moved = u.copy()
                moved[polar_places(number, name[1])] += shift
                others.append((name, _smallest(number, name[1], moved, bins)))
        forms.append(_form(crystal, [(names[leader], start)], others, bins))
    return min(forms, key=lambda form: form.ticks)


def polar_places(number: int, letter: str) -> list[int]:
    """Return the places of the polar axes among the free coordinates of a position.

    Args:
        number: space group.
        letter: Wyckoff letter.
    """
    group = space_group(number)
    axes = group.position(letter).axes
    return [axes.index(axis) for axis in group.polar_axes]


_Entry = tuple[tuple[str, str], NDArray[np.float64]]  # (element, letter), free coordinates


def _form(crystal: WyckoffCrystal, first: list[_Entry], rest: list[_Entry], bins: int) -> _Form:
    """The crystal with these orbits: `first` in front, then by element, letter and coordinates.

    `first` and `rest` together have the names of the crystal's orbits, which are in order.
    """
    place: dict[tuple[str, str], int] = {}
    for orbit in crystal.orbits:
        place.setdefault((orbit.element, orbit.letter), len(place))
    entries = [(name, u, _ticks(u, bins)) for name, u in rest]
    entries.sort(key=lambda entry: (place[entry[0]], entry[2]))
    entries = [(name, u, _ticks(u, bins)) for name, u in first] + entries
    orbits = tuple(
        Orbit(element=element, letter=letter, coords=tuple((u % 1.0).tolist()))
        for (element, letter), u, _ in entries
    )
    return _Form([ticks for *_, ticks in entries], replace(crystal, orbits=orbits))


def _smallest(
    number: int, letter: str, coords: NDArray[np.float64], bins: int
) -> NDArray[np.float64]:
    """The equivalent coordinates (d,) with the smallest bins, in [0, 1)."""
    every = equivalents(number, letter)(coords)  # (k, d)
    bases = bins ** np.arange(every.shape[1])[::-1]
    best = int(np.argmin((np.rint(every * bins).astype(int) % bins) @ bases))
    return every[best] % 1.0


def _ticks(coords: NDArray[np.float64], bins: int) -> tuple[int, ...]:
    return tuple((np.rint(coords * bins).astype(int) % bins).tolist())
