"""Write a table of crystals with their energies above the hull by CHGNet, without relaxing them.

    python tools/hull_energies.py mp_extra/train.parquet --hull hull_entries.parquet \\
        --references mp_elemental_ref_energies_per_atom.json --check mp20/train.parquet \\
        --out mp_extra_energies.parquet --near-hull mp_extra_near_hull.parquet

A prior that also learns from crystals far above the hull can be asked for those near it. The
column `e_above_hull` is in eV/atom, 0 for crystals below the hull and empty for those without a
number. The other columns are copied. --check prints how much such energies differ from the column
of another table, over 1,000 of its crystals.
"""

from __future__ import annotations

import time
import warnings
from pathlib import Path

import click
import numpy as np
import pandas as pd
from pymatgen.core import Structure
from pymatgen.io.ase import AseAtomsAdaptor

from flowllm.energy.calculators import energy_scheme, load_calculator, potential_identity
from flowllm.energy.chgnet_potential import CHGNetPotential
from flowllm.energy.formation import read_references
from flowllm.energy.hull import Hull, hull_distances, read_hull

COLUMN = "e_above_hull"
BATCH_ATOMS = 96
NEAR = 0.08  # eV/atom: no crystal of MP-20 is further above the hull


def crystal_of(cif: str) -> Structure | None:
    """Return the crystal of a CIF; None if it cannot be read."""
    try:
        return Structure.from_str(cif, fmt="cif")
    except ValueError:
        return None


def energies_per_atom(
    potential: CHGNetPotential, crystals: list[Structure | None]
) -> list[float | None]:
    """Return the energy of each crystal in eV/atom; None where it has none."""
    energies: list[float | None] = [None] * len(crystals)
    sizes = {k: len(crystal) for k, crystal in enumerate(crystals) if crystal is not None}
    order = sorted(sizes, key=lambda k: sizes[k])
    start, began = 0, time.monotonic()
    while start < len(order):
        batch = order[start : start + max(BATCH_ATOMS // sizes[order[start]], 1)]
        start += len(batch)
        atoms = [AseAtomsAdaptor.get_atoms(crystals[k], msonable=False) for k in batch]
        try:
            found = potential.energies_per_atom(atoms)
        except ValueError:  # an isolated atom; the others have an energy
            found = []
            for one in atoms:
                try:
                    found += potential.energies_per_atom([one])
                except ValueError:
                    found.append(None)
        for k, energy in zip(batch, found, strict=True):
            energies[k] = energy
        if start % 2000 < len(batch):
            click.echo(f"{start} of {len(order)}, {time.monotonic() - began:.0f} s", err=True)
    return energies


@click.command()
@click.argument("table", type=click.Path(path_type=Path))
@click.option("--hull", "hull_file", required=True, type=click.Path(path_type=Path))
@click.option("--references", required=True, type=click.Path(path_type=Path))
@click.option("--check", type=click.Path(path_type=Path))
@click.option("--out", required=True, type=click.Path(path_type=Path))
@click.option(
    "--near-hull",
    type=click.Path(path_type=Path),
    help=f"Also write the crystals at most {NEAR} eV/atom above the hull.",
)
def main(
    table: Path,
    hull_file: Path,
    references: Path,
    check: Path | None,
    out: Path,
    near_hull: Path | None,
) -> None:
    """Write TABLE with the column `e_above_hull`."""
    if out.exists():
        raise click.UsageError(f"{out} exists; give another name")
    hull, elements = read_hull(hull_file), read_references(references)
    calculator = load_calculator("chgnet", check=False)
    assert isinstance(calculator, CHGNetPotential)

    def distances(rows: pd.DataFrame, hull: Hull) -> np.ndarray:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # coordinates are rounded to symmetric ones
            crystals = [crystal_of(cif) for cif in rows["cif"]]
        found = hull_distances(
            crystals,
            energies_per_atom(calculator, crystals),
            hull,
            scheme=energy_scheme("chgnet", calculator),
            potential=potential_identity("chgnet"),
            references=elements,
        )
        return np.array([np.nan if d.e_above_hull is None else d.e_above_hull for d in found])

    if check is not None:
        known = pd.read_parquet(check)
        known = known.sample(min(1000, len(known)), random_state=0)
        apart = distances(known, hull) - known[COLUMN].to_numpy()
        click.echo(
            f"of {np.isfinite(apart).sum()} crystals of {check.name}: {COLUMN} differs by "
            f"{np.nanmean(apart):+.3f} eV/atom, in absolute value by {np.nanmean(abs(apart)):.3f} "
            f"in the mean and {np.nanmedian(abs(apart)):.3f} in the median"
        )
    rows = pd.read_parquet(table)
    above = distances(rows, hull)
    rows = rows.assign(**{COLUMN: above.clip(0)})
    out.parent.mkdir(parents=True, exist_ok=True)
    if near_hull is not None:
        rows[above <= NEAR].to_parquet(near_hull)
    unfinished = out.with_name(out.name + ".part")
    rows.to_parquet(unfinished)
    unfinished.replace(out)
    shares = [f"below {limit}: {(above < limit).mean():.1%}" for limit in (0, 0.05, 0.1, 0.2, 0.5)]
    click.echo(
        f"{len(rows)} crystals, {np.isnan(above).sum()} without a number; {', '.join(shares)}"
    )


if __name__ == "__main__":
    main()
