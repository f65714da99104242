"""Names of space groups: Hermann-Mauguin symbols in every spelling, Hall symbols, numbers.

gemmi's table has 564 settings with their Hermann-Mauguin and Hall symbols. spglib's adds the full
symbols (`F 4/m -3 2/m`), those with e-glides (`C m c e`) and the Schoenflies symbols.
"""

from __future__ import annotations

import re
import warnings
from dataclasses import dataclass
from functools import cache, cached_property, lru_cache

import gemmi
import spglib

from flowllm.crystals.cif.operations import Operations, from_gemmi

_NUM_HALL = 530  # settings in spglib's table
# `:2`, ` H`; ICSD writes S and Z for the first and the second origin.
_SUFFIX = re.compile(
    r"(?::(?P<any>[a-z0-9-]+)|(?P<letter>[hrsz])|\(?origin(?:choice)?(?P<origin>[12])\)?)$"
)
_NUMBER = re.compile(r"\((?:no\.?)?(\d{1,3})\)$")  # `P 1 21/c 1 (14)`
_SCREW = re.compile(r"(?<=[2346])\(([1-5])\)")  # SHELX writes `P2(1)/c`
_ORIGIN = {"s": "1", "z": "2"}
_AXIS_ORDER = "bca"  # the unique axis that a short monoclinic symbol means, the likeliest first


@dataclass(frozen=True)
class Setting:
    """One setting of a space group.

    Attributes:
        number: of the space group type, 1 to 230.
        symbol: Hermann-Mauguin symbol with axes, without the suffix, such as `P 1 21/c 1`.
        suffix: `1` or `2` for the origin, `H` or `R` for the axes, else empty.
        axes: code of the axes in the International Tables, such as `b1` or `cab`; may be empty.
        hall: Hall symbol.
    """

    number: int
    symbol: str
    suffix: str
    axes: str
    hall: str

    @property
    def name(self) -> str:
        """Symbol and suffix, such as `F d -3 m :2`."""
        return f"{self.symbol} :{self.suffix}" if self.suffix else self.symbol

    @cached_property
    def operations(self) -> Operations:
        """All operations."""
        return _operations(self.hall)


def settings_of_symbol(symbol: str) -> list[Setting]:
    """Return the settings that a Hermann-Mauguin symbol may mean.

    Blanks, underscores and upper or lower case do not matter. Old symbols (`F m 3 m`), short ones
    (`P21/c`, `Fm-3m`) and full ones (`P 1 21/c 1`, `F 4/m -3 2/m`) are known, and suffixes for
    origin and axes: `:1`, `:2`, `:H`, `:R`, the same without the colon, ICSD's `S` and `Z` for the
    two origins, and codes of the axes (`:b1`, `:cab`).

    Args:
        symbol: of a space group.

    Returns:
        The settings, the likeliest first. Settings with one `symbol` differ in the suffix only.
        An empty list for a symbol that is not known.
    """
    squeezed = _squeeze(_SCREW.sub(r"\1", symbol))
    if squeezed.isascii() and squeezed.isdigit():
        return settings_of_number(int(squeezed))
    if match := _NUMBER.search(squeezed):
        found = settings_of_symbol(squeezed[: match.start()])
        return [setting for setting in found if setting.number == int(match[1])]
    if squeezed in _table():
        return _table()[squeezed]
    match = _SUFFIX.search(squeezed)
    if match is None:
        return []
    suffix = match["any"] or match["letter"] or match["origin"]
    suffix = _ORIGIN.get(suffix, suffix)
    known = _table().get(squeezed[: match.start()], [])
    return [
        setting
        for setting in known
        if suffix in (setting.suffix.lower(), setting.axes, setting.suffix.lower() + setting.axes)
    ]


def settings_of_number(number: int) -> list[Setting]:
    """Return the standard setting of a space group, with each of its origins and axes.

    Args:
        number: 1 to 230.

    Returns:
        One setting, or two with the suffixes `1` and `2`, or `H` and `R`; an empty list for
        another number.
    """
    found = [setting for setting in _settings() if setting.number == number]
    return [setting for setting in found if setting.symbol == found[0].symbol]


def number_of_schoenflies(symbol: str) -> int | None:
    """Return the number of the space group with a Schoenflies symbol.

    Args:
        symbol: such as `Oh^5` or `C2h.5`.

    Returns:
        1 to 230; None for a symbol that is not known.
    """
    return _schoenflies().get(_squeeze(symbol).replace(".", "^"))


def operations_of_hall(symbol: str) -> Operations | None:
    """Return the operations of a Hall symbol, of a tabulated setting or any other.

    Args:
        symbol: such as `-F 4 2 3` or `-P 2yb (x+1/4,y,z)`.

    Returns:
        The operations; None if this is no Hall symbol.
    """
    try:
        return _operations(symbol.replace("_", " "))
    except (ValueError, RuntimeError):
        return None


@lru_cache(maxsize=1024)  # more than there are settings; files may name any other
def _operations(hall: str) -> Operations:
    return from_gemmi(gemmi.symops_from_hall(hall))


@cache
def _settings() -> list[Setting]:
    return [
        Setting(
            number=group.number,
            symbol=group.hm,
            suffix=group.ext.strip("\0"),
            axes=group.qualifier,
            hall=group.hall,
        )
        for group in gemmi.spacegroup_table()
    ]


@cache
def _table() -> dict[str, list[Setting]]:
    """Return the settings of every spelling of a symbol."""
    other_names: dict[str, set[str]] = {}
    for group in _spglib_types():
        names = {group.international_short, group.international_full}
        names |= {part.strip() for part in group.international.split("=")[1:]}
        other_names[_hall_key(group.hall_symbol)] = names
    table: dict[str, list[Setting]] = {}
    ranked = sorted(_settings(), key=lambda setting: (setting.number, _rank(setting)))
    for setting in ranked:
        names = {setting.symbol}
        # spglib's short symbol of a monoclinic setting is that of the type, in any setting.
        for name in other_names.get(_hall_key(setting.hall), ()):
            if not _is_monoclinic(setting.number) or name.count(" ") == 3:
                names.add(name)
        # `P 1 1 21/b` is `P 21/b` as well. But `B 2` is C2, not `B 1 2 1`, a double cell of P2 that
        # spglib does not have.
        if _is_monoclinic(setting.number) and _hall_key(setting.hall) in other_names:
            names.add(" ".join(part for part in setting.symbol.split() if part != "1"))
        if setting.number >= 195:  # until 1983 the inversion of a threefold axis was not written
            names |= {name.replace("-3", "3") for name in names}
        for name in {_squeeze(name) for name in names}:
            table.setdefault(name, []).append(setting)
    return table


@cache
def _schoenflies() -> dict[str, int]:
    return {_squeeze(group.schoenflies): group.number for group in _spglib_types()}


def _spglib_types() -> list[spglib.SpaceGroupType]:
    with warnings.catch_warnings():
        # spglib warns of its change from None to SpglibError; no number here is out of range.
        warnings.filterwarnings("ignore", "Set OLD_ERROR_HANDLING", DeprecationWarning)
        found = [spglib.get_spacegroup_type(hall) for hall in range(1, _NUM_HALL + 1)]
    return [group for group in found if group is not None]


def _hall_key(symbol: str) -> str:
    # Not without blanks: `P 32` is not `P 3 2`.
    return " ".join(symbol.split()).lower()


def _is_monoclinic(number: int) -> bool:
    return 3 <= number <= 15


def _rank(setting: Setting) -> int:
    axis = setting.axes.strip("-0123456789")
    return _AXIS_ORDER.index(axis) if _is_monoclinic(setting.number) and axis else 0


def _squeeze(symbol: str) -> str:
    return re.sub(r"[\s_{}]", "", symbol.lower().replace("\N{MINUS SIGN}", "-"))
