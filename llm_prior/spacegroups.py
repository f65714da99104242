"""Space groups by number and by Hermann-Mauguin symbol, and sets of them."""

from __future__ import annotations

import contextlib
import math
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from functools import cache
from numbers import Real
from typing import Any

from llm_prior.errors import PriorError

NUM_SPACEGROUPS = 230
CRYSTAL_SYSTEMS = {  # International Tables for Crystallography A: numbers of the groups
    "triclinic": range(1, 3),
    "monoclinic": range(3, 16),
    "orthorhombic": range(16, 75),
    "tetragonal": range(75, 143),
    "trigonal": range(143, 168),
    "hexagonal": range(168, 195),
    "cubic": range(195, 231),
}
# Symbols that the e-glide notation of 1992 replaced and pymatgen does not list.
_OLD_GLIDES = {"Cmca": 64, "Cmma": 67, "Ccca": 68}
_CENTROSYMMETRIC_CUBIC = {*range(200, 207), *range(221, 231)}
_NUMBER = re.compile(r"\s*[0-9]+(\.0*)?\s*", re.ASCII)
_RANGE = re.compile(r"\s*([0-9]+)\s*-\s*([0-9]+)\s*", re.ASCII)


def parse_spacegroup(value: Any) -> int:
    """Return the number of a space group.

    Args:
        value: the number, or the Hermann-Mauguin symbol in any setting that pymatgen knows. Spaces,
            underscores and capitals do not matter (`P6_3/mmc`, `P63/mmc`, `P 63/m m c`), and the
            older symbols without bar (`Fm3m`) or with other glides (`Cmca`) are known.

    Raises:
        PriorError: if there is no such group, or the symbol stands for several.
    """
    number = math.nan
    is_number = isinstance(value, Real) and not isinstance(value, bool)
    if is_number or (isinstance(value, str) and _NUMBER.fullmatch(value)):
        with contextlib.suppress(OverflowError):
            number = float(value)
    if isinstance(value, str) and math.isnan(number):
        known = _numbers_of_symbols().get(_plain(value), set())
        if len(known) > 1:
            raise PriorError(
                f"spacegroup {value!r} stands for the groups {', '.join(map(str, sorted(known)))}; "
                "give the number"
            )
        if known:
            return min(known)
    if number not in range(1, NUM_SPACEGROUPS + 1):
        raise PriorError(
            f"spacegroup {value!r} is not a whole number from 1 to {NUM_SPACEGROUPS} or a known "
            "Hermann-Mauguin symbol such as Fm-3m"
        )
    return int(number)


def parse_spacegroups(value: Any) -> tuple[int, ...]:
    """Return the numbers of one or several space groups, ascending.

    Args:
        value: a group as `parse_spacegroup` takes it, several of them in a sequence or a set, or
            text with commas and ranges of numbers, such as `Fm-3m, 227` or `195-230`.

    Raises:
        PriorError: if there is none, one of them does not exist, or a range is empty.
    """
    parts: Iterable[Any] = (value,)
    if isinstance(value, str):
        parts = value.split(",")
    elif isinstance(value, Iterable):
        parts = value
    found: set[int] = set()
    for part in parts:
        match = _RANGE.fullmatch(part) if isinstance(part, str) else None
        if not match:
            found.add(parse_spacegroup(part))
            continue
        first, last = (parse_spacegroup(end) for end in match.groups())
        if first > last:
            raise PriorError(
                f"spacegroup {part!r} is an empty range; write the smaller number first, as in "
                f"{last}-{first}"
            )
        found.update(range(first, last + 1))
    if not found:
        raise PriorError(f"spacegroup {value!r} names no group; give one, such as 225")
    return tuple(sorted(found))


def render_spacegroups(numbers: Sequence[int]) -> str:
    """Return numbers of space groups in short, such as `1-3, 5`; `parse_spacegroups` reads it.

    Args:
        numbers: ascending.
    """
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)


@cache
def _numbers_of_symbols() -> dict[str, set[int]]:
    """Return the numbers of the groups of each plain symbol; a few short symbols have two."""
    from pymatgen.symmetry.groups import SYMM_DATA, SpaceGroup  # reads two large tables

    found: dict[str, set[int]] = defaultdict(set)
    for symbol, group in SYMM_DATA["space_group_encoding"].items():
        for name in (symbol, group["full_symbol"]):
            found[_plain(name)].add(group["int_number"])
    for setting in SpaceGroup.SYMM_OPS:
        for name in ("hermann_mauguin", "universal_h_m", "hermann_mauguin_u", "short_h_m"):
            found[_plain(setting[name])].add(setting["number"])
    for symbol, number in _OLD_GLIDES.items():
        found[_plain(symbol)].add(number)
    for symbol, numbers in list(found.items()):
        if numbers <= _CENTROSYMMETRIC_CUBIC:  # Fm-3m was written Fm3m
            found[symbol.replace("-3", "3")] |= numbers
    return dict(found)


def _plain(symbol: str) -> str:
    return re.sub(r"[\s_]", "", symbol).casefold()
