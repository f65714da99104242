"""Choices of the refiner: one table, each row the same training and targets with one change.

    OMP_NUM_THREADS=1 python benchmarks/refine_quality.py TRAIN.parquet VAL.parquet \\
        --init UNIFORM/model --out quality

The prior draws a sample with the composition of every crystal of TRAIN and of 1,000 crystals of VAL
(`flowllm pair`; --train-pairs and --val-pairs take existing pairs). Every trained row starts from
the weights in --init, a refiner of `rfm/uniform`; the two rows that compare charts start from
random weights instead. A row is trained for --steps steps on the samples of TRAIN. Then the samples
of VAL are refined.

StructureMatcher (stol 0.5, angle_tol 10, ltol 0.3) decides whether a refined sample matches. RMSD
is the mean over the matched targets of the root mean square displacement over
(volume / atoms)^(1/3). A target without a sample counts as not matched. Intervals are Wilson's at
95%. A row that is in OUT/table.csv is skipped.
"""

from __future__ import annotations

import csv
import shutil
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from pymatgen.core import Lattice, Structure
from weaker_alignments import ALIGNMENTS

from flowllm.crystals.cells import reduce_cell
from flowllm.crystals.io import Crystal, Crystals, read, write
from flowllm.metrics.csp import rms_distance
from flowllm.metrics.intervals import wilson
from flowllm.training.pairing.run import pair
from flowllm.training.pairing.table import ARRAYS, read_pairs, write_pairs
from flowllm.training.refiner import train_refiner
from rfm import PairedCrystal, Refiner, refine
from rfm.alignment import align
from rfm.integration import METHODS

RECIPE = "rfm/small"
EVALUATIONS = (5, 10, 25, 50, 100, 250)
SLOPES = (0.0, 2.0, 5.0, 10.0)
# The synthetic control: noise on Cartesian positions, Angstrom, and strain of the cell.
POSITION_NOISE, STRAIN = 0.8, 0.05
COLUMNS = ("group", "row", "match", "low", "high", "rmsd", "targets", "train_minutes", "seconds")


@dataclass(frozen=True)
class Training:
    """A trained row, by its differences from `rfm/small` on aligned pairs."""

    group: str
    name: str
    overrides: dict[str, Any] = field(default_factory=dict)
    alignment: str = "translation"
    from_init: bool = True


def noise(position: float, cell: float) -> dict[str, Any]:
    """Return the settings of a base with noise; (0, 0) is FlowLLM's."""
    return {"base.position_sigma": position, "base.cell_sigma": cell}


TRAININGS = (
    *(Training("alignment", name, noise(0.05, 0.0), name) for name in ALIGNMENTS),
    Training("base", "uniform", {"base.kind": "uniform"}),
    Training("base", "cell of the prior, uniform positions", noise(0.5, 0.0)),
    # The last row of the alignments has 0.05.
    *(Training("position noise", f"{s}", noise(s, 0.0)) for s in (0.0, 0.1, 0.15, 0.25)),
    *(
        Training(
            "chart, from random weights",
            name,
            {**noise(0.05, 0.0), "chart": name},
            from_init=False,
        )
        for name in ("logmetric", "params")
    ),
    *(Training("cell noise", f"{s}", noise(0.05, s)) for s in (0.1, 0.3)),
)


class Table:
    """The table in OUT/table.csv, written row by row."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: list[dict[str, Any]] = []
        if path.exists():
            with path.open(newline="") as file:
                self.rows = list(csv.DictReader(file))

    def has(self, group: str, name: str) -> bool:
        """Return True if the table has the row."""
        return any((row["group"], row["row"]) == (group, name) for row in self.rows)

    def add(self, group: str, name: str, distances: list[float | None], **more: Any) -> None:
        """Score and write a row; a distance of None is a target without a match."""
        met = [distance for distance in distances if distance is not None]
        low, high = wilson(len(met), len(distances))
        row = {
            "group": group,
            "row": name,
            "match": f"{len(met) / len(distances):.4f}",
            "low": f"{low:.4f}",
            "high": f"{high:.4f}",
            "rmsd": f"{np.mean(met) if met else float('nan'):.4f}",
            "targets": str(len(distances)),
            **{key: f"{value:.2f}" for key, value in more.items()},
        }
        self.rows.append(row)
        with self.path.open("a", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS)
            if file.tell() == 0:
                writer.writeheader()
            writer.writerow(row)
        share = f"{100 * float(row['match']):.1f}% [{100 * low:.1f}, {100 * high:.1f}]"
        click.echo(f"{group}: {name}: match {share}, RMSD {row['rmsd']}")


@dataclass(frozen=True)
class Targets:
    """The validation targets, and the prior's samples by id; a target may have none."""

    crystals: list[Crystal]
    samples: dict[str, Structure]

    def distances(self, made: dict[str, Structure | None]) -> list[float | None]:
        """Return the RMSD of each target to its structure, in order; None without a match."""
        found = [(made.get(crystal.id), crystal.structure) for crystal in self.crystals]
        return [None if sample is None else rms_distance(sample, true) for sample, true in found]

    def refined(self, refiner: Refiner, **settings: Any) -> dict[str, Structure | None]:
        """Return the refined structures by id; a uniform base needs only the atoms of a target."""
        inputs = self.samples
        if refiner.config.base.kind == "uniform":
            inputs = {crystal.id: crystal.structure for crystal in self.crystals}
        integration = refiner.config.integration.but(**settings)
        results = refine(refiner, list(inputs.values()), seed=0, integration=integration)
        return {name: r.structure for name, r in zip(inputs, results, strict=True)}


def realigned(
    pairs: list[PairedCrystal], targets: dict[str, Crystal], alignment: str
) -> list[PairedCrystal]:
    """Return the pairs with their targets described by another alignment."""
    describe = ALIGNMENTS[alignment]
    new = []
    for old in pairs:
        coords, lattice = describe(old.base, targets[old.id].structure)
        new.append(replace(old, target_frac_coords=coords, target_lattice=lattice))
    return new


def disturbed(structure: Structure, rng: np.random.Generator) -> Structure:
    """Return a structure with normal noise on positions and a symmetric normal strain."""
    normal = rng.normal(0, STRAIN, (3, 3))
    strain = np.eye(3) + (normal + normal.T) / 2
    lattice = Lattice(structure.lattice.matrix @ strain)
    moves = rng.normal(0, POSITION_NOISE, (len(structure), 3)) @ np.linalg.inv(lattice.matrix)
    return Structure(lattice, structure.species, structure.frac_coords + moves)


@dataclass(frozen=True)
class Bench:
    """Settings and table that all rows share."""

    out: Path
    init: Path
    steps: int
    table: Table

    def train(self, row: Training, pairs: Path, data: Path) -> tuple[Path, float]:
        """Train a row and return its model folder and the minutes of training."""
        name = f"{row.group} {row.name}".replace(" ", "-").replace(",", "")
        uniform = row.overrides.get("base.kind") == "uniform"
        start = time.monotonic()
        # More epochs than the steps need: the number of steps ends the training.
        settings = {"training.epochs": 1000, "training.max_steps": self.steps, **row.overrides}
        folder = self.out / "runs" / name
        model = train_refiner(
            RECIPE,
            pairs=None if uniform else pairs,
            data=[data] if uniform else (),
            out=folder,
            init=self.init if row.from_init else None,
            overrides=[f"{key}={value}" for key, value in settings.items()],
            resume=(folder / "run.json").exists(),
            device="cpu",
        )
        for checkpoint in folder.glob("checkpoint-*"):
            shutil.rmtree(checkpoint)
        return model, (time.monotonic() - start) / 60

    def score(self, group: str, name: str, model: Path, targets: Targets, **more: Any) -> None:
        """Refine the targets with the model of a row and write the row."""
        start = time.monotonic()
        made = targets.refined(Refiner.from_pretrained(model))
        seconds = time.monotonic() - start
        self.table.add(group, name, targets.distances(made), seconds=seconds, **more)


def integrations(bench: Bench, model: Path, targets: Targets) -> None:
    """Write the rows of methods, numbers of steps and slopes, with one model."""
    refiner = Refiner.from_pretrained(model)
    settings: list[tuple[str, dict[str, Any]]] = [
        *((f"position slope {slope}", {"position_slope": slope}) for slope in SLOPES),
        ("cell slope 2.0", {"cell_slope": 2.0}),  # cells diverge with a larger one
    ]
    for evaluations in EVALUATIONS:
        for method, (_, cost, _) in METHODS.items():
            steps = {"method": method, "steps": max(1, evaluations // cost)}
            settings.append((f"{method}, {steps['steps']} steps", steps))
    for name, chosen in settings:
        if not bench.table.has("integration", name):
            start = time.monotonic()
            made = targets.refined(refiner, **chosen)
            seconds = time.monotonic() - start
            bench.table.add("integration", name, targets.distances(made), seconds=seconds)


def control(bench: Bench, crystals: list[Crystal], targets: list[Crystal], data: Path) -> None:
    """Write the control rows: disturbed VAL, refined by a refiner trained on disturbed TRAIN."""
    if bench.table.has("control", "after"):
        return
    rng = np.random.default_rng(0)
    noisy = {c.id: reduce_cell(disturbed(c.structure, rng)) for c in targets}
    held = Targets(targets, noisy)
    if not bench.table.has("control", "before"):
        bench.table.add("control", "before", held.distances(noisy))
    pairs = bench.out / "control.parquet"
    if not pairs.exists():
        made = []
        for crystal in crystals[::2]:
            aligned = align(reduce_cell(disturbed(crystal.structure, rng)), crystal.structure)
            arrays = {name: getattr(aligned, name) for name in ("atomic_numbers", *ARRAYS)}
            made.append(PairedCrystal(id=crystal.id, **arrays))
        write_pairs(made, pairs)
    row = Training("control", "after", noise(0.02, 0.0))
    model, minutes = bench.train(row, pairs, data)
    bench.score("control", "after", model, held, train_minutes=minutes)


@click.command()
@click.argument("train", type=click.Path(path_type=Path))
@click.argument("val", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), required=True)
@click.option("--init", type=click.Path(path_type=Path), required=True, help="Initial refiner.")
@click.option("--prior", help="Folder; default: the bundled one.")
@click.option("--train-pairs", type=click.Path(path_type=Path), help="Instead of sampling.")
@click.option("--val-pairs", type=click.Path(path_type=Path), help="Instead of sampling.")
@click.option("-n", default=1000, show_default=True, help="Validation targets, at random.")
@click.option("--steps", default=1200, show_default=True, help="Training steps of each row.")
@click.option("--only", multiple=True, help="GROUP or GROUP/ROW; default: all.")
@click.option("--model", type=click.Path(path_type=Path), help="Refiner of the integration rows.")
def main(
    train: Path,
    val: Path,
    out: Path,
    init: Path,
    prior: str | None,
    train_pairs: Path | None,
    val_pairs: Path | None,
    n: int,
    steps: int,
    only: tuple[str, ...],
    model: Path | None,
) -> None:
    """Print and write the table."""
    torch.set_num_threads(1)
    out.mkdir(parents=True, exist_ok=True)
    bench = Bench(out, init, steps, Table(out / "table.csv"))
    crystals = {crystal.id: crystal for crystal in read(train)}
    everything = read(val)
    drawn = np.random.default_rng(0).permutation(len(everything))[:n]
    chosen = [everything[k] for k in sorted(drawn)]
    if val_pairs is None:
        drawn_file = out / "targets.jsonl"
        if not drawn_file.exists():
            write(Crystals(chosen), drawn_file)
        val_pairs = pair(drawn_file, out=out / "val-pairs", prior=prior).file
    if train_pairs is None:
        train_pairs = pair(train, out=out / "train-pairs", prior=prior).file
    ids = {crystal.id for crystal in chosen}
    samples = {found.id: found.base for found in read_pairs(val_pairs) if found.id in ids}
    targets = Targets(chosen, samples)

    def wanted(group: str, row: str = "") -> bool:
        return not only or group in only or f"{group}/{row}" in only

    if wanted("raw") and not bench.table.has("raw", "prior"):
        bench.table.add("raw", "prior", targets.distances(dict(targets.samples)))
    aligned: dict[str, Path] = {"translation": train_pairs}
    for row in TRAININGS:
        if not wanted(row.group, row.name) or bench.table.has(row.group, row.name):
            continue
        if row.alignment not in aligned:
            aligned[row.alignment] = out / f"pairs-{row.alignment}.parquet"
            if not aligned[row.alignment].exists():
                described = realigned(read_pairs(train_pairs), crystals, row.alignment)
                write_pairs(described, aligned[row.alignment])
        trained, minutes = bench.train(row, aligned[row.alignment], train)
        bench.score(row.group, row.name, trained, targets, train_minutes=minutes)
    if model is not None and wanted("integration"):
        integrations(bench, model, targets)
    if wanted("control"):
        control(bench, list(crystals.values()), chosen, train)


if __name__ == "__main__":
    main()
