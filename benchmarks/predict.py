"""How often predicted structures are right, beside templates alone.

    python benchmarks/predict.py ../shared/data/mp20/val.parquet -n 1000
    python benchmarks/predict.py ../shared/data/mp20/val.parquet -n 200 --potential chgnet
    python benchmarks/predict.py --textbook --potential chgnet

The targets and the match are those of `benchmarks/match_rate.py` (pymatgen's StructureMatcher, stol
0.5, angle_tol 10, ltol 0.3). The composition is given with the number of atoms of the target's
cell, unless --open. RMSD is the root mean square displacement over the cube root of the volume per
atom, averaged over the matched targets; "any of 5" counts a target that one of the first five
predictions matches. A target without a prediction counts as not matched. Intervals are Wilson's at
95%. "Templates alone" are the first proposals of `propose_templates`, the retrieval baseline.
Processor seconds are those of the median target; the models are loaded before.

--textbook asks for the structure of twenty compounds whose space group and lattice parameters every
textbook has. A prediction is right if it has the group, and a conventional cell with lengths within
5% (8% without a potential). --refine-templates compares the first template before and after
refining.
"""

from __future__ import annotations

import json
import random
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from pymatgen.core import Structure

from flowllm import FlowLLM
from flowllm.crystals.formulas import formula_units
from flowllm.crystals.io import Crystal, read
from flowllm.metrics.csp import rms_distance
from flowllm.metrics.intervals import wilson
from flowllm.prediction.config import PredictionConfig
from flowllm.prediction.prediction import Prediction
from flowllm.templates.proposals import MAX_ATOMS, propose_templates

SHOWN = (5, 10)
SHOWN_RELAXED = (5,)  # each prediction is also relaxed without its symmetry
# Formula, International number, and lengths (Angstrom) of the conventional cell
TEXTBOOK: tuple[tuple[str, int, tuple[float, ...]], ...] = (
    ("NaCl", 225, (5.64, 5.64, 5.64)),
    ("MgO", 225, (4.21, 4.21, 4.21)),
    ("CsCl", 221, (4.12, 4.12, 4.12)),
    ("ZnS", 216, (5.41, 5.41, 5.41)),
    ("GaAs", 216, (5.65, 5.65, 5.65)),
    ("ZnO", 186, (3.25, 3.25, 5.21)),
    ("GaN", 186, (3.19, 3.19, 5.19)),
    ("CaF2", 225, (5.46, 5.46, 5.46)),
    ("Li2O", 225, (4.61, 4.61, 4.61)),
    ("TiO2", 136, (4.59, 4.59, 2.96)),
    ("SrTiO3", 221, (3.905, 3.905, 3.905)),
    ("KMgF3", 221, (3.99, 3.99, 3.99)),
    ("MgAl2O4", 227, (8.08, 8.08, 8.08)),
    ("Al2O3", 167, (4.76, 4.76, 12.99)),
    ("FeS2", 205, (5.42, 5.42, 5.42)),
    ("CuInS2", 122, (5.52, 5.52, 11.13)),
    ("MgCu2", 227, (7.04, 7.04, 7.04)),
    ("Cu3Au", 221, (3.75, 3.75, 3.75)),
    ("MgB2", 191, (3.09, 3.09, 3.52)),
    ("CaCO3", 167, (4.99, 4.99, 17.06)),
)


@dataclass(kw_only=True)
class Trial:
    """A way to predict, and the distances (None: no match) of its predictions for each target."""

    name: str
    shown: tuple[int, ...] = SHOWN
    distances: list[list[float | None]] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    rows: list[dict[str, Any]] = field(default_factory=list)  # of each target

    def figures(self) -> dict[str, Any]:
        """Return the figures."""
        total = len(self.distances)
        first = [row[0] for row in self.distances if row and row[0] is not None]
        found: dict[str, Any] = {"name": self.name, "targets": total}
        found["without a prediction"] = sum(not row for row in self.distances)
        found["first"] = share(len(first), total)
        found["first RMSD"] = mean(first)
        for number in self.shown:
            rows = [[d for d in row[:number] if d is not None] for row in self.distances]
            nearest = [min(row) for row in rows if row]
            found[f"any of {number}"] = share(len(nearest), total)
            found[f"any of {number} RMSD"] = mean(nearest)
        found["CPU s, median"] = round(float(np.median(self.seconds)), 2)
        return found


def share(hits: int, total: int) -> str:
    """Return a share with its 95% interval (Wilson 1927), in percent."""
    low, high = wilson(hits, total)
    return f"{100 * hits / total:.1f}% [{100 * low:.1f}, {100 * high:.1f}]"


def mean(values: list[float]) -> float | None:
    """Return a mean, rounded; None without values."""
    return round(float(np.mean(values)), 4) if values else None


def measure(
    model: FlowLLM,
    targets: list[Crystal],
    config: PredictionConfig,
    is_open: bool,
    out: Path | None,
) -> list[Trial]:
    """Predict each target, and propose templates for it; write every tenth result to `out`."""
    shown = SHOWN if config.potential is None else SHOWN_RELAXED
    retrieval, ours = Trial(name="templates alone"), Trial(name="predict", shown=shown)
    for number, target in enumerate(targets, start=1):
        composition = target.structure.composition
        units = formula_units(composition)
        z = () if is_open else (units,)
        start = time.process_time()
        proposals = propose_templates(
            composition.formula,
            n=max(SHOWN),
            formula_units=z,
            exclude_formula=config.exclude_formula,
        )
        structures = [proposal.structure for proposal in proposals]
        add(retrieval, structures, target, start)
        start = time.process_time()
        found = model.predict(composition.reduced_formula, max(shown), config, z=z)
        add(ours, [prediction.structure for prediction in found], target, start)
        ours.rows.append(
            {
                "id": target.id,
                "formula": composition.formula,
                "log_probability": [one.log_probability for one in found],
                "energy_per_atom": [one.energy_per_atom for one in found],
                "rmsd": ours.distances[-1],
            }
        )
        if number % 10 == 0:
            rates = [f"{t.name} {t.figures()['first']}" for t in (retrieval, ours)]
            click.echo(f"{number} of {len(targets)}: {', '.join(rates)}", err=True)
            write([retrieval, ours], out)
    return [retrieval, ours]


def write(trials: list[Trial], out: Path | None) -> None:
    """Write figures, and what was predicted for each target, as JSON."""
    if out is not None:
        found = [{**trial.figures(), "rows": trial.rows} for trial in trials]
        out.write_text(json.dumps(found) + "\n", encoding="utf-8")


def add(trial: Trial, structures: list[Structure], target: Crystal, start: float) -> None:
    """Add the result of a target."""
    trial.seconds.append(time.process_time() - start)
    trial.distances.append([rms_distance(one, target.structure) for one in structures])


def refined_templates(model: FlowLLM, targets: list[Crystal]) -> list[Trial]:
    """Refine the first template of each target."""
    plain, refined = Trial(name="first template"), Trial(name="first template, refined")
    for target in targets:
        composition = target.structure.composition
        units = formula_units(composition)
        start = time.process_time()
        proposals = propose_templates(composition.formula, n=1, formula_units=[units])
        structures = [proposal.structure for proposal in proposals]
        add(plain, structures, target, start)
        results = model.refine(structures, seed=0) if structures else []
        add(refined, [r.structure for r in results if r.structure is not None], target, start)
    return [plain, refined]


def textbook(model: FlowLLM, config: PredictionConfig) -> dict[str, Any]:
    """Ask for the compounds of every textbook, the number of formula units open."""
    tolerance = 0.08 if config.potential is None else 0.05
    first, any_of_ten, seconds = [], [], []
    for formula, group, lengths in TEXTBOOK:
        start = time.process_time()
        found = model.predict(formula, 10, config)
        seconds.append(time.process_time() - start)
        right = [is_right(one, group, lengths, tolerance) for one in found]
        rank = right.index(True) + 1 if any(right) else None
        first.append(rank == 1)
        any_of_ten.append(rank is not None)
        best = found[0]
        click.echo(f"{formula}: rank {rank}; first {best.symbol} {best.conventional_lengths}")
    return {
        "compounds": len(TEXTBOOK),
        "first right": sum(first),
        "among the first 10": sum(any_of_ten),
        "CPU s, median": round(float(np.median(seconds)), 2),
    }


def is_right(
    prediction: Prediction, group: int, lengths: tuple[float, ...], tolerance: float
) -> bool:
    """Return whether a prediction has the group and the conventional cell."""
    ratios = np.array(prediction.conventional_lengths) / lengths
    return prediction.spacegroup == group and bool(np.abs(ratios - 1).max() < tolerance)


@click.command()
@click.argument("data", type=click.Path(path_type=Path), required=False)
@click.option("-n", default=100, show_default=True, help="Targets, drawn at random.")
@click.option("--most", default=MAX_ATOMS, show_default=True, help="Atoms of the largest target.")
@click.option("--open", "is_open", is_flag=True, help="Leave the number of formula units open.")
@click.option("--potential", help="Relax and rank with it.")
@click.option("--exclude-formula", is_flag=True, help="No templates of the target's formula.")
@click.option("--num-templates", default=10, show_default=True)
@click.option("--num-samples", default=10, show_default=True)
@click.option("--textbook", "is_textbook", is_flag=True, help="Twenty compounds of textbooks.")
@click.option("--refine-templates", is_flag=True, help="Templates before and after refining.")
@click.option("--seed", default=0, show_default=True)
@click.option("--out", type=click.Path(path_type=Path), help="Write all as JSON.")
def main(
    data: Path | None,
    n: int,
    most: int,
    is_open: bool,
    potential: str | None,
    exclude_formula: bool,
    num_templates: int,
    num_samples: int,
    is_textbook: bool,
    refine_templates: bool,
    seed: int,
    out: Path | None,
) -> None:
    """Print the figures for DATA."""
    torch.set_num_threads(1)
    config = PredictionConfig(
        potential=potential,
        exclude_formula=exclude_formula,
        num_templates=num_templates,
        num_samples=num_samples,
    )
    model = FlowLLM.from_pretrained(device="cpu")
    if is_textbook:
        figures: Any = textbook(model, config)
    else:
        if data is None:
            raise click.UsageError("give DATA, or --textbook")
        crystals = read(data, max_atoms=MAX_ATOMS, skip_invalid=True)
        targets = random.Random(seed).sample(crystals, min(1000, len(crystals)))
        targets = [target for target in targets if len(target.structure) <= most][:n]
        trials = (
            refined_templates(model, targets)
            if refine_templates
            else measure(model, targets, config, is_open, out)
        )
        figures = [trial.figures() for trial in trials]
        write(trials, out)
    click.echo(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
