"""Compositions that a space group can hold, and orbits that may still follow.

Counts are atoms in the primitive cell. A position without free coordinates holds one orbit of one
element; any other holds as many as wanted. Only sizes matter for whether a count can be met, so
the positions are grouped by size and the search remembers what it has seen.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from functools import cache, lru_cache

from llm_prior.wyckoff.table import NUM_GROUPS, space_group

_Stock = tuple[tuple[int, int], ...]  # (size, unused positions without free coordinates), by size


class Sizes:
    """The sizes of a group's positions, in atoms of the primitive cell.

    Args:
        number: space group.

    Attributes:
        atoms: size of each position, by letter.
        once: whether each position holds one orbit only, by letter.
    """

    def __init__(self, number: int) -> None:
        positions = space_group(number).positions
        self.atoms = tuple(position.num_atoms for position in positions)
        self.once = tuple(not position.num_free for position in positions)
        self._reusable = tuple(
            tuple(
                sorted(
                    {
                        size
                        for size, once in zip(self.atoms[start:], self.once[start:], strict=True)
                        if not once
                    }
                )
            )
            for start in range(len(positions))
        )

    def reusable(self, start: int = 0) -> tuple[int, ...]:
        """Return the sizes of positions with free coordinates from a letter on.

        Args:
            start: place of the first letter that counts.
        """
        return self._reusable[start]

    def stock(self, used: int, start: int = 0) -> _Stock:
        """Return (size, number) of the unused positions without free coordinates.

        Args:
            used: bit mask of the positions that are taken.
            start: place of the first letter that counts.
        """
        found: dict[int, int] = {}
        for place in range(start, len(self.atoms)):
            if self.once[place] and not used >> place & 1:
                found[self.atoms[place]] = found.get(self.atoms[place], 0) + 1
        return tuple(sorted(found.items()))


@cache
def sizes(number: int) -> Sizes:
    """Return the sizes of a group's positions.

    Args:
        number: space group.
    """
    return Sizes(number)


def can_hold(number: int, counts: Sequence[int]) -> bool:
    """Return whether orbits of a group can add up to a composition.

    Args:
        number: space group.
        counts: atoms of each element in the primitive cell.
    """
    of_group = sizes(number)
    return _fill(tuple(sorted(counts)), of_group.stock(0), of_group.reusable())


def can_complete(number: int, missing: int, start: int, used: int, others: Sequence[int]) -> bool:
    """Return whether a composition can still be completed.

    Args:
        number: space group.
        missing: atoms that the present element lacks.
        start: place of the first letter that the present element may still take.
        used: bit mask of the positions without free coordinates that are taken, by any element.
        others: atoms of each element that comes later.
    """
    return _can_complete(number, missing, start, used, tuple(sorted(others)))


@lru_cache(maxsize=200_000)
def _can_complete(number: int, missing: int, start: int, used: int, rest: tuple[int, ...]) -> bool:
    of_group = sizes(number)
    stock = of_group.stock(used)
    if not missing:
        return _fill(rest, stock, of_group.reusable())
    if start >= len(of_group.atoms):
        return False
    near = of_group.stock(used, start)
    reusable = of_group.reusable(start)
    return any(
        _fill(rest, _less(stock, taken), of_group.reusable())
        for taken, left in _takings(missing, near)
        if _is_sum(left, reusable)
    )


def groups_for(
    counts: Mapping[str, int] | Sequence[int], max_atoms: int
) -> dict[int, tuple[int, ...]]:
    """Return the groups that can hold a formula, with the possible numbers of formula units.

    Args:
        counts: atoms of each element in the formula; common factors are taken out.
        max_atoms: atoms of the largest primitive cell.

    Returns:
        For each group that can: the numbers of reduced formula units in a primitive cell.
    """
    amounts = list(counts.values() if isinstance(counts, Mapping) else counts)
    divisor = math.gcd(*amounts)
    unit = [amount // divisor for amount in amounts]
    found = {}
    for number in range(1, NUM_GROUPS + 1):
        multiples = tuple(
            units
            for units in range(1, max_atoms // sum(unit) + 1)
            if can_hold(number, [units * amount for amount in unit])
        )
        if multiples:
            found[number] = multiples
    return found


def assignments(number: int, counts: Sequence[int]) -> Iterator[tuple[tuple[int, ...], ...]]:
    """Yield every choice of orbits that adds up to a composition.

    Args:
        number: space group.
        counts: atoms of each element in the primitive cell.

    Yields:
        For each element the places of its letters, in order; general positions first.
    """
    yield from completions(number, 0, 0, 0, counts)


def completions(
    number: int, missing: int, start: int, used: int, others: Sequence[int]
) -> Iterator[tuple[tuple[int, ...], ...]]:
    """Yield every way to complete a composition; see `can_complete` for the arguments.

    Args:
        number: space group.
        missing: atoms that the present element lacks.
        start: place of the first letter that the present element may still take.
        used: bit mask of the positions without free coordinates that are taken.
        others: atoms of each element that comes later.

    Yields:
        The places of the letters that follow: of the present element if `missing`, then of each
        of the others.
    """
    if missing:
        for letters, taken in _fillings(number, missing, start, used, others):
            for rest in completions(number, 0, 0, taken, others):
                yield (letters, *rest)
    elif others:
        yield from completions(number, others[0], 0, used, others[1:])
    else:
        yield ()


def _fillings(
    number: int, missing: int, start: int, used: int, others: Sequence[int]
) -> Iterator[tuple[tuple[int, ...], int]]:
    """Letters of one element that leave the others possible, and the mask of taken positions."""
    if not missing:
        yield (), used
        return
    of_group = sizes(number)
    for place in range(len(of_group.atoms) - 1, start - 1, -1):
        size, once = of_group.atoms[place], of_group.once[place]
        if size > missing or (once and used >> place & 1):
            continue
        taken = used | 1 << place if once else used
        following = place + 1 if once else place
        if can_complete(number, missing - size, following, taken, others):
            for letters, mask in _fillings(number, missing - size, following, taken, others):
                yield (place, *letters), mask


@lru_cache(maxsize=200_000)
def _fill(counts: tuple[int, ...], stock: _Stock, reusable: tuple[int, ...]) -> bool:
    """Whether all counts can be met out of the stock and the reusable sizes."""
    hard = tuple(count for count in counts if not _is_sum(count, reusable))
    if not hard:
        return True
    if sum(size * number for size, number in stock) == 0:
        return False
    # The largest first: it has the fewest ways.
    *rest, count = hard
    return any(
        _fill(tuple(rest), _less(stock, taken), reusable)
        for taken, left in _takings(count, stock)
        if _is_sum(left, reusable)
    )


def _takings(count: int, stock: _Stock) -> Iterator[tuple[_Stock, int]]:
    """Ways to take positions out of a stock for at most so many atoms, and what is then left."""
    if not stock:
        yield (), count
        return
    (size, number), *rest = stock
    for pieces in range(min(number, count // size) + 1):
        for taken, left in _takings(count - pieces * size, tuple(rest)):
            yield ((size, pieces), *taken), left


def _less(stock: _Stock, taken: _Stock) -> _Stock:
    amounts = dict(taken)
    return tuple((size, number - amounts.get(size, 0)) for size, number in stock)


@lru_cache(maxsize=100_000)
def _is_sum(count: int, sizes_: tuple[int, ...]) -> bool:
    """Whether a count is a sum of sizes, each as often as wanted."""
    if not count:
        return True
    return any(size <= count and _is_sum(count - size, sizes_) for size in sizes_)
