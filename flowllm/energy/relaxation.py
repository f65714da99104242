"""Relaxation of many crystals as a run folder, isolated from the process that writes it.

Heavy libraries are imported when the work begins, so that bad arguments are refused at once.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import json
import logging
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flowllm.energy.calculators import (
    POTENTIAL,
    check_installed,
    energy_scheme,
    load_calculator,
    pick_potential_device,
    potential_identity,
)
from flowllm.energy.elements import warn_of_unlearnt
from flowllm.energy.minimization import Relaxation, RelaxationConfig
from flowllm.errors import UserError
from flowllm.runs.cif_form import CifForm, check_cif_form
from flowllm.runs.identity import check_folder
from flowllm.runs.parts import check_placement
from flowllm.runs.sharded import MANIFEST, RunFolder, run_job
from flowllm.system.device import check_device
from flowllm.system.options import from_arguments
from flowllm.system.pools import check_gpus

if TYPE_CHECKING:
    from pymatgen.core import Structure

    from flowllm.crystals.crystal import Crystal
    from flowllm.energy.isolated import IsolatedRelaxation
    from flowllm.runs.outputs import Outcome
    from flowllm.runs.sharded import Batch, Progress

logger = logging.getLogger(__name__)

_TOO_MANY_FAILED = 0.05
# Crystals in a shard at most: what a kill loses, and on a GPU what is evaluated together.
_SHARD_ON_CPU, _SHARD_ON_GPU = 8, 256


def relax(
    file: str | Path,
    *,
    out: str | Path,
    potential: str = POTENTIAL,
    config: RelaxationConfig | None = None,
    limit: int | None = None,
    skip_invalid: bool = False,
    cif: CifForm = "symmetrized",
    workers: int = 1,
    executor: str = "local",
    part: str | None = None,
    device: str = "auto",
    progress: bool = True,
    **options: Any,
) -> Outcome:
    """Relax the crystals of a file, cell and positions, into a run folder; see `relax_crystals`.

    Args:
        file: crystals, anything that `flowllm.crystals.io.read` reads.
        out: the run folder.
        potential: see `flowllm.energy.calculators.load_calculator`.
        config: limits of each relaxation; None: the defaults.
        limit: relax the first `limit` rows only.
        skip_invalid: leave bad rows out and count them.
        cif: see `relax_crystals`.
        workers: batches at work at a time; with the executor `local`, processes. They do not change
            the result.
        executor: where they work: `local`, `slurm` or `MODULE:FACTORY`; see
            `flowllm.system.pools.check_executor`.
        part: `I/N` computes every N-th shard, beside other parts in the same folder.
        device: see `relax_crystals`.
        progress: show a bar on a terminal.
        **options: fields of `RelaxationConfig`; they replace those of `config`.

    Returns:
        The relaxed crystals and the failures.

    Raises:
        UserError: if the file, the potential, an option or the folder is bad.
        Unfinished: at the end of a part while other parts are missing.
    """
    potential = check_installed(potential)
    config = from_arguments(RelaxationConfig, options, base=config)
    check_placement(workers, executor, part)
    check_cif_form(cif)
    check_device(device)
    check_folder(out, MANIFEST)
    from flowllm.crystals.io import check_input, read

    check_input(file)
    crystals = read(file, skip_invalid=skip_invalid, limit=limit)
    warn_of_unlearnt([c.structure for c in crystals], potential, name=str(file))
    return relax_crystals(
        crystals,
        out=out,
        potential=potential,
        config=config,
        cif=cif,
        workers=workers,
        executor=executor,
        part=part,
        device=device,
        progress=progress,
    )


def relax_crystals(
    crystals: Sequence[Crystal],
    *,
    out: str | Path,
    potential: str = POTENTIAL,
    config: RelaxationConfig | None = None,
    cif: CifForm = "symmetrized",
    workers: int = 1,
    executor: str = "local",
    part: str | None = None,
    device: str = "auto",
    progress: bool = True,
    **options: Any,
) -> Outcome:
    """Relax crystals, cell and positions, with a potential.

    Crystals are relaxed in batches (`flowllm.energy.batched`), in a process that may hang or die.
    Then the crystals that it computed are halved until the bad one is alone. That is recorded as
    its failure, and the other crystals go on.

    Args:
        crystals: each with an id of its own.
        out: run folder: `manifest.json`, `shards/` (up to 8 crystals each, on a GPU 256), then
            the files of `flowllm.runs.outputs.publish_crystals`. Called again, a killed run goes
            on.
        potential: see `flowllm.energy.calculators.load_calculator`.
        config: limits of each relaxation; None: the defaults.
        cif: form of the files in `cif/`; see `flowllm.runs.outputs.publish_crystals`.
        workers: batches at work at a time; with the executor `local`, processes. They do not change
            the result.
        executor: where they work: `local`, `slurm` or `MODULE:FACTORY`; see
            `flowllm.system.pools.check_executor`.
        part: `I/N` computes every N-th shard, beside other parts in the same folder.
        device: `cpu`, `cuda`, `cuda:NUMBER`, or `auto` for a GPU if the potential can use one.
        progress: show a bar on a terminal.
        **options: fields of `RelaxationConfig`; they replace those of `config`.

    Returns:
        The folder and the relaxed crystals in the order of `crystals`, with `energy_per_atom`,
        `initial_energy_per_atom` (eV/atom) and `steps`.

    Raises:
        UserError: if there are no crystals, an id occurs twice, or the potential, an option or the
            folder is bad.
        Unfinished: at the end of a part while other parts are missing.
    """
    potential = check_installed(potential)
    config = from_arguments(RelaxationConfig, options, base=config)
    check_placement(workers, executor, part)
    check_cif_form(cif)
    check_device(device)
    if not crystals:
        raise UserError("there are no crystals to relax")
    repeated = [name for name, count in Counter(c.id for c in crystals).items() if count > 1]
    if repeated:
        raise UserError(f"the id {repeated[0]!r} occurs twice; give every crystal its own")
    check_folder(out, MANIFEST)
    from flowllm.crystals.cells import NIGGLI_TOLERANCE
    from flowllm.system.versions import versions

    where = pick_potential_device(potential, device)
    check_gpus(where, workers, executor)
    manifest = {
        "command": "relax",
        "input": _sha256(crystals),
        "potential": potential_identity(potential),
        "energy_scheme": energy_scheme(potential, load_calculator(potential, device=where)),
        "device": where,  # another one adds floats in another order
        "niggli_tolerance": NIGGLI_TOLERANCE,
        "cif": cif,
        **dataclasses.asdict(config),
    }
    start = time.monotonic()
    done = _num_done(Path(out))
    isolate = functools.partial(_isolate, potential, where)
    with contextlib.closing(isolate()) as isolated:
        run = run_job(
            out,
            manifest=manifest,
            total=len(crystals),
            batch_size=_shard_size(len(crystals), where),
            work=functools.partial(_relax_batch, crystals, config),
            setup=isolate,
            loaded=isolated,
            info=versions(),
            workers=workers,
            executor=executor,
            part=part,
            device=where,
            progress=progress,
            description="relaxing",
        )
    outcome = publish_relaxed(run)
    if part is None and (new := len(crystals) - done):
        minutes = (time.monotonic() - start) / 60
        logger.info("%.1f crystals a minute with %d workers", new / minutes, workers)
    if (count := outcome.failures.total()) > _TOO_MANY_FAILED * len(crystals):
        logger.warning(
            "%d of %d relaxations failed: rates over all crystals count them as not stable",
            count,
            len(crystals),
        )
    return outcome


def publish_relaxed(folder: RunFolder) -> Outcome:
    """Write the files of a run of relaxations whose shards all exist.

    Args:
        folder: the run.

    Returns:
        The relaxed crystals and the failures.

    Raises:
        UserError: if shards are missing or damaged.
    """
    import pyarrow as pa

    from flowllm.runs.outputs import publish_crystals

    columns = {
        "energy_per_atom": pa.float64(),
        "initial_energy_per_atom": pa.float64(),
        "steps": pa.int64(),
    }
    return publish_crystals(folder, columns, cif=folder.run["cif"])


def _shard_size(total: int, device: str) -> int:
    """Return the crystals in a shard: an eighth of the run, so that several workers have some."""
    return min(-(-total // 8), _SHARD_ON_CPU if device == "cpu" else _SHARD_ON_GPU)


def _num_done(out: Path) -> int:
    if not (out / MANIFEST).is_file():
        return 0
    folder = RunFolder.open(out)
    return folder.total - sum(batch.count for batch in folder.missing)


def _isolate(potential: str, device: str) -> IsolatedRelaxation:
    from flowllm.energy.isolated import IsolatedRelaxation

    return IsolatedRelaxation(potential, device)  # the parent has tested the potential


def _relax_batch(
    crystals: Sequence[Crystal],
    config: RelaxationConfig,
    isolated: IsolatedRelaxation,
    batch: Batch,
    progress: Progress,
) -> list[dict[str, Any]]:
    of_batch = crystals[batch.start : batch.stop]
    relaxed = {}
    for index, relaxation in isolated([crystal.structure for crystal in of_batch], config):
        relaxed[index] = relaxation
        progress(1)
    return [_record(crystal, relaxed[index]) for index, crystal in enumerate(of_batch)]


def _record(crystal: Crystal, relaxed: Relaxation) -> dict[str, Any]:
    from flowllm.runs.records import CrystalRecord

    energies = {
        "energy_per_atom": relaxed.energy_per_atom,
        "initial_energy_per_atom": relaxed.initial_energy_per_atom,
    }
    record = CrystalRecord(
        id=crystal.id,
        structure=relaxed.structure,
        initial_structure=crystal.structure,
        failure=relaxed.failure,
        properties={
            **{name: energy for name, energy in energies.items() if energy is not None},
            "steps": relaxed.steps,
        },
        trajectory=relaxed.frames,
    )
    return record.described().to_json()


def _sha256(crystals: Sequence[Crystal]) -> str:
    digest = hashlib.sha256()
    for crystal in crystals:
        content = [crystal.id, crystal.structure.as_dict(verbosity=0)]
        digest.update(json.dumps(content).encode())
    return digest.hexdigest()


@dataclass(frozen=True, kw_only=True)
class RelaxedRun:
    """A finished run of `flowllm relax`, N crystals in their order.

    Attributes:
        ids: N names.
        initial: the crystals as they were given.
        structures: the relaxed crystals; None for those that failed.
        energies_per_atom: of `structures` by the potential, eV/atom; None for those that failed.
        initial_energies_per_atom: of `initial`, eV/atom; None for those without an energy.
        steps: of the optimizer.
        failures: why there is no structure, else None.
        potential: identity of the potential; see `flowllm.energy.calculators.potential_identity`.
        scheme: of the energies; see `flowllm.energy.calculators.EnergyScheme`.
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

    Args:
        path: the folder.

    Returns:
        The crystals, in the order of the run.

    Raises:
        UserError: if it is no such folder, or the run is not finished.
    """
    from flowllm.runs.records import read_records

    folder = RunFolder.open(path)
    if folder.run.get("command") != "relax":
        raise UserError(f"{path} is no run of flowllm relax; relax its crystals first")
    records = list(read_records(folder, trajectories=False))
    return RelaxedRun(
        ids=tuple(r.id for r in records),
        initial=tuple(r.initial_structure for r in records if r.initial_structure is not None),
        structures=tuple(r.structure for r in records),
        energies_per_atom=tuple(_number(r.properties, "energy_per_atom") for r in records),
        initial_energies_per_atom=tuple(
            _number(r.properties, "initial_energy_per_atom") for r in records
        ),
        steps=tuple(int(r.properties["steps"]) for r in records),
        failures=tuple(r.failure for r in records),
        potential=folder.run["potential"],
        scheme=folder.run["energy_scheme"],
    )


def _number(properties: Mapping[str, float | int | str], name: str) -> float | None:
    value = properties.get(name)
    return None if value is None else float(value)
