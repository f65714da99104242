"""Checks of the records of a template library."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from flowllm.templates.prototypes import MAX_ELEMENTS
from llm_prior.text import SYMBOLS
from llm_prior.wyckoff.crystal import FREE_CELL
from llm_prior.wyckoff.table import space_group

_LARGEST_GROUP, _STRAIGHT = 230, 18_000  # the angle in units of 0.01 degrees
BoolArray = NDArray[np.bool_]
IntArray = NDArray[np.int64]


def first_problem(table: pa.Table) -> str | None:
    """Return what is wrong with the first bad record of a library, or None.

    Args:
        table: with the columns of `flowllm.templates.library`.
    """
    for name in table.column_names:
        column = table[name].combine_chunks()
        nulls = column.null_count + (column.values.null_count if _is_list(column) else 0)
        if nulls and name != "e_above_hull":
            return f"column {name} lacks {nulls} values"
    for what, good in _checks(table):
        if not good.all():
            return f"{table['id'][int(np.argmin(good))]} has {what}"
    return None


def _checks(table: pa.Table) -> Iterator[tuple[str, BoolArray]]:
    """Yield each possible problem and the rows (T,) without it; later checks rely on earlier ones.

    Args:
        table: without nulls.
    """
    numbers = table["spacegroup"].to_numpy().astype(np.int64)
    yield "no space group from 1 to 230", (numbers >= 1) & (numbers <= _LARGEST_GROUP)
    yield "a negative prototype", table["prototype"].to_numpy() >= 0
    values, lengths = {}, {}
    for name in table.column_names:
        column = table[name].combine_chunks()
        if _is_list(column):
            values[name] = column.flatten().to_numpy().astype(np.int64)
            lengths[name] = np.diff(column.offsets.to_numpy().astype(np.int64))
    rows = {name: np.repeat(np.arange(len(table)), length) for name, length in lengths.items()}

    def every(name: str, good: BoolArray) -> BoolArray:
        """Return the rows all of whose values are good."""
        return np.bincount(rows[name], ~good, minlength=len(table)) == 0

    kinds = lengths["elements"]
    yield (
        f"no 1 to {MAX_ELEMENTS} elements with amounts",
        (kinds >= 1) & (kinds <= MAX_ELEMENTS) & (lengths["counts"] == kinds),
    )
    elements, counts = values["elements"], values["counts"]
    yield "an unknown element", every("elements", (elements >= 1) & (elements <= len(SYMBOLS)))
    yield "amounts that do not ascend", _are_sound(elements, counts, rows["elements"], kinds)
    swaps = values["swaps"]
    yield (
        "bad swaps of its elements",
        (lengths["swaps"] > 0)
        & (lengths["swaps"] % kinds == 0)
        & every("swaps", swaps < kinds[rows["swaps"]]),
    )
    yield "bad swaps of its elements", _keep_amounts(swaps, lengths["swaps"], counts, kinds)

    tables = _Positions(numbers)
    letters, slots, of = values["letters"], values["slots"], rows["letters"]
    yield (
        "no orbits with an element each",
        (lengths["letters"] > 0) & (lengths["slots"] == lengths["letters"]),
    )
    yield "an unknown Wyckoff letter", every("letters", letters < tables.letters[numbers[of]])
    yield "an orbit of an unknown element", every("slots", slots < kinds[of])
    first = np.cumsum(kinds) - kinds
    atoms = np.bincount(
        first[of] + slots, tables.num_atoms[numbers[of], letters], minlength=len(counts)
    )
    yield "orbits that do not have its amounts", every("counts", atoms == counts)
    free = np.bincount(of, tables.num_free[numbers[of], letters], minlength=len(table))
    yield "another number of coordinates than its orbits", lengths["coords"] == free
    yield "no cell of its space group", lengths["cell"] == tables.num_cell[numbers]
    yield "no cell of its space group", _have_volume(values["cell"], lengths["cell"])


class _Positions:
    """Wyckoff positions and cells of the groups that occur, by number of the group.

    Attributes:
        letters: (231,) number of positions.
        num_atoms: (231, L) atoms in the primitive cell, by place of the letter.
        num_free: (231, L) free coordinates.
        num_cell: (231,) free parameters of the cell.
    """

    def __init__(self, numbers: IntArray) -> None:
        groups = {int(number): space_group(int(number)) for number in np.unique(numbers)}
        most = max(len(group.positions) for group in groups.values())
        self.letters = np.zeros(_LARGEST_GROUP + 1, dtype=np.int64)
        self.num_cell = np.zeros(_LARGEST_GROUP + 1, dtype=np.int64)
        self.num_atoms = np.zeros((_LARGEST_GROUP + 1, most), dtype=np.int64)
        self.num_free = np.zeros((_LARGEST_GROUP + 1, most), dtype=np.int64)
        for number, group in groups.items():
            size = len(group.positions)
            self.letters[number] = size
            self.num_cell[number] = len(FREE_CELL[group.family])
            self.num_atoms[number, :size] = [one.num_atoms for one in group.positions]
            self.num_free[number, :size] = [one.num_free for one in group.positions]


def _is_list(column: pa.Array) -> bool:
    return pa.types.is_list(column.type)


def _are_sound(elements: IntArray, counts: IntArray, rows: IntArray, kinds: IntArray) -> BoolArray:
    """Return the rows whose amounts are positive and ascend, with elements that differ."""
    same_row = rows[1:] == rows[:-1]
    falls = np.zeros(len(counts), dtype=bool)
    falls[1:] = same_row & (counts[1:] < counts[:-1])
    bad = np.bincount(rows, falls | (counts < 1), minlength=len(kinds))
    pairs = np.unique(rows * (len(SYMBOLS) + 1) + elements)
    different = np.bincount(pairs // (len(SYMBOLS) + 1), minlength=len(kinds))
    good: BoolArray = (bad == 0) & (different == kinds)
    return good


def _keep_amounts(
    swaps: IntArray, lengths: IntArray, counts: IntArray, kinds: IntArray
) -> BoolArray:
    """Return the rows whose swaps are permutations of slots that have equal amounts."""
    good = np.ones(len(kinds), dtype=bool)
    first, ends = np.cumsum(lengths) - lengths, np.cumsum(kinds) - kinds
    for size in np.unique(kinds):
        rows = np.flatnonzero(kinds == size)
        number = lengths[rows] // size
        owner = np.repeat(rows, number)
        within = np.arange(len(owner)) - np.repeat(np.cumsum(number) - number, number)
        table = swaps[(first[owner] + within * size)[:, None] + np.arange(size)]  # (S, k)
        ours = counts[ends[owner][:, None] + np.arange(size)]
        fine = (np.sort(table, axis=1) == np.arange(size)).all(1)
        fine &= (np.take_along_axis(ours, table, axis=1) == ours).all(1)
        good[owner[~fine]] = False
    return good


def _have_volume(cell: IntArray, lengths: IntArray) -> BoolArray:
    """Return the rows whose cells have positive parameters and a volume.

    A cell of 6 parameters has three angles, one of 4 has one, and others have none.
    """
    good: BoolArray = np.bincount(np.repeat(np.arange(len(lengths)), lengths), cell == 0) == 0
    first = np.cumsum(lengths) - lengths
    for size in (4, 6):
        rows = np.flatnonzero(lengths == size)
        angles = cell[first[rows][:, None] + np.arange(3, size)]
        cosines = np.cos(np.pi * angles / _STRAIGHT)
        room = 1 - np.square(cosines).sum(1) + (2 * cosines.prod(1) if size == 6 else 0)
        good[rows] &= (angles < _STRAIGHT).all(1) & (room > 0)
    return good
