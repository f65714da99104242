"""The record of one crystal in the shards of a run, the same for every command."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pymatgen.core import Structure

from flowllm.errors import UserError
from flowllm.runs.sharded import LAYOUT, RunFolder

_DECIMALS = 8  # of an Angstrom in a trajectory, as many as extxyz keeps


@dataclass(frozen=True, kw_only=True)
class Frames:
    """The states of a crystal of N atoms on its way, F of them in the order of time.

    Attributes:
        lattice: (F, 3, 3) rows a, b, c, Angstrom.
        cart_coords: (F, N, 3) in the order of the crystal's sites, Angstrom.
        info: (F,) numbers by name, such as the time `t` of a flow. `energy` is in eV per cell.
    """

    lattice: NDArray[np.float64]
    cart_coords: NDArray[np.float64]
    info: Mapping[str, NDArray[np.float64]]

    def to_json(self) -> dict[str, Any]:
        """Return the frames as plain JSON, rounded to 1e-8 Angstrom."""
        return {
            "lattice": np.round(self.lattice, _DECIMALS).tolist(),
            "cart_coords": np.round(self.cart_coords, _DECIMALS).tolist(),
            "info": {name: np.asarray(values).tolist() for name, values in self.info.items()},
        }

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Frames:
        """Return the frames that `to_json` has written."""
        return cls(
            lattice=np.array(content["lattice"], dtype=float),
            cart_coords=np.array(content["cart_coords"], dtype=float),
            info={name: np.array(v, dtype=float) for name, v in content["info"].items()},
        )


@dataclass(frozen=True, kw_only=True)
class CrystalRecord:
    """One crystal of a run, or the reason why there is none.

    Attributes:
        id: its name, unique in the run.
        structure: the final crystal; None if it failed.
        initial_structure: the crystal before the last step: the prior's sample, the crystal as it
            was read, the mutation as it was proposed; None if there was none.
        failure: why there is no final crystal, else None.
        properties: values of the command's own columns by name; those that do not exist are absent.
        rejects: answers of the prior that were refused, by reason.
        trajectory: the states from the initial to the final crystal; None unless requested.
    """

    id: str
    structure: Structure | None
    initial_structure: Structure | None = None
    failure: str | None = None
    properties: dict[str, float | int | str] = field(default_factory=dict)
    rejects: dict[str, int] = field(default_factory=dict)
    trajectory: Frames | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the record as plain JSON; structures as pymatgen dicts, which keep every bit."""
        # JSON has no infinity and no NaN.
        odd = {name: str(v) for name, v in self.properties.items() if not _is_json(v)}
        content: dict[str, Any] = {
            "id": self.id,
            "structure": _plain(self.structure),
            "initial_structure": _plain(self.initial_structure),
            "failure": self.failure,
            "properties": {name: v for name, v in self.properties.items() if name not in odd},
            "rejects": dict(self.rejects),
        }
        if odd:
            content["non_finite"] = odd
        if self.trajectory is not None:
            content["trajectory"] = self.trajectory.to_json()
        return content

    @classmethod
    def from_json(cls, content: Mapping[str, Any], *, trajectory: bool = True) -> CrystalRecord:
        """Return the record that `to_json` has written.

        Args:
            content: plain JSON.
            trajectory: False leaves the trajectory out, the largest part.
        """
        odd = {name: float(text) for name, text in content.get("non_finite", {}).items()}
        frames = content.get("trajectory") if trajectory else None
        return cls(
            id=content["id"],
            structure=_structure(content["structure"]),
            initial_structure=_structure(content["initial_structure"]),
            failure=content["failure"],
            properties={**content["properties"], **odd},
            rejects=dict(content["rejects"]),
            trajectory=None if frames is None else Frames.from_json(frames),
        )


def read_records(folder: RunFolder, *, trajectories: bool = True) -> Iterator[CrystalRecord]:
    """Yield the crystals of a complete run in their order, shard by shard.

    Args:
        folder: a run of a command that makes crystals.
        trajectories: False leaves the trajectories out, the largest part.

    Raises:
        UserError: if shards are missing or damaged, or are of another version of this program.
    """
    if folder.run.get("layout") != LAYOUT:
        raise UserError(
            f"{folder.path} is a run of another version of flowllm; read its samples.parquet, or "
            "run its command again in a new folder"
        )
    for content in folder.records():
        yield CrystalRecord.from_json(content, trajectory=trajectories)


def _is_json(value: float | int | str) -> bool:
    return not isinstance(value, float) or math.isfinite(value)


def _plain(structure: Structure | None) -> dict[str, Any] | None:
    return None if structure is None else structure.as_dict(verbosity=0)


def _structure(content: dict[str, Any] | None) -> Structure | None:
    return None if content is None else Structure.from_dict(content)
