"""Writers: crystals to a file, one function per format.

`flowllm.crystals.io.write` makes the checks that all formats share.
"""

from __future__ import annotations

import csv
import json
import re
from contextlib import suppress
from pathlib import Path
from typing import Any

import ase.io
import pyarrow as pa
import pyarrow.parquet as pq
from ase.io.extxyz import key_val_dict_to_str, key_val_str_to_dict

from flowllm.crystals.cif import cif_text
from flowllm.crystals.crystal import UNREADABLE, Crystal, scalar, to_atoms
from flowllm.errors import UserError

_EXTXYZ_KEYS = ("Lattice", "Properties", "pbc")  # the frame's own


def write_folder(crystals: list[Crystal], path: Path) -> None:
    """A new folder with one CIF a crystal, named by its id.

    Raises:
        UserError: an id that cannot be a file name.
    """
    path.mkdir()
    for crystal in crystals:
        if not re.fullmatch(r"\w[\w.()+-]*", crystal.id):
            raise UserError(f"the id {crystal.id!r} cannot be a file name; rename it")
        (path / f"{crystal.id}.cif").write_text(cif_text(crystal.structure), encoding="utf-8")


def _write_cif(crystals: list[Crystal], path: Path) -> None:
    if len(crystals) > 1:
        raise UserError(
            f"{path.name}: a .cif file holds one crystal, not {len(crystals)}; "
            "give a name without a suffix for a folder"
        )
    path.write_text(cif_text(crystals[0].structure), encoding="utf-8")


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
    pq.write_table(pa.table(columns), path, compression="zstd")


def _write_extxyz(crystals: list[Crystal], path: Path) -> None:
    frames = []
    for crystal in crystals:
        atoms = to_atoms(crystal.structure)
        for key, value in {"material_id": crystal.id, **_written(crystal)}.items():
            atoms.info[key] = _extxyz_value(key, value)
        frames.append(atoms)
    ase.io.write(path, frames, format="extxyz")


def _extxyz_value(key: str, value: float | int | str) -> float | int | str:
    """The value, or a string (`007`, `T`, `1 2`) as the JSON that ASE reads back as that string."""
    forms = [value]
    if isinstance(value, str):
        forms.append("_JSON " + json.dumps(value).replace("\\", "\\\\"))  # ASE undoes one escape
    for form in forms:
        with suppress(*UNREADABLE):
            # With something after it, as in a file: a value that ends with = would swallow that.
            text = key_val_dict_to_str({key: form}) + ' pbc="T T T"'
            back = scalar(key_val_str_to_dict(text).get(key))
            if type(back) is type(value) and back == value and key not in _EXTXYZ_KEYS:
                return form
    raise UserError(f"extxyz cannot hold the property {key!r} = {value!r}; rename or drop it")


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


WRITERS = {
    ".cif": _write_cif,
    ".csv": _write_csv,
    ".parquet": _write_parquet,
    ".extxyz": _write_extxyz,
    ".xyz": _write_extxyz,
    ".json": _write_json,
    ".jsonl": _write_jsonl,
}
KNOWN = f"known are {', '.join(WRITERS)} and a folder of CIFs"
