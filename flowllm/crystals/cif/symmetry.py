"""The symmetry that a data block states: operations, symbols and number, and whether they agree."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from flowllm.crystals.cif.blocks import Block
from flowllm.crystals.cif.operations import Operations, make_operations, parse_operations
from flowllm.crystals.cif.space_groups import (
    Setting,
    number_of_schoenflies,
    operations_of_hall,
    settings_of_number,
    settings_of_symbol,
)
from flowllm.errors import InvalidCrystal

_OPERATION_TAGS = (
    "_space_group_symop_operation_xyz",
    "_symmetry_equiv_pos_as_xyz",
    "_symmetry_equiv_as_xyz",
)
_MAGNETIC_TAG = "_space_group_symop_magn_operation_xyz"
_MAGNETIC_CENTERING_TAG = "_space_group_symop_magn_centering_xyz"
_MAGNETIC_PREFIXES = ("_space_group_magn", "_space_group_symop_magn")
_HALL_TAGS = ("_space_group_name_Hall", "_symmetry_space_group_name_Hall")
_SYMBOL_TAGS = (
    "_space_group_name_H-M_alt",
    "_symmetry_space_group_name_H-M",
    "_space_group_name_H-M_full",
    "_space_group_name_H-M",
    "_symmetry_space_group_name_H-M_alt",
    "_symmetry_space_group_name_H-M_full",
)
_NUMBER_TAGS = (
    "_space_group_IT_number",
    "_symmetry_Int_Tables_number",
    "_space_group_Int_Tables_number",
)
_SCHOENFLIES_TAGS = ("_space_group_name_Schoenflies", "_symmetry_space_group_name_Schoenflies")
_REFERENCE_TAG = "_space_group_name_H-M_ref"  # the type, in whatever setting
_MODULATION_PREFIXES = (
    "_cell_wave_vector",
    "_cell_subsystem",
    "_space_group_ssg",
    "_space_group_symop_ssg",
    "_space_group_magn_ssg",
    "_space_group_symop_magn_ssg",
)
# Largest change of a scalar product of two cell vectors by an operation, in units of the product
# of their lengths: 1% in a length, one degree in an angle.
_METRIC_TOLERANCE = 0.02


@dataclass(frozen=True)
class Claim:
    """A statement about the group that the operations in use contradict.

    Attributes:
        text: the statement, for messages.
        settings: operations that it may mean, in the cell of the block.
    """

    text: str
    settings: list[Operations]


@dataclass
class Symmetry:
    """The symmetry of a data block.

    Attributes:
        candidates: name -> operations. Several if the block leaves the origin open.
        claims: statements that contradict the operations.
        notes: what had to be assumed.
        is_magnetic: whether the operations are those of a magnetic group, without time reversal.
            Programs count the atoms of a site differently for these.
    """

    candidates: dict[str, Operations] = field(default_factory=dict)
    claims: list[Claim] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    is_magnetic: bool = False


def read_symmetry(block: Block, lattice: NDArray[np.float64]) -> Symmetry:
    """Return the symmetry that a data block states.

    Listed operations come first, then the Hall symbol, the Hermann-Mauguin symbol and the number.
    All others are compared with the one in use.

    Args:
        block: of the CIF.
        lattice: (3, 3), rows are lattice vectors, Angstrom.

    Returns:
        The candidates, which fit the cell, and what contradicts them.

    Raises:
        InvalidCrystal: if a symbol is needed but not known, the operations are no group, or no
            setting fits the cell (reason `wrong_symmetry`); if the structure is modulated, or an
            operation is not readable (reason `unreadable`).
    """
    _refuse_modulated(block)
    magnetic = _listed(block, (_MAGNETIC_TAG,))
    if magnetic is not None:
        centering = _listed(block, (_MAGNETIC_CENTERING_TAG,))
        symmetry = _of_list(
            magnetic if centering is None else _product(centering, magnetic), lattice
        )
        symmetry.is_magnetic = True
        return symmetry
    if not any(block.columns.get(tag) for tag in _OPERATION_TAGS) and any(
        tag.startswith(_MAGNETIC_PREFIXES) for tag in block.columns
    ):
        raise InvalidCrystal(
            "wrong_symmetry",
            "a magnetic space group is named without its operations; list them "
            "(_space_group_symop_magn_operation.xyz)",
        )
    symbols = {tag: value for tag in _SYMBOL_TAGS if (value := block.value(tag))}
    hall = block.value(*_HALL_TAGS)
    number = _number(block)
    listed = _listed(block, _OPERATION_TAGS)
    if listed is not None:
        symmetry = _of_list(listed, lattice)
    elif hall is not None:
        symmetry = _of_hall(hall, lattice)
    elif symbols:
        tag, symbol = next(iter(symbols.items()))
        symmetry = _of_settings(settings_of_symbol(symbol), f"{tag} {symbol!r}", lattice)
    elif number is not None:
        symmetry = _of_settings(settings_of_number(number[1]), number[0], lattice)
        (name, *_) = symmetry.candidates
        symmetry.notes.append(f"only the number of its space group is given; {name} is assumed")
    else:
        symmetry = Symmetry(candidates={"P 1": _PRIMITIVE})
        symmetry.notes.append("no symmetry is given; P 1 is assumed")
        return symmetry
    if listed is not None and hall is not None:
        _compare_hall(symmetry, hall)
    for tag, symbol in symbols.items():
        _compare_symbol(symmetry, f"{tag} {symbol!r}", symbol, lattice)
    if number is not None:
        _compare_number(symmetry, *number, lattice)
    if reference := block.value(_REFERENCE_TAG):
        for setting in settings_of_symbol(reference)[:1]:
            text = f"{_REFERENCE_TAG} {reference!r}"
            _compare_number(symmetry, text, setting.number, lattice)
    return symmetry


_PRIMITIVE = make_operations(np.eye(3, dtype=np.int64)[None], np.zeros((1, 3)))


def _refuse_modulated(block: Block) -> None:
    dimension = block.value("_cell_modulation_dimension")
    if dimension not in (None, "0") or any(
        tag.startswith(_MODULATION_PREFIXES) for tag in block.columns
    ):
        raise InvalidCrystal(
            "unreadable", "the structure is modulated; give a supercell in three dimensions"
        )


def _listed(block: Block, tags: tuple[str, ...]) -> Operations | None:
    """Return the operations listed under one of the tags; None if there is no list."""
    lists = {tag: block.columns[tag] for tag in tags if any(block.columns.get(tag, ()))}
    found: Operations | None = None
    for values in lists.values():
        operations = parse_operations(tuple(value or "?" for value in values))
        if found is not None and not found.same_as(operations):
            raise InvalidCrystal("wrong_symmetry", f"{' and '.join(lists)} differ; keep one")
        found = operations
    return found


def _product(centering: Operations, operations: Operations) -> Operations:
    rotations = np.einsum("iab,jbc->ijac", centering.rotations, operations.rotations)
    shifts = np.einsum("iab,jb->ija", centering.rotations, operations.translations)
    shifts += centering.translations[:, None]
    return make_operations(rotations.reshape(-1, 3, 3), shifts.reshape(-1, 3))


def _of_list(operations: Operations, lattice: NDArray[np.float64]) -> Symmetry:
    symmetry = Symmetry()
    identity = _PRIMITIVE.keys.keys()
    if not identity <= operations.keys.keys():
        operations = make_operations(
            np.concatenate([_PRIMITIVE.rotations, operations.rotations]),
            np.concatenate([_PRIMITIVE.translations, operations.translations]),
        )
        symmetry.notes.append("the operation x, y, z is not listed; it is assumed")
    operations.products  # noqa: B018  (raises if the list is no group)
    name = f"the list of {len(operations)} operations"
    if not _fits(operations, lattice):
        raise InvalidCrystal("wrong_symmetry", f"the cell does not have the symmetry of {name}")
    symmetry.candidates[name] = operations
    return symmetry


def _of_hall(hall: str, lattice: NDArray[np.float64]) -> Symmetry:
    operations = operations_of_hall(hall)
    if operations is None:
        raise InvalidCrystal(
            "wrong_symmetry",
            f"the Hall symbol {hall!r} is not known, and no operations are listed; list them",
        )
    if not _fits(operations, lattice):
        raise InvalidCrystal(
            "wrong_symmetry", f"the cell does not have the symmetry of the Hall symbol {hall!r}"
        )
    return Symmetry(candidates={f"the Hall symbol {hall!r}": operations})


def _of_settings(settings: list[Setting], text: str, lattice: NDArray[np.float64]) -> Symmetry:
    if not settings:
        raise InvalidCrystal(
            "wrong_symmetry",
            f"{text} is no known space group, and no operations are listed; list them",
        )
    fitting = [setting for setting in settings if _fits(setting.operations, lattice)]
    if not fitting:
        names = " and ".join(setting.name for setting in settings)
        raise InvalidCrystal(
            "wrong_symmetry", f"the cell does not have the symmetry of {text} ({names})"
        )
    chosen = [setting for setting in fitting if setting.symbol == fitting[0].symbol]
    symmetry = Symmetry(candidates={setting.name: setting.operations for setting in chosen})
    if len(chosen) < len(fitting):
        symmetry.notes.append(
            f"{text} may also be {fitting[len(chosen)].name}; {chosen[0].symbol} is assumed"
        )
    return symmetry


def _fits(operations: Operations, lattice: NDArray[np.float64]) -> bool:
    """Return whether the operations keep all lengths and angles of the cell."""
    metric = lattice @ lattice.T
    changed = operations.rotations.transpose(0, 2, 1) @ metric @ operations.rotations
    lengths = np.sqrt(np.diag(metric))
    return bool((np.abs(changed - metric) <= _METRIC_TOLERANCE * np.outer(lengths, lengths)).all())


def _number(block: Block) -> tuple[str, int] | None:
    """Return the number of the space group with its tag and value, for messages."""
    for tag in _NUMBER_TAGS:
        if value := block.value(tag):
            if not (value.isascii() and value.isdigit() and settings_of_number(int(value))):
                raise InvalidCrystal(
                    "wrong_symmetry", f"{tag} {value!r} is no number from 1 to 230"
                )
            return f"{tag} {value}", int(value)
    for tag in _SCHOENFLIES_TAGS:
        if value := block.value(tag):
            number = number_of_schoenflies(value)
            if number is None:
                raise InvalidCrystal("wrong_symmetry", f"{tag} {value!r} is not known")
            return f"{tag} {value!r}", number
    return None


def _compare_hall(symmetry: Symmetry, hall: str) -> None:
    operations = operations_of_hall(hall)
    if operations is None:
        symmetry.notes.append(f"the Hall symbol {hall!r} is not known and not compared")
    elif not any(operations.same_as(candidate) for candidate in symmetry.candidates.values()):
        symmetry.claims.append(Claim(f"the Hall symbol is {hall!r}", [operations]))


def _compare_symbol(
    symmetry: Symmetry, text: str, symbol: str, lattice: NDArray[np.float64]
) -> None:
    settings = settings_of_symbol(symbol)
    if not settings:
        symmetry.notes.append(f"{text} is no known space group and not compared")
        return
    used = list(symmetry.candidates.values())
    if any(setting.operations.same_as(one) for setting in settings for one in used):
        return
    fitting = [setting.operations for setting in settings if _fits(setting.operations, lattice)]
    same_type = settings[0].number in {operations.number for operations in used}
    if same_type and (len(settings) > 1 or not settings[0].suffix):
        symmetry.notes.append(
            f"{text} is another setting of the group than {next(iter(symmetry.candidates))}, "
            "which is used"
        )
    else:
        symmetry.claims.append(Claim(f"{text} is group {settings[0].number}", fitting))


def _compare_number(
    symmetry: Symmetry, text: str, number: int, lattice: NDArray[np.float64]
) -> None:
    if number in {operations.number for operations in symmetry.candidates.values()}:
        return
    settings = [s.operations for s in settings_of_number(number) if _fits(s.operations, lattice)]
    symmetry.claims.append(Claim(f"{text} is another group", settings))
