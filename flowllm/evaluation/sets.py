"""Sets of generated crystals as they come, failures included."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pymatgen.core import Structure

from flowllm.crystals import cells
from flowllm.crystals.io import read_all
from flowllm.errors import InvalidCrystal, UserError
from flowllm.runs.identity import read_identity

_TABLE = "samples.parquet"
_MANIFEST = "manifest.json"
_LONGEST_REASON = 60


@dataclass(frozen=True, kw_only=True)
class Generated:
    """One crystal that a generator was asked for.

    Attributes:
        id: as its file has it.
        structure: in the cell it came in, or None.
        failure: why there is none, else None.
        properties: what stands beside it in its file.
    """

    id: str
    structure: Structure | None
    failure: str | None = None
    properties: dict[str, float | int | str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class GeneratedSet:
    """What one generator made.

    Attributes:
        name: of the file or folder.
        crystals: everything that was asked for, in the order of the file.
        conditions: what was asked of each, by the names of `llm_prior.prompts.ATTRIBUTES`.
    """

    name: str
    crystals: Sequence[Generated]
    conditions: dict[str, Any] = field(default_factory=dict)


def read_generated(path: str | Path) -> GeneratedSet:
    """Read a set from a run folder of `flowllm`, or from any file or folder that `data.read` reads.

    Cells stay as they are in the file. A crystal that cannot be read (damaged, disordered, without
    volume) has failed, as have those that a run folder lists as failed.

    Raises:
        UserError: nothing there, an unknown format, a file that is damaged as a whole, or no rows.
    """
    path = Path(path)
    conditions: dict[str, Any] = {}
    file = path
    if (path / _TABLE).is_file():
        file = path / _TABLE
        if (path / _MANIFEST).is_file():
            conditions = read_identity(path, _MANIFEST)[0].get("conditions") or {}
    elif (path / _MANIFEST).is_file():
        raise UserError(f"{path}: the run is not finished; repeat its command to go on with it")
    crystals = [
        _failed(row.id, row.source, row.properties)
        if isinstance(row.source, InvalidCrystal)
        else Generated(
            id=row.id, structure=cells.make_structure(*row.source), properties=row.properties
        )
        for row in read_all(file, reduce=False)
    ]
    if not crystals:
        raise UserError(f"{path}: holds no crystals")
    return GeneratedSet(name=path.name, crystals=crystals, conditions=conditions)


def _failed(name: str, error: InvalidCrystal, properties: dict[str, Any]) -> Generated:
    reason = str(properties.get("failure") or error.reason)
    return Generated(
        id=name, structure=None, failure=reason[:_LONGEST_REASON], properties=properties
    )
