"""Errors of potentials on known crystals, and the change of these crystals in relaxation.

    python benchmarks/potentials.py unrelaxed ../shared/data/mp20/val.parquet \\
        --train ../shared/data/mp20/train.parquet \\
        --references ../shared/data/mp_reference/mp_elemental_ref_energies_per_atom.json \\
        --potential chgnet --potential sevennet
    python benchmarks/potentials.py relaxed ../shared/data/mp20/val.parquet \\
        --hull ../shared/data/mp20/hull_entries.parquet \\
        --references ../shared/data/mp_reference/mp_elemental_ref_energies_per_atom.json \\
        -n 200 --out runs/chgnet-val

The crystals need formation_energy_per_atom, for `relaxed` also e_above_hull. The errors are mean
absolute errors.

`unrelaxed` takes the crystals as they are, one thread. Its column "references" has formation
energies by Materials Project's elemental references, where the scheme of the potential allows it.
Its column "fitted" has them by elemental references fitted to the formation energies of crystals of
TRAIN by least squares, for any potential: what is left of a difference between two functionals
counts as error there. An existing run folder of `relaxed` is resumed.
"""

from __future__ import annotations

import json
import logging
import random
import sys
import time
from pathlib import Path

import click
import numpy as np
import torch
from pymatgen.core import Structure

from flowllm.crystals.crystal import Crystal, to_atoms
from flowllm.crystals.io import read
from flowllm.energy.calculators import (
    POTENTIAL,
    energy_scheme,
    load_calculator,
    potential_identity,
)
from flowllm.energy.formation import (
    NoFormationEnergy,
    References,
    check_fit,
    formation_energy_per_atom,
    mp2020_correction,
    read_references,
)
from flowllm.energy.hull import hull_distances, read_hull
from flowllm.energy.relaxation import read_relaxed, relax_crystals
from flowllm.energy.single_points import single_points
from flowllm.errors import UserError
from flowllm.metrics.relaxation import relaxation_change, relaxation_metrics

_BATCH = 4  # crystals


@click.group()
def main() -> None:
    """Measure potentials."""


@main.command()
@click.argument("data", type=click.Path(path_type=Path))
@click.option("--train", type=click.Path(path_type=Path), required=True)
@click.option("--references", "references_file", type=click.Path(path_type=Path), required=True)
@click.option("--potential", "potentials", multiple=True, default=[POTENTIAL], show_default=True)
@click.option("-n", default=200, show_default=True, help="Crystals of DATA, drawn at random.")
@click.option("--n-train", default=500, show_default=True, help="Crystals of TRAIN, at random.")
@click.option("--seed", default=0, show_default=True)
def unrelaxed(
    data: Path,
    train: Path,
    references_file: Path,
    potentials: tuple[str, ...],
    n: int,
    n_train: int,
    seed: int,
) -> None:
    """Print the errors for DATA as they are, a line for each potential."""
    torch.set_num_threads(1)
    references = read_references(references_file)
    crystals = random.Random(seed).sample(read(data, skip_invalid=True), n)
    fitted_on = random.Random(seed).sample(read(train, skip_invalid=True), n_train)
    for potential in potentials:
        calculator = load_calculator(potential)
        scheme = energy_scheme(potential, calculator)
        start = time.process_time()
        energies = _energies(crystals, calculator)
        seconds = (time.process_time() - start) / n
        shifts = _fit(fitted_on, _energies(fitted_on, calculator), scheme)
        own = References(energies=shifts, potential={}, source="fit")
        result = {
            "potential": potential,
            "scheme": scheme,
            "no energy": int(np.isnan(energies).sum()),
            "processor seconds a crystal": round(seconds, 4),
            "fitted": _error(crystals, energies, scheme, own),
        }
        try:
            check_fit(
                references, scheme=scheme, potential=potential_identity(potential), name=potential
            )
            result["references"] = _error(crystals, energies, scheme, references)
        except UserError:
            result["references"] = None
        print(json.dumps(result), flush=True)


def _energies(crystals: list[Crystal], calculator: object) -> np.ndarray:
    """Return (N,) energies in eV/atom; nan without one."""
    batch = [to_atoms(c.structure) for c in crystals]
    points = [
        point
        for i in range(0, len(batch), _BATCH)
        for point in single_points(calculator, batch[i : i + _BATCH])
    ]
    return np.array(
        [
            np.nan if isinstance(point, str) else point.energy / len(atoms)
            for point, atoms in zip(points, batch, strict=True)
        ]
    )


def _fit(crystals: list[Crystal], energies: np.ndarray, scheme: str) -> dict[str, float]:
    """Return eV/atom by symbol, so that E/N - sum_i x_i E_i is the formation energy."""
    rows, differences = [], []
    for crystal, energy in zip(crystals, energies, strict=True):
        known = crystal.properties.get("formation_energy_per_atom")
        corrected = _corrected(crystal.structure, energy, scheme)
        if known is not None and np.isfinite(corrected):
            rows.append(crystal.structure.composition.fractional_composition.get_el_amt_dict())
            differences.append(corrected - float(known))
    symbols = sorted(set().union(*rows))
    matrix = np.array([[row.get(symbol, 0.0) for symbol in symbols] for row in rows])
    return dict(zip(symbols, np.linalg.lstsq(matrix, np.array(differences))[0], strict=True))


def _corrected(structure: Structure, energy: float, scheme: str) -> float:
    if scheme != "mp-raw":
        return energy
    try:
        return energy + mp2020_correction(structure)
    except NoFormationEnergy:
        return np.nan


def _error(
    crystals: list[Crystal], energies: np.ndarray, scheme: str, references: References
) -> dict[str, float]:
    errors = []
    for crystal, energy in zip(crystals, energies, strict=True):
        if references.potential is not None:
            energy = _corrected(crystal.structure, energy, scheme)
        try:
            found = formation_energy_per_atom(
                crystal.structure, energy, scheme=scheme, references=references
            )
        except NoFormationEnergy:  # an element that no crystal of the fit has
            continue
        if np.isfinite(found):
            errors.append(abs(found - float(crystal.properties["formation_energy_per_atom"])))
    return {"crystals": len(errors), "MAE, meV/atom": round(1000 * float(np.mean(errors)), 1)}


@main.command()
@click.argument("data", type=click.Path(path_type=Path))
@click.option("--hull", "hull_file", type=click.Path(path_type=Path), required=True)
@click.option("--references", "references_file", type=click.Path(path_type=Path), required=True)
@click.option("--potential", default=POTENTIAL, show_default=True)
@click.option("-n", default=200, show_default=True, help="Crystals, drawn at random.")
@click.option("--seed", default=0, show_default=True)
@click.option("--workers", default=1, show_default=True)
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Run folder.")
def relaxed(
    data: Path,
    hull_file: Path,
    references_file: Path,
    potential: str,
    n: int,
    seed: int,
    workers: int,
    out: Path,
) -> None:
    """Print the figures for DATA."""
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr)
    logging.getLogger("flowllm").setLevel(logging.INFO)
    crystals = random.Random(seed).sample(read(data, skip_invalid=True), n)
    start = time.perf_counter()
    outcome = relax_crystals(crystals, potential=potential, out=out, workers=workers)
    minutes = (time.perf_counter() - start) / 60
    run = read_relaxed(outcome.folder)
    distances = hull_distances(
        run.structures,
        run.energies_per_atom,
        read_hull(hull_file),
        scheme=run.scheme,
        potential=run.potential,
        references=read_references(references_file),
    )
    known = [c.properties for c in crystals]
    errors = {
        name: np.array(
            [
                getattr(found, name) - float(values[name])
                for found, values in zip(distances, known, strict=True)
                if getattr(found, name) is not None
            ]
        )
        for name in ("formation_energy_per_atom", "e_above_hull")
    }
    figures = relaxation_metrics(
        [
            relaxation_change(
                run.initial[i],
                run.structures[i],
                initial_energy_per_atom=run.initial_energies_per_atom[i],
                energy_per_atom=run.energies_per_atom[i],
                steps=run.steps[i],
            )
            for i in range(n)
        ]
    )
    result = {
        "crystals": n,
        "failed": dict(outcome.failures),
        **{
            f"{name}, MAE meV/atom": round(1000 * float(np.abs(error).mean()), 1)
            for name, error in errors.items()
        },
        **{name: vars(estimate) for name, estimate in figures.items()},
        "crystals/minute (0 if resumed)": round(n / minutes, 1) if minutes > 0.5 else 0,
        "workers": workers,
    }
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
