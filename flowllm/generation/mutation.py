"""New crystals from known ones by swapping one element, as a run folder.

The template method of CrystalLLM (Gruver et al. 2024, arXiv 2402.04379). Heavy libraries are
imported when the work begins, so that bad arguments are refused at once.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from flowllm.energy.calculators import check_potential_name
from flowllm.errors import UserError
from flowllm.hub.locate import BUNDLED_PRIOR, identity, resolve
from flowllm.runs.cif_form import CifForm, check_cif_form
from flowllm.runs.identity import check_folder
from flowllm.runs.parts import check_placement
from flowllm.runs.sharded import MANIFEST, Batch, Progress, RunFolder, run_job, sample_seed
from flowllm.system.device import check_device, pick_device
from flowllm.system.options import Options, check_count, from_arguments, option
from flowllm.system.pools import check_gpus
from flowllm.system.versions import versions

if TYPE_CHECKING:
    from ase.calculators.calculator import Calculator
    from pymatgen.core import Structure

    from flowllm.crystals.crystal import Crystal
    from flowllm.runs.outputs import Outcome
    from llm_prior import Prior

logger = logging.getLogger(__name__)

_BATCH_SIZE = 16  # crystals that the prior takes at a time


@dataclass(frozen=True, kw_only=True)
class MutationConfig(Options):
    """Options of drawing and relaxing mutations."""

    method: Literal["llm", "uniform"] = option(
        "llm",
        "Draw the new element from the prior's infilling distribution, or evenly from the swap "
        "table.",
        section="Mutation",
        choices=("llm", "uniform"),
    )
    temperature: float = option(
        1.0,
        "Divides the log-probabilities of the elements; 0 takes the likeliest.",
        section="Mutation",
        minimum=0,
    )
    swap_table: bool = option(
        True, "Draw only swaps that the swap table allows.", section="Mutation"
    )
    potential: str | None = option(
        None,
        "Relax the crystals with it: chgnet, matgl:NAME-OR-FOLDER or MODULE:FACTORY.",
        section="Mutation",
        parse=check_potential_name,
    )
    seed: int = option(0, "Seed of every draw.", section="Mutation", minimum=0)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.method == "uniform" and not self.swap_table:
            raise UserError("method uniform draws from the swap table; use that, or method llm")
        if self.method == "uniform" and self.temperature != 1:
            raise UserError("method uniform has no temperature; leave it out, or use method llm")


def mutate(
    file: str | Path,
    n: int,
    config: MutationConfig | None = None,
    *,
    out: str | Path,
    prior: str | Path | None = None,
    skip_invalid: bool = False,
    cif: CifForm = "symmetrized",
    workers: int = 1,
    executor: str = "local",
    part: str | None = None,
    device: str = "auto",
    progress: bool = True,
    **options: Any,
) -> Outcome:
    """Propose `n` crystals, each by swapping one element of a crystal of a file.

    A parent is drawn evenly, then one of its elements, then the element that takes all its sites.
    Cell and positions stay. An element of the parent is never drawn, so that every crystal keeps
    its number of elements. Parents without any allowed swap are not drawn. Mutation k is a function
    of (`config.seed`, k).

    Args:
        file: the parents, anything that `flowllm.crystals.io.read` reads.
        n: number of mutations.
        config: how they are drawn; None: the defaults.
        out: run folder: `manifest.json`, `shards/`, then the files of
            `flowllm.runs.outputs.publish_crystals`, with the parent, the swap and its probability
            given parent and element. A crystal that fails to relax is recorded with its failure
            and, as `initial_structure`, its proposal. Called again, a killed run goes on.
        prior: folder or hub id for method `llm`; None takes the bundled prior.
        skip_invalid: leave out bad rows of `file` and too large crystals.
        cif: form of the files in `cif/`; see `flowllm.runs.outputs.publish_crystals`.
        workers: batches at work at a time; with the executor `local`, processes. They do not change
            the result.
        executor: where they work: `local`, `slurm` or `MODULE:FACTORY`; see
            `flowllm.system.pools.check_executor`.
        part: `I/N` computes every N-th shard, beside other parts in the same folder.
        device: of the prior: `cpu`, `cuda`, `cuda:NUMBER` or `auto`.
        progress: show a bar on a terminal.
        **options: fields of `MutationConfig`; they replace those of `config`.

    Returns:
        The crystals and the failures.

    Raises:
        UserError: if an option, the file, the potential or the folder is bad, or no crystal of
            `file` can be mutated.
        PriorError: if the prior is bad.
    """
    config = from_arguments(MutationConfig, options, base=config)
    check_placement(workers, executor, part)
    check_count("n", n, 1)
    check_cif_form(cif)
    if prior is not None and config.method == "uniform":
        raise UserError("a prior is given and not used; leave it out, or use method llm")
    check_folder(out, MANIFEST)
    check_device(device)
    folder = resolve(prior, BUNDLED_PRIOR) if config.method == "llm" else None

    from flowllm.crystals.cells import NIGGLI_TOLERANCE
    from flowllm.crystals.io import check_input, read
    from flowllm.crystals.run_folders import input_hash
    from flowllm.energy.calculators import potential_identity

    check_input(file)
    file = Path(file)
    where = pick_device(device)  # the first to import torch
    check_gpus(where, workers, executor)
    load = functools.partial(_load, folder, config.potential, where)
    models = load()
    max_atoms = models[0].fmt.max_atoms if models[0] is not None else None
    crystals = read(file, skip_invalid=skip_invalid, max_atoms=max_atoms)
    parents = [crystal for crystal in crystals if _choices(crystal.structure, config.swap_table)]
    if not parents:
        raise UserError(
            f"the swap table has no element for any crystal of {file}; leave the table out "
            "(--no-swap-table, method llm)"
        )
    _warn_of_repeats(parents, n, config, file)
    manifest = {
        "command": "mutate",
        "device": where,
        "input": input_hash(file),
        "prior": identity(folder) if folder is not None else None,
        "skip_invalid": skip_invalid,
        "niggli_tolerance": NIGGLI_TOLERANCE,
        "cif": cif,
        **vars(config),
        "potential": None if config.potential is None else potential_identity(config.potential),
    }
    run = run_job(
        out,
        manifest=manifest,
        total=n,
        # A relaxation takes much longer than a draw: a kill then loses those at work alone.
        batch_size=_BATCH_SIZE if config.potential is None else 1,
        work=functools.partial(_mutate_batch, parents, config),
        setup=functools.partial(load, check=False),
        loaded=models,
        info=versions(),
        workers=workers,
        executor=executor,
        part=part,
        device=where,
        progress=progress,
        description="mutating",
    )
    return publish_mutants(run)


def publish_mutants(folder: RunFolder) -> Outcome:
    """Write the files of a run of mutations whose shards all exist.

    Args:
        folder: the run.

    Returns:
        The crystals and the failures.

    Raises:
        UserError: if shards are missing or damaged.
    """
    import pyarrow as pa

    from flowllm.runs.outputs import publish_crystals

    columns = {
        "parent": pa.string(),
        "swap": pa.string(),
        "probability": pa.float64(),
        "energy_per_atom": pa.float64(),
        "steps": pa.int64(),
    }
    return publish_crystals(folder, columns, cif=folder.run["cif"], table_only=("steps",))


def _load(
    prior: Path | None, potential: str | None, device: str, *, check: bool = True
) -> tuple[Prior | None, Calculator | None]:
    from flowllm.energy.calculators import load_calculator

    calculator = None if potential is None else load_calculator(potential, check=check)
    if prior is None:
        return None, calculator
    from llm_prior import Prior, warn_of_untrained

    model = Prior.from_pretrained(prior, device=device)
    if check:
        warn_of_untrained(model, infill=True)
    return model, calculator


def _choices(structure: Structure, swap_table: bool) -> dict[str, list[str]]:
    """Return the elements that may replace each element of a crystal, for those that have any."""
    from llm_prior import allowed_swaps
    from llm_prior.text import SYMBOLS

    present = [element.symbol for element in structure.composition.elements]
    swaps = allowed_swaps()
    found = {
        old: sorted(set(swaps[old] if swap_table else SYMBOLS) - set(present)) for old in present
    }
    return {old: new for old, new in found.items() if new}


def _warn_of_repeats(
    parents: Sequence[Crystal], n: int, config: MutationConfig, file: Path
) -> None:
    """Log that the crystals allow fewer different mutations than `n`, if they do."""
    count = 0
    fixed: set[str] = set()
    for parent in parents:
        choices = _choices(parent.structure, config.swap_table)
        count += sum(len(new) for new in choices.values())
        fixed |= {element.symbol for element in parent.structure.composition.elements} - set(
            choices
        )
        if count >= n:
            return
    none = f" (none for {', '.join(sorted(fixed))})" if fixed else ""
    remedy = " or leave the swap table out (--no-swap-table)" if config.swap_table else ""
    logger.warning(
        "the crystals of %s allow %d different swaps%s, so that some of the %d mutations are "
        "repeated; give more crystals%s",
        *(file, count, none, n, remedy),
    )


def _mutate_batch(
    parents: Sequence[Crystal],
    config: MutationConfig,
    models: tuple[Prior | None, Calculator | None],
    batch: Batch,
    progress: Progress,
) -> list[dict[str, Any]]:
    from flowllm.energy.minimization import relax_structure
    from flowllm.runs.records import CrystalRecord
    from llm_prior.infilling import replace_element

    prior, calculator = models
    indices = range(batch.start, batch.stop)
    generators = [np.random.default_rng(sample_seed(config.seed, index)) for index in indices]
    drawn = [parents[int(rng.integers(len(parents)))] for rng in generators]
    choices = [_choices(parent.structure, config.swap_table) for parent in drawn]
    olds = [
        str(rng.choice(sorted(options))) for rng, options in zip(generators, choices, strict=True)
    ]
    candidates = [options[old] for options, old in zip(choices, olds, strict=True)]
    structures = [parent.structure for parent in drawn]
    chances = _chances(prior, structures, olds, candidates, config.temperature)
    records = []
    for k, index in enumerate(indices):
        # By symbol: the order of the likelihoods may depend on the batch in the last digits.
        weights = [chances[k][symbol] for symbol in candidates[k]]
        new = str(generators[k].choice(candidates[k], p=np.array(weights) / sum(weights)))
        proposed = replace_element(structures[k], olds[k], new)
        final: Structure | None = proposed
        failure = None
        properties: dict[str, float | int | str] = {
            "parent": drawn[k].id,
            "swap": f"{olds[k]}->{new}",
            "probability": chances[k][new],
        }
        if calculator is not None:
            relaxed = relax_structure(proposed, calculator)
            final, failure = relaxed.structure, relaxed.failure
            properties["steps"] = relaxed.steps
            if relaxed.energy_per_atom is not None:
                properties["energy_per_atom"] = relaxed.energy_per_atom
        record = CrystalRecord(
            id=f"mutation-{index:05d}",
            structure=final,
            initial_structure=proposed,
            failure=failure,
            properties=properties,
        )
        records.append(record.described().to_json())
        progress(1)
    return records


def _chances(
    prior: Prior | None,
    structures: Sequence[Structure],
    olds: Sequence[str],
    candidates: Sequence[Sequence[str]],
    temperature: float,
) -> list[dict[str, float]]:
    """Return the probabilities of the candidates for each crystal; even ones without a prior."""
    if prior is None:
        return [dict.fromkeys(symbols, 1 / len(symbols)) for symbols in candidates]
    from llm_prior import element_probabilities

    return element_probabilities(
        prior, structures, olds, temperature=temperature, candidates=candidates
    )
