"""New crystals from known ones, with one element given to another: the template method of
CrystalLLM (Gruver et al. 2024, arXiv 2402.04379), as a run folder."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from ase.calculators.calculator import Calculator
from pymatgen.core import Structure

from flowllm.crystals.cells import NIGGLI_TOLERANCE
from flowllm.crystals.cif import cif_text
from flowllm.crystals.io import Crystal, read, write
from flowllm.energy.calculators import load_calculator, potential_identity
from flowllm.energy.minimization import TIME_LIMIT, relax
from flowllm.errors import UserError
from flowllm.hub.locate import BUNDLED_PRIOR, identity, resolve
from flowllm.runs.outcome import Outcome
from flowllm.runs.sharded import RunFolder, batch_seed, run_job
from flowllm.system.device import pick_device
from flowllm.system.files import sha256_path
from flowllm.system.versions import versions
from llm_prior import Prior, warn_of_untrained
from llm_prior.infilling import allowed_swaps, element_probabilities, replace_element
from llm_prior.text import SYMBOLS

_BATCH_SIZE = 16  # few: a relaxation that is killed loses at most as many
_TABLE = pa.schema(
    {
        **dict.fromkeys(("id", "parent", "swap"), pa.string()),
        "probability": pa.float64(),
        "formula": pa.string(),
        "num_atoms": pa.int64(),
        **dict.fromkeys(("cif", "structure", "proposed"), pa.string()),
        "energy_per_atom": pa.float64(),
        "steps": pa.int64(),
        "failure": pa.string(),
    }
)


@dataclass(frozen=True, kw_only=True)
class Mutation:
    """What a run asks for, apart from the models: plain JSON, part of its identity.

    Attributes:
        method: `llm` draws the new element from the prior's infilling distribution, `uniform`
            evenly from the swap table.
        temperature: of the infilling distribution.
        swap_table: only swaps that the table allows.
        seed: decides every draw.
    """

    method: Literal["llm", "uniform"] = "llm"
    temperature: float = 1.0
    swap_table: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        if self.method not in ("llm", "uniform"):
            raise UserError(f"unknown method {self.method!r}; use llm or uniform")
        if self.method == "uniform" and not self.swap_table:
            raise UserError("method uniform draws from the swap table; leave no_swap_table out")
        if self.method == "uniform" and self.temperature != 1:
            raise UserError("method uniform has no temperature; leave it out, or use method llm")


def mutate(
    file: str | Path,
    n: int,
    *,
    out: str | Path,
    method: Literal["llm", "uniform"] = "llm",
    prior: str | Path | None = None,
    temperature: float = 1.0,
    swap_table: bool = True,
    potential: str | None = None,
    seed: int = 0,
    skip_invalid: bool = False,
    workers: int = 1,
    device: str = "auto",
    progress: bool = True,
) -> Outcome:
    """Propose `n` crystals by swapping one element of a crystal of `file`.

    A parent is drawn evenly, then one of its elements, then the element that takes all its sites;
    cell and positions stay. Elements that the parent has already are no choice, so that every
    crystal keeps its number of elements, and parents without any allowed swap are not drawn.

    Args:
        file: the parents, anything that `flowllm.crystals.io.read` reads.
        n: how many.
        out: run folder: `manifest.json`, `shards/`, then `samples.parquet` (with parent, swap,
            probability of the swap given parent and element), `samples.extxyz` and `cif/`; called
            again, it goes on where it was killed.
        method: `llm` or `uniform`; see `Mutation`.
        prior: folder or hub id for method `llm`; None takes the bundled one.
        temperature: of the infilling distribution.
        swap_table: only swaps that `llm_prior.infilling.allowed_swaps` has.
        potential: relax with this (`flowllm.energy.calculators.load_calculator`); a crystal that
            fails to relax is recorded as it was proposed, with why.
        seed: decides every draw.
        skip_invalid: leave bad rows of `file` and too large crystals out.
        workers: processes; how many does not change the result.
        device: of the prior: `cpu`, `cuda` or `auto`.
        progress: show a bar on a terminal.

    Raises:
        UserError, PriorError: bad file, request, model, potential or folder, or no crystal in
            `file` that can be mutated.
    """
    file = Path(file)
    settings = Mutation(method=method, temperature=temperature, swap_table=swap_table, seed=seed)
    if prior is not None and method == "uniform":
        raise UserError("a prior is given and not used; leave it out, or use method llm")
    where = pick_device(device)
    folder = resolve(prior, BUNDLED_PRIOR) if method == "llm" else None
    load = functools.partial(_load, folder, potential, where)
    models = load()
    if models[0] is not None:
        warn_of_untrained(models[0], infill=True)
    max_atoms = models[0].fmt.max_atoms if models[0] is not None else None
    crystals = read(file, skip_invalid=skip_invalid, max_atoms=max_atoms)
    parents = [crystal for crystal in crystals if _choices(crystal.structure, swap_table)]
    if not parents:
        raise UserError(
            f"the swap table has no element for any crystal of {file}; leave the table out "
            "(--no-swap-table, method llm)"
        )
    manifest = {
        "command": "mutate",
        "device": where,
        "input": sha256_path(file),
        "prior": identity(folder) if folder is not None else None,
        "potential": potential_identity(potential) if potential is not None else None,
        "skip_invalid": skip_invalid,
        "niggli_tolerance": NIGGLI_TOLERANCE,
        **vars(settings),
    }
    run = run_job(
        out,
        manifest=manifest,
        total=n,
        batch_size=_BATCH_SIZE,
        work=functools.partial(_mutate_batch, parents, settings),
        setup=functools.partial(load, check=False) if workers > 1 else lambda: models,
        info=versions(),
        workers=workers,
        progress=progress,
        description="mutating",
    )
    return _publish(run)


def _load(
    prior: Path | None, potential: str | None, device: str, *, check: bool = True
) -> tuple[Prior | None, Calculator | None]:
    return (
        None if prior is None else Prior.from_pretrained(prior, device=device),
        None if potential is None else load_calculator(potential, check=check),
    )


def _choices(structure: Structure, swap_table: bool) -> dict[str, list[str]]:
    """For each element of a crystal those that may replace it; elements without any are absent."""
    present = [element.symbol for element in structure.composition.elements]
    swaps = allowed_swaps()
    found = {
        old: sorted(set(swaps[old] if swap_table else SYMBOLS) - set(present)) for old in present
    }
    return {old: new for old, new in found.items() if new}


def _mutate_batch(
    parents: Sequence[Crystal],
    settings: Mutation,
    models: tuple[Prior | None, Calculator | None],
    index: int,
    start: int,
    count: int,
) -> list[dict[str, Any]]:
    prior, calculator = models
    rng = np.random.default_rng(batch_seed(settings.seed, index))
    drawn = [parents[int(rng.integers(len(parents)))] for _ in range(count)]
    choices = [_choices(parent.structure, settings.swap_table) for parent in drawn]
    olds = [str(rng.choice(sorted(options))) for options in choices]
    candidates = [options[old] for options, old in zip(choices, olds, strict=True)]
    if prior is None:
        distributions = [dict.fromkeys(new, 1 / len(new)) for new in candidates]
    else:
        distributions = element_probabilities(
            prior,
            [parent.structure for parent in drawn],
            olds,
            temperature=settings.temperature,
            candidates=candidates,
        )
    records = []
    for number, (parent, old, chances) in enumerate(
        zip(drawn, olds, distributions, strict=True), start
    ):
        new = str(rng.choice(list(chances), p=list(chances.values())))
        proposed = replace_element(parent.structure, old, new)
        record: dict[str, Any] = {
            "id": f"mutation-{number:05d}",
            "parent": parent.id,
            "swap": f"{old}->{new}",
            "probability": chances[new],
            "proposed": proposed.as_dict(verbosity=0),
            "structure": proposed.as_dict(verbosity=0),
            "energy_per_atom": None,
            "steps": None,
            "failure": None,
        }
        if calculator is not None:
            relaxed = relax(proposed, calculator, time_limit=TIME_LIMIT)
            structure = relaxed.structure
            record |= {
                "structure": None if structure is None else structure.as_dict(verbosity=0),
                "energy_per_atom": relaxed.energy_per_atom,
                "steps": relaxed.steps,
                "failure": relaxed.failure,
            }
        records.append(record)
    return records


def _publish(folder: RunFolder) -> Outcome:
    """Write the files for people from the shards, each whole or not at all."""
    records = list(folder.records())
    crystals = [
        Crystal(
            id=record["id"],
            structure=Structure.from_dict(record["structure"]),
            properties={
                name: record[name]
                for name in ("parent", "swap", "probability", "energy_per_atom")
                if record[name] is not None
            },
        )
        for record in records
        if record["structure"] is not None
    ]
    folder.publish("samples.parquet", functools.partial(_write_table, records))
    if crystals:
        folder.publish("samples.extxyz", lambda path: write(crystals, path))
        folder.publish("cif", lambda path: write(crystals, path))
    failures = Counter(record["failure"] for record in records if record["failure"] is not None)
    return Outcome(folder.path, crystals, failures)


def _write_table(records: Sequence[Mapping[str, Any]], path: Path) -> None:
    rows = []
    for record in records:
        row = dict(record)
        for name in ("structure", "proposed"):
            if record[name] is not None:
                row[name] = Structure.from_dict(record[name]).to(fmt="json")
        if record["structure"] is not None:
            structure = Structure.from_dict(record["structure"])
            row["cif"] = cif_text(structure)
            row["formula"] = structure.composition.reduced_formula
            row["num_atoms"] = len(structure)
        rows.append(row)
    pq.write_table(pa.Table.from_pylist(rows, schema=_TABLE), path, compression="zstd")
