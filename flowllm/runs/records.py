"""The record of one crystal in the shards of a run, the same for every command."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pymatgen.core import Structure

from flowllm.crystals.cells import make_structure
from flowllm.crystals.documents import geometry_of_dict, structure_dict
from flowllm.crystals.symmetrized_cif import symmetrized_cif
from flowllm.crystals.symmetry import symmetry_of
from flowllm.errors import UserError
from flowllm.runs.sharded import LAYOUT, RunFolder

_DECIMALS = 8  # in a trajectory, as many as extxyz keeps


@dataclass(frozen=True, kw_only=True)
class Frame:
    """One state of a crystal of N atoms on its way from the initial to the final crystal.

    Attributes:
        lattice: (3, 3) rows a, b, c, Angstrom.
        frac_coords: (N, 3) in the order of the crystal's sites.
        info: numbers by name, such as the time `t` of a flow or the `energy` in eV per cell.
    """

    lattice: NDArray[np.floating]
    frac_coords: NDArray[np.floating]
    info: Mapping[str, float]

    def to_json(self) -> dict[str, Any]:
        """Return the state as plain JSON, rounded to eight decimals."""
        return {
            "lattice": _rounded(self.lattice),
            "frac_coords": _rounded(self.frac_coords),
            "info": dict(self.info),
        }

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Frame:
        """Return the state that `to_json` has written.

        Args:
            content: plain JSON.

        Returns:
            The state.
        """
        return cls(
            lattice=np.array(content["lattice"], dtype=float),
            frac_coords=np.array(content["frac_coords"], dtype=float),
            info=content["info"],
        )


@dataclass(frozen=True, kw_only=True)
class Description:
    """What the outputs of a run say of the symmetry of a crystal.

    It takes longer to find than all else that is written, so the workers find it.

    Attributes:
        spacegroup: International number at `flowllm.crystals.symmetry.SYMPREC`; None if the search
            failed.
        wyckoff: see `Symmetry.wyckoff`; None if the search failed.
        cif: see `symmetrized_cif`.
    """

    spacegroup: int | None
    wyckoff: str | None
    cif: str

    @classmethod
    def of(cls, structure: Structure) -> Description:
        """Return the description of a crystal.

        Args:
            structure: an ordered crystal.
        """
        found = symmetry_of(structure)
        return cls(
            spacegroup=None if found is None else found.spacegroup,
            wyckoff=None if found is None else found.wyckoff,
            cif=symmetrized_cif(structure, found),
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
        properties: values of the command's own columns by name; missing ones are absent.
        rejects: answers of the prior that were refused, by reason.
        trajectory: states in the order of time; None unless requested, empty if left out.
        description: of the final crystal; None if nobody has made it yet.
    """

    id: str
    structure: Structure | None
    initial_structure: Structure | None = None
    failure: str | None = None
    properties: dict[str, float | int | str] = field(default_factory=dict)
    rejects: dict[str, int] = field(default_factory=dict)
    trajectory: Sequence[Frame] | None = None
    description: Description | None = field(default=None, repr=False, compare=False)

    def described(self) -> CrystalRecord:
        """Return the record with the description of its final crystal, if it has one."""
        structure = _structure(_plain(self.structure))  # as it will be read, with plain labels
        if structure is None or self.description is not None:
            return self
        return dataclasses.replace(self, description=Description.of(structure))

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
            content["trajectory"] = [frame.to_json() for frame in self.trajectory]
        if self.description is not None:
            content["description"] = vars(self.description)
        return content

    @classmethod
    def from_json(cls, content: Mapping[str, Any], *, trajectory: bool = True) -> CrystalRecord:
        """Return the record that `to_json` has written.

        Args:
            content: plain JSON.
            trajectory: False leaves the states out, the largest part.

        Returns:
            The record.
        """
        odd = {name: float(text) for name, text in content.get("non_finite", {}).items()}
        frames = content.get("trajectory")
        description = content.get("description")  # none in records of predictions
        return cls(
            id=content["id"],
            structure=_structure(content["structure"]),
            initial_structure=_structure(content["initial_structure"]),
            failure=content["failure"],
            properties={**content["properties"], **odd},
            rejects=dict(content["rejects"]),
            trajectory=None
            if frames is None
            else [Frame.from_json(f) for f in frames if trajectory],
            description=None
            if description is None
            else Description(
                spacegroup=description["spacegroup"],
                wyckoff=description["wyckoff"],
                cif=str(description["cif"]),
            ),
        )


def read_records(folder: RunFolder, *, trajectories: bool = True) -> Iterator[CrystalRecord]:
    """Yield the crystals of a complete run in their order, shard by shard.

    Args:
        folder: a run of a command that makes crystals.
        trajectories: False leaves the states out, the largest part.

    Raises:
        UserError: if shards are missing or damaged, or are of another version of this program.
    """
    if folder.run.get("layout") != LAYOUT:
        raise UserError(
            f"{folder.path} is a run of another version of flowllm; read its samples.parquet, or "
            "run its command again in a new folder"
        )
    yield from folder.parsed(functools.partial(CrystalRecord.from_json, trajectory=trajectories))


def _rounded(values: NDArray[np.floating]) -> list[Any]:
    rounded: list[Any] = (np.round(values.astype(float), _DECIMALS) + 0.0).tolist()  # no -0.0
    return rounded


def _is_json(value: float | int | str) -> bool:
    return not isinstance(value, float) or math.isfinite(value)


def _plain(structure: Structure | None) -> dict[str, Any] | None:
    return None if structure is None else structure_dict(structure, verbosity=0)


def _structure(content: dict[str, Any] | None) -> Structure | None:
    return None if content is None else make_structure(*geometry_of_dict(content))
