"""Many crystals relaxed as a run folder, each where it can harm no other."""

from __future__ import annotations

import functools
import hashlib
import json
import logging
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import ase.io
import pyarrow as pa
import pyarrow.parquet as pq
from ase import Atoms
from ase.calculators.calculator import Calculator
from ase.calculators.singlepoint import SinglePointCalculator
from pymatgen.core import Structure

from flowllm.crystals.cells import NIGGLI_TOLERANCE
from flowllm.crystals.cif import cif_text
from flowllm.crystals.crystal import ignore_missing_electronegativity
from flowllm.crystals.io import Crystal, read, write
from flowllm.energy.calculators import POTENTIAL, energy_scheme, load_calculator, potential_identity
from flowllm.energy.minimization import (
    FORCE_LIMIT,
    STEP_LIMIT,
    STRESS_LIMIT,
    TIME_LIMIT,
    Relaxation,
    failed,
    relax,
)
from flowllm.errors import UserError
from flowllm.runs.outcome import Outcome, file_names, write_cifs
from flowllm.runs.sharded import RunFolder, run_job
from flowllm.system.isolation import Isolated, Lost
from flowllm.system.versions import versions

logger = logging.getLogger(__name__)

_GRACE = 30.0  # seconds in which a step that began within the time limit may end
_TOO_MANY_FAILED = 0.05
_TABLE = pa.schema(
    {
        **dict.fromkeys(("id", "formula"), pa.string()),
        "num_atoms": pa.int64(),
        **dict.fromkeys(("cif", "structure", "initial_structure"), pa.string()),
        **dict.fromkeys(("energy_per_atom", "initial_energy_per_atom"), pa.float64()),
        "steps": pa.int64(),
        "failure": pa.string(),
    }
)


def relax_file(
    file: str | Path,
    *,
    potential: str = POTENTIAL,
    out: str | Path,
    force_limit: float = FORCE_LIMIT,
    stress_limit: float = STRESS_LIMIT,
    step_limit: int = STEP_LIMIT,
    time_limit: float = TIME_LIMIT,
    trajectories: bool = False,
    limit: int | None = None,
    skip_invalid: bool = False,
    workers: int = 1,
    progress: bool = True,
) -> Outcome:
    """Relax the crystals of `file`, anything that `flowllm.crystals.io.read` reads.

    Args:
        file: the crystals.
        limit: the first so many rows only.
        skip_invalid: leave bad rows out and count them.

    The others are those of `relax_crystals`.

    Raises:
        UserError: bad file, potential, limit or folder.
    """
    crystals = read(file, skip_invalid=skip_invalid, limit=limit)
    return relax_crystals(
        crystals,
        potential=potential,
        out=out,
        force_limit=force_limit,
        stress_limit=stress_limit,
        step_limit=step_limit,
        time_limit=time_limit,
        trajectories=trajectories,
        workers=workers,
        progress=progress,
    )


def relax_crystals(
    crystals: Sequence[Crystal],
    *,
    potential: str = POTENTIAL,
    out: str | Path,
    force_limit: float = FORCE_LIMIT,
    stress_limit: float = STRESS_LIMIT,
    step_limit: int = STEP_LIMIT,
    time_limit: float = TIME_LIMIT,
    trajectories: bool = False,
    workers: int = 1,
    progress: bool = True,
) -> Outcome:
    """Relax crystals, cell and positions, with a potential on the CPU.

    Every crystal is relaxed in a process that may fall apart, hang or die with it: that is
    recorded and the others go on.

    Args:
        crystals: each with its own id.
        potential: see `flowllm.energy.calculators.load_calculator`.
        out: run folder: `manifest.json`, `shards/` (a crystal each), then `samples.parquet` (a row
            each, the failed ones with why), `samples.extxyz` and `cif/`; called again, it goes on
            where it was killed.
        force_limit: the largest force on an atom at the end, eV/Angstrom.
        stress_limit: the largest component of the stress at the end, GPa.
        step_limit: most steps for a crystal.
        time_limit: most seconds for a crystal; what it stops depends on how busy the machine is.
        trajectories: keep every step, in `trajectories/ID.extxyz`.
        workers: crystals at a time, in a process with one thread each.
        progress: show a bar on a terminal.

    Returns:
        The folder, and the relaxed crystals in the order of `crystals`, with energy_per_atom,
        initial_energy_per_atom (eV/atom) and steps.

    Raises:
        UserError: no crystals, an id twice, a bad potential, limit or folder.
    """
    if not crystals:
        raise UserError("there are no crystals to relax")
    repeated = [name for name, count in Counter(c.id for c in crystals).items() if count > 1]
    if repeated:
        raise UserError(f"the id {repeated[0]!r} occurs twice; give every crystal its own")
    limits = {
        "force_limit": force_limit,
        "stress_limit": stress_limit,
        "step_limit": step_limit,
        "time_limit": time_limit,
    }
    for name, value in limits.items():
        if not value > 0:
            raise UserError(f"{name} is {value}; give more than 0")
    scheme = energy_scheme(potential, load_calculator(potential))
    manifest = {
        "command": "relax",
        "input": _sha256(crystals),
        "potential": potential_identity(potential),
        "energy_scheme": scheme,
        "niggli_tolerance": NIGGLI_TOLERANCE,
        "trajectories": trajectories,
        **limits,
    }
    start = time.monotonic()
    before = len(list(Path(out).glob("shards/*.jsonl")))
    run = run_job(
        out,
        manifest=manifest,
        total=len(crystals),
        batch_size=1,  # a kill loses the crystals at work, and no worker waits for another's
        work=functools.partial(_relax_shard, crystals, time_limit),
        setup=functools.partial(_isolate, potential, limits, trajectories),
        info=versions(),
        workers=workers,
        progress=progress,
        description="relaxing",
    )
    outcome = _publish(run)
    if new := len(crystals) - before:
        minutes = (time.monotonic() - start) / 60
        logger.info("%.1f crystals a minute with %d workers", new / minutes, workers)
    if (count := outcome.failures.total()) > _TOO_MANY_FAILED * len(crystals):
        logger.warning(
            "%d of %d relaxations failed: rates over all crystals count them as not stable",
            count,
            len(crystals),
        )
    return outcome


def _isolate(
    potential: str, limits: Mapping[str, Any], keep_frames: bool
) -> Isolated[Structure, Relaxation]:
    return Isolated(
        functools.partial(load_calculator, potential, check=False),  # the parent has tested it
        functools.partial(_relax_one, dict(limits), keep_frames),
        what=f"potential {potential}",
    )


def _relax_one(
    limits: Mapping[str, Any], keep_frames: bool, calculator: Calculator, structure: Structure
) -> Relaxation:
    calculator.reset()  # nothing of the crystal before
    return relax(structure, calculator, keep_frames=keep_frames, **limits)


def _relax_shard(
    crystals: Sequence[Crystal],
    time_limit: float,
    isolated: Isolated[Structure, Relaxation],
    index: int,
    start: int,
    count: int,
) -> list[dict[str, Any]]:
    records = []
    for crystal in crystals[start : start + count]:
        try:
            relaxed = isolated(crystal.structure, time_limit=time_limit + _GRACE)
        except Lost as error:
            relaxed = failed(str(error))
        record = {
            "id": crystal.id,
            "structure": _plain(relaxed.structure),
            "initial_structure": _plain(crystal.structure),
            "energy_per_atom": relaxed.energy_per_atom,
            "initial_energy_per_atom": relaxed.initial_energy_per_atom,
            "steps": relaxed.steps,
            "failure": relaxed.failure,
        }
        if relaxed.frames is not None:
            record["frames"] = [
                [frame.lattice.tolist(), frame.cart_coords.tolist(), frame.energy]
                for frame in relaxed.frames
            ]
        records.append(record)
    return records


def _plain(structure: Structure | None) -> dict[str, Any] | None:
    return None if structure is None else structure.as_dict(verbosity=0)


def _sha256(crystals: Sequence[Crystal]) -> str:
    digest = hashlib.sha256()
    for crystal in crystals:
        digest.update(json.dumps([crystal.id, _plain(crystal.structure)]).encode())
    return digest.hexdigest()


def _publish(folder: RunFolder) -> Outcome:
    """Write the files for people from the shards, each whole or not at all."""
    rows, crystals = [], []
    for record in folder.records():
        record.pop("frames", None)  # large: never all in memory
        rows.append(_row(record))
        if record["structure"] is not None:
            names = ("energy_per_atom", "initial_energy_per_atom", "steps")
            crystals.append(
                Crystal(
                    id=record["id"],
                    structure=Structure.from_dict(record["structure"]),
                    properties={name: record[name] for name in names},
                )
            )
    table = pa.Table.from_pylist(rows, schema=_TABLE)
    folder.publish("samples.parquet", lambda path: pq.write_table(table, path, compression="zstd"))
    if crystals:
        folder.publish("samples.extxyz", lambda path: write(crystals, path))
        folder.publish("cif", functools.partial(write_cifs, crystals))
    if folder.run["trajectories"]:
        ids = [row["id"] for row in rows]
        folder.publish(
            "trajectories", lambda path: _write_trajectories(folder.records(), ids, path)
        )
    failures = Counter(row["failure"] for row in rows if row["failure"] is not None)
    return Outcome(folder.path, crystals, failures)


def _row(record: Mapping[str, Any]) -> dict[str, Any]:
    row = dict(record)
    initial = Structure.from_dict(record["initial_structure"])
    with ignore_missing_electronegativity():
        row["formula"] = initial.composition.reduced_formula
    row["num_atoms"] = len(initial)
    row["initial_structure"] = initial.to(fmt="json")
    if record["structure"] is not None:
        structure = Structure.from_dict(record["structure"])
        row |= {"structure": structure.to(fmt="json"), "cif": cif_text(structure)}
    return row


def _write_trajectories(
    records: Iterator[Mapping[str, Any]], ids: Sequence[str], path: Path
) -> None:
    path.mkdir()
    for record, name in zip(records, file_names(ids), strict=True):
        if not record.get("frames"):  # its process was lost, or it had no energy
            continue
        numbers = Structure.from_dict(record["initial_structure"]).atomic_numbers
        frames = []
        for lattice, cart_coords, energy in record["frames"]:
            atoms = Atoms(numbers=numbers, positions=cart_coords, cell=lattice, pbc=True)
            atoms.calc = SinglePointCalculator(atoms, energy=energy)
            frames.append(atoms)
        ase.io.write(path / f"{name}.extxyz", frames, format="extxyz")
