"""Space groups by number and by Hermann-Mauguin symbol."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from functools import cache
from typing import Any

from llm_prior.errors import PriorError

NUM_SPACEGROUPS = 230
# Symbols that the e-glide notation of 1992 replaced and pymatgen does not list.
_OLD_GLIDES = {"Cmca": 64, "Cmma": 67, "Ccca": 68}
_CENTROSYMMETRIC_CUBIC = {*range(200, 207), *range(221, 231)}


def parse_spacegroup(value: Any) -> int:
    """Return the number of a space group.

    Args:
        value: the number, or the Hermann-Mauguin symbol in any setting that pymatgen knows. Spaces,
            underscores and capitals do not matter (`P6_3/mmc`, `P63/mmc`, `P 63/m m c`), and the
            older symbols without bar (`Fm3m`) or with other glides (`Cmca`) are known.

    Raises:
        PriorError: if there is no such group, or the symbol stands for several.
    """
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
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
