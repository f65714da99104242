"""Relaxation in batches beside one by one: processor time, energies and the cost of each part.

    python benchmarks/batched_relaxation.py ../shared/data/mp20/val.parquet -n 100

The crystals are drawn at random and displaced by 0.05 Angstrom. Both variants relax all of them, in
turns of eight crystals, so that the load of the machine hits both. `one by one` is ASE's own loop
with the calculator of the potential's package (`chgnet`; otherwise ours). Processor time of this
process, one thread.
"""

from __future__ import annotations

import contextlib
import io
import json
import random
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import click
import numpy as np
import torch
from ase import units
from ase.calculators.calculator import Calculator
from ase.filters import FrechetCellFilter
from ase.optimize import FIRE
from pymatgen.core import Structure

from flowllm.crystals.crystal import to_atoms
from flowllm.crystals.io import read
from flowllm.energy.batched import relax_structures
from flowllm.energy.calculators import POTENTIAL, load_calculator
from flowllm.energy.minimization import RelaxationConfig, _symmetric_atoms

_TURN = 8  # crystals
Result = TypeVar("Result")


@click.command()
@click.argument("data", type=click.Path(path_type=Path))
@click.option("--potential", default=POTENTIAL, show_default=True)
@click.option("-n", default=100, show_default=True, help="Crystals, drawn at random.")
@click.option("--seed", default=0, show_default=True)
@click.option("--symmetry", type=click.Choice(["free", "keep"]), default="free", show_default=True)
def main(data: Path, potential: str, n: int, seed: int, symmetry: str) -> None:
    """Print the figures for DATA."""
    torch.set_num_threads(1)
    structures = [c.structure for c in random.Random(seed).sample(read(data, skip_invalid=True), n)]
    for i, structure in enumerate(structures):
        structure.perturb(0.05, seed=seed + i)
    calculator = load_calculator(potential)
    plain = _plain_calculator(potential, calculator)
    # Both may take as long as they want: a time limit would depend on the load of the machine.
    config = RelaxationConfig(symmetry=symmetry, time_limit=1e6)

    def one_by_one(turn: Sequence[Structure]) -> list:
        return [_relax_with_ase(structure, plain, config) for structure in turn]

    def batched(turn: Sequence[Structure]) -> list:
        return relax_structures(turn, calculator, config=config)

    times = {"one by one": 0.0, "batched": 0.0}
    found: dict[str, list] = {name: [] for name in times}
    one_by_one(structures[:1])
    for start in range(0, n, _TURN):
        turn = structures[start : start + _TURN]
        for name, relax in (("one by one", one_by_one), ("batched", batched)):
            seconds, results = _timed(lambda relax=relax, turn=turn: relax(turn))
            times[name] += seconds
            found[name] += results
        done = ", ".join(f"{name} {seconds:.0f} s" for name, seconds in times.items())
        click.echo(f"{len(found['batched'])} of {n}: {done}", err=True)
    pairs = list(zip(found["one by one"], found["batched"], strict=True))
    gaps = [
        1000 * abs(energy - b.energy_per_atom)
        for (energy, _), b in pairs
        if energy is not None and b.energy_per_atom is not None
    ]
    result = {
        "crystals": n,
        "atoms": sum(map(len, structures)),
        "failed": {
            "one by one": sum(energy is None for energy, _ in found["one by one"]),
            "batched": sum(r.energy_per_atom is None for r in found["batched"]),
        },
        "evaluations": {
            "one by one": sum(steps + 1 for _, steps in found["one by one"]),
            "batched": sum(r.steps + 1 for r in found["batched"]),
        },
        "processor seconds": {name: round(t, 1) for name, t in times.items()},
        "relaxations a minute": {name: round(60 * n / t, 1) for name, t in times.items()},
        "ratio": round(times["one by one"] / times["batched"], 2),
        "energy gap, meV/atom": {
            "largest": round(max(gaps), 4),
            "mean": round(float(np.mean(gaps)), 4),
        },
        "ms an evaluation": _parts(plain, calculator, structures[: min(n, 32)]),
    }
    print(json.dumps(result, indent=2))


def _relax_with_ase(
    structure: Structure, calculator: Calculator, config: RelaxationConfig
) -> tuple[float | None, int]:
    """Return the energy per atom, None if it did not converge, and the steps."""
    calculator.reset()
    atoms = to_atoms(structure) if config.symmetry == "free" else _symmetric_atoms(structure)
    atoms.calc = calculator
    optimizer = FIRE(FrechetCellFilter(atoms), logfile=None)
    for _ in optimizer.irun(fmax=0.0, steps=config.step_limit):
        force = np.linalg.norm(atoms.get_forces(), axis=1).max()
        stress = np.abs(atoms.get_stress()).max() / units.GPa
        if force <= config.force_limit and stress <= config.stress_limit:
            return float(atoms.get_potential_energy()) / len(atoms), optimizer.nsteps
    return None, optimizer.nsteps


def _plain_calculator(potential: str, ours: Calculator) -> Calculator:
    """Return the calculator that a user of the package would take."""
    if potential != "chgnet":
        return ours
    from chgnet.model.dynamics import CHGNetCalculator

    warnings.filterwarnings("ignore", "Converting a tensor with requires_grad", UserWarning)
    with contextlib.redirect_stdout(io.StringIO()):
        return CHGNetCalculator(use_device="cpu", on_isolated_atoms="error")


def _parts(
    plain: Calculator, calculator: Calculator, structures: Sequence[Structure]
) -> dict[str, float]:
    """Return the processor time of one evaluation by parts and by the size of the batch."""
    batch = [to_atoms(structure) for structure in structures]

    def own() -> None:
        for atoms in batch:
            plain.reset()
            atoms.calc = plain
            atoms.get_forces()

    parts = {"one by one": own}
    for size in (1, 2, 4, 8, 16, 32):
        parts[f"batch of {size}"] = lambda size=size: [
            calculator.evaluate(batch[i : i + size]) for i in range(0, len(batch), size)
        ]
    if hasattr(plain, "model") and hasattr(plain.model, "graph_converter"):
        from flowllm.energy.chgnet_potential import crystal_graph

        parts["graphs of chgnet"] = lambda: [plain.model.graph_converter(s) for s in structures]
        parts["graphs of arrays"] = lambda: [crystal_graph(a, 6.0, 3.0) for a in batch]
    return {name: round(1000 * _timed(part)[0] / len(batch), 2) for name, part in parts.items()}


def _timed(work: Callable[[], Result]) -> tuple[float, Result]:
    start = time.process_time()
    result = work()
    return time.process_time() - start, result


if __name__ == "__main__":
    main()
