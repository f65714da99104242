"""A finished run of `flowllm relax`, read back for the metrics."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pymatgen.core import Structure

from flowllm.errors import UserError
from flowllm.runs.sharded import RunFolder


@dataclass(frozen=True, kw_only=True)
class RelaxedRun:
    """What a run made of its crystals, in their order.

    Attributes:
        ids: N of them.
        initial: the crystals as they came.
        structures: relaxed; None for those that failed.
        energies_per_atom: eV/atom by the potential; None for those that failed.
        initial_energies_per_atom: of `initial`, eV/atom; None where there is none.
        steps: of the optimiser.
        failures: why there is no structure, else None.
        potential: its identity; see `flowllm.energy.calculators.potential_identity`.
        scheme: of its energies; see `flowllm.energy.calculators.EnergyScheme`.
    """

    ids: tuple[str, ...]
    initial: tuple[Structure, ...]
    structures: tuple[Structure | None, ...]
    energies_per_atom: tuple[float | None, ...]
    initial_energies_per_atom: tuple[float | None, ...]
    steps: tuple[int, ...]
    failures: tuple[str | None, ...]
    potential: Mapping[str, Any]
    scheme: str


def read_relaxed(path: str | Path) -> RelaxedRun:
    """Read a finished run folder of `flowllm relax`.

    Raises:
        UserError: it is none, or not finished.
    """
    folder = RunFolder.open(path)
    if folder.run.get("command") != "relax":
        raise UserError(f"{path} is no run of flowllm relax; relax its crystals first")
    records = []
    for record in folder.records():
        record.pop("frames", None)
        records.append(record)
    return RelaxedRun(
        ids=tuple(r["id"] for r in records),
        initial=tuple(Structure.from_dict(r["initial_structure"]) for r in records),
        structures=tuple(
            None if r["structure"] is None else Structure.from_dict(r["structure"]) for r in records
        ),
        energies_per_atom=tuple(r["energy_per_atom"] for r in records),
        initial_energies_per_atom=tuple(r["initial_energy_per_atom"] for r in records),
        steps=tuple(r["steps"] for r in records),
        failures=tuple(r["failure"] for r in records),
        potential=folder.run["potential"],
        scheme=folder.run["energy_scheme"],
    )
