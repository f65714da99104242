"""Writers: crystals to a file, one function per format.

`flowllm.crystals.io.write` makes the checks that are common to all formats.
"""

from __future__ import annotations

import csv
import json
import logging
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from flowllm.crystals.cells import make_structure
from flowllm.crystals.cif import cif_text
from flowllm.crystals.crystal import (
    UNREADABLE,
    Crystal,
    geometry_of_structure,
    scalar,
    to_atoms,
)
from flowllm.crystals.databases import OWN_DATA
from flowllm.crystals.formats import Format, format_of
from flowllm.crystals.optimade import optimade_response
from flowllm.errors import UserError
from flowllm.system.extras import require
from flowllm.system.files import file_names
from flowllm.system.parquet import write_parquet

if TYPE_CHECKING:
    from ase import Atoms

logger = logging.getLogger(__name__)

# Neither hidden nor with a character that has a meaning somewhere, nor with a space at the end.
_FILE_NAME = r"\w(?:[\w .,;=()\[\]{}+@#%~^'-]*[\w)\]}+'~^%#@-])?"
_EXTXYZ_KEYS = ("Lattice", "Properties", "pbc")  # used by the format itself


def writer_for(path: Path) -> Callable[[list[Crystal], Path], None] | None:
    """Return the function that writes crystals to a file or folder of this name.

    Args:
        path: of a file with a suffix, a POSCAR, or a folder, which may exist already.

    Returns:
        The function, or None if the format is unknown.
    """
    if path.is_dir():
        return write_folder
    if format_of(path.name) is Format.POSCAR:
        return _write_poscar
    for suffix, writer in _LONG_SUFFIXES.items():
        if path.name.lower().endswith(suffix):
            return writer
    return _WRITERS.get(path.suffix.lower()) if path.suffix else write_folder


def write_folder(crystals: list[Crystal], path: Path) -> None:
    """Write a new folder with one CIF for each crystal, named by its id.

    An id that some file system does not take as a name is changed, with a warning.

    Args:
        crystals: the crystals.
        path: of the folder.
    """
    path.mkdir()
    names = file_names([crystal.id for crystal in crystals], keep=_FILE_NAME)
    changed = [(c.id, name) for c, name in zip(crystals, names, strict=True) if c.id != name]
    if changed:
        logger.warning(
            "%d ids cannot be file names and are changed, such as %r to %r",
            *(len(changed), *changed[0]),
        )
    for crystal, name in zip(crystals, names, strict=True):
        (path / f"{name}.cif").write_text(cif_text(crystal.structure), encoding="utf-8")


def _write_cif(crystals: list[Crystal], path: Path) -> None:
    if len(crystals) > 1:
        raise UserError(
            f"{path.name}: a .cif file holds one crystal, not {len(crystals)}; "
            "give a name without a suffix for a folder"
        )
    path.write_text(cif_text(crystals[0].structure), encoding="utf-8")


def _write_poscar(crystals: list[Crystal], path: Path) -> None:
    if len(crystals) > 1:
        raise UserError(
            f"{path.name}: a POSCAR holds one crystal, not {len(crystals)}; choose another format"
        )
    # Slow to import, and no other format needs it.
    from pymatgen.io.vasp.inputs import Poscar

    crystal = crystals[0]
    lattice, numbers, frac_coords = geometry_of_structure(crystal.structure)
    if np.linalg.det(lattice) < 0:
        # VASP needs a right-handed cell; pymatgen would invert the cell without the positions,
        # and so write the mirror image.
        lattice, frac_coords = -lattice, -frac_coords
    elements = list(dict.fromkeys(numbers.tolist()))
    order = sorted(range(len(numbers)), key=lambda i: elements.index(numbers[i]))  # stable
    grouped = make_structure(lattice, numbers[order], frac_coords[order])
    text = Poscar(grouped, comment=" ".join(crystal.id.split())).get_str()
    path.write_text(text, encoding="utf-8")


def _write_csv(crystals: list[Crystal], path: Path) -> None:
    records = _records(crystals)
    with open(path, "w", encoding="utf-8", newline="") as file:
        table = csv.DictWriter(file, list(dict.fromkeys(key for r in records for key in r)))
        table.writeheader()
        table.writerows(records)


def _write_parquet(crystals: list[Crystal], path: Path) -> None:
    records = _records(crystals)
    columns = {}
    for name in dict.fromkeys(key for record in records for key in record):
        try:
            columns[name] = pa.array([record.get(name) for record in records])
        except pa.ArrowException as error:
            raise UserError(f"the property {name!r} has values of several types") from error
    write_parquet(pa.table(columns), path)


def write_extxyz(crystals: list[Crystal], path: Path) -> None:
    """Write crystals to an extxyz file, those too that `read` would refuse.

    Args:
        crystals: any.
        path: the file; an existing one is replaced.
    """
    import ase.io  # slow to import, and no other format needs it

    ase.io.write(path, [extxyz_frame(crystal) for crystal in crystals], format="extxyz")


def extxyz_frame(crystal: Crystal) -> Atoms:
    """Return a crystal as ASE writes it to an extxyz file, with its id and its properties.

    Args:
        crystal: any.

    Returns:
        The atoms.
    """
    atoms = to_atoms(crystal.structure)
    for key, value in {"material_id": crystal.id, **_written(crystal)}.items():
        atoms.info[key] = _extxyz_value(key, value)
    return atoms


def _extxyz_value(key: str, value: float | int | str) -> float | int | str:
    """Return a value in a form that ASE reads back unchanged.

    A string such as `007`, `T` or `1 2` needs ASE's JSON form, else it comes back as a number.
    """
    from ase.io.extxyz import key_val_dict_to_str, key_val_str_to_dict

    forms = [value]
    if isinstance(value, str):
        forms.append("_JSON " + json.dumps(value).replace("\\", "\\\\"))  # ASE undoes one escape
    for form in forms:
        with suppress(*UNREADABLE):
            # With a key after it, as in a file: a value that ends with = would swallow that key.
            text = key_val_dict_to_str({key: form}) + ' pbc="T T T"'
            back = scalar(key_val_str_to_dict(text).get(key))
            if type(back) is type(value) and back == value and key not in _EXTXYZ_KEYS:
                return form
    raise UserError(f"extxyz cannot hold the property {key!r} = {value!r}; rename or drop it")


def _write_optimade(crystals: list[Crystal], path: Path) -> None:
    response = optimade_response(crystals, [_written(c) for c in crystals])
    path.write_text(json.dumps(response), encoding="utf-8")


def _write_entries(crystals: list[Crystal], path: Path) -> None:
    from pymatgen.entries.computed_entries import ComputedStructureEntry

    entries = []
    for crystal in crystals:
        values = _written(crystal)
        energy = values.pop("energy", None)
        per_atom = values.get("energy_per_atom")
        if isinstance(per_atom, int | float):
            energy = per_atom * len(crystal.structure)
        if not isinstance(energy, int | float):
            raise UserError(
                f"crystal {crystal.id} has no energy, which an entry needs: give energy_per_atom "
                "(eV/atom, as `flowllm relax` computes it) or energy (eV)"
            )
        entry = ComputedStructureEntry(
            crystal.structure, energy, data=values, entry_id=crystal.id
        ).as_dict()
        entries.append(entry)
    path.write_text(json.dumps(entries), encoding="utf-8")


def _write_database(crystals: list[Crystal], path: Path) -> None:
    import ase.db  # slow to import, and no other format needs it

    with ase.db.connect(path, type="db", use_lock_file=False) as database:
        for crystal in crystals:
            pairs: dict[str, float | int | str] = {}
            other: dict[str, float | int | str] = {}
            for key, value in {"material_id": crystal.id, **_written(crystal)}.items():
                (pairs if _is_pair(key, value) else other)[key] = value
            data = {OWN_DATA: other} if other else {}
            database.write(to_atoms(crystal.structure), key_value_pairs=pairs, data=data)


def _is_pair(key: str, value: float | int | str) -> bool:
    """Return whether ASE takes a value as a key-value pair, and gives it back as it is.

    It refuses keys that are no names or its own, and texts that look like numbers, and turns True
    into 1.
    """
    from ase.db.core import check

    if isinstance(value, bool):
        return False
    try:
        check({key: value})
    except ValueError:
        return False
    return True


def _write_html(crystals: list[Crystal], path: Path) -> None:
    for module in ("plotly", "jinja2"):
        require(module, "show")
    from flowllm.crystals.views.page import write_page

    write_page(crystals, path)


def _write_json(crystals: list[Crystal], path: Path) -> None:
    path.write_text(json.dumps(_structure_dicts(crystals)), encoding="utf-8")


def _write_jsonl(crystals: list[Crystal], path: Path) -> None:
    lines = [json.dumps(item) + "\n" for item in _structure_dicts(crystals)]
    path.write_text("".join(lines), encoding="utf-8")


def _structure_dicts(crystals: list[Crystal]) -> list[dict[str, Any]]:
    return [
        c.structure.as_dict() | {"properties": {"material_id": c.id, **_written(c)}}
        for c in crystals
    ]


def _records(crystals: list[Crystal]) -> list[dict[str, Any]]:
    return [{"material_id": c.id, **_written(c), "cif": cif_text(c.structure)} for c in crystals]


def _written(crystal: Crystal) -> dict[str, float | int | str]:
    values = {key: scalar(value) for key, value in crystal.properties.items()}
    return {key: value for key, value in values.items() if value is not None}


# Formats that share a suffix with another one.
_LONG_SUFFIXES = {
    ".optimade.json": _write_optimade,
    ".entries.json": _write_entries,
}
_WRITERS = {
    ".cif": _write_cif,
    ".csv": _write_csv,
    ".parquet": _write_parquet,
    ".extxyz": write_extxyz,
    ".xyz": write_extxyz,
    ".json": _write_json,
    ".jsonl": _write_jsonl,
    ".db": _write_database,
    ".html": _write_html,
}
KNOWN = f"known are {', '.join([*_WRITERS, *_LONG_SUFFIXES])}, .vasp, POSCAR and a folder of CIFs"
