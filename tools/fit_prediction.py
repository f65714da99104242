"""Fit the two numbers of `flowllm.prediction.scores` and write `bundled/weights.json`.

    python tools/fit_prediction.py ../shared/data/mp20/val.parquet

The prior was trained on MP-20's training split, so that its samples of training crystals are too
good to weigh it by. Targets are validation crystals, without those that `benchmarks/predict.py`
measures on (the first 1,000 of its order); templates are of the training split.

The share a of the templates and the width w of the energies are those under which the observed
structures are likeliest: the sum of the log-probabilities of the candidates that match their
target, over targets with such a candidate. First a without energies, then w with candidates that
CHGNet has relaxed.
"""

from __future__ import annotations

import json
import math
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from pymatgen.core import Structure

from flowllm import FlowLLM
from flowllm.crystals.crystal import Crystal
from flowllm.crystals.formulas import formula_units
from flowllm.crystals.io import read
from flowllm.energy.calculators import load_calculator
from flowllm.metrics.csp import rms_distance
from flowllm.prediction.candidates import propose_candidates
from flowllm.prediction.config import PredictionConfig
from flowllm.prediction.minima import SYMMETRIC, relaxer
from flowllm.prediction.scores import WEIGHTS_FILE, Weights, fitted
from flowllm.templates.library import bundled

MEASURED = 1000  # targets of the benchmark with its seed 0
SHARES = np.arange(0.05, 1.0, 0.05)
WIDTHS = np.array([1, 2, 3, 5, 7, 10, 15, 20, 30, 50, 70, 100, 200, 500]) / 1000  # eV/atom


@dataclass(frozen=True, kw_only=True)
class Case:
    """The K candidates of a target.

    Attributes:
        of_templates: (K,) probabilities by the templates; None without templates.
        of_samples: (K,) shares of the samples; None without samples.
        right: (K,) whether the candidate matches.
        energies: (K,) after relaxing, eV/atom, infinite where that failed; None if not relaxed.
    """

    of_templates: list[float | None]
    of_samples: list[float | None]
    right: np.ndarray
    energies: np.ndarray | None = None

    def logs(self, share: float) -> np.ndarray:
        """Return the log-probabilities (K,) by both sources."""
        weights = Weights(template_share=share, energy_width=1.0)
        pairs = zip(self.of_templates, self.of_samples, strict=True)
        return np.array([weights.log_probability(one, other) for one, other in pairs])


def likelihood(cases: list[Case], share: float, width: float | None = None) -> tuple[float, float]:
    """Return the mean log-probability of what is right, and how often it is first."""
    total, first = 0.0, 0
    for case in cases:
        values = case.logs(share)
        if width is not None:
            values = values - case.energies / width
        total += np.logaddexp.reduce(values[case.right]) - np.logaddexp.reduce(values)
        first += bool(case.right[values.argmax()])
    return total / len(cases), first / len(cases)


def candidates_of(model: FlowLLM, target: Crystal) -> tuple[Case, list[Structure]]:
    """Return the candidates of a target with the number of atoms of its cell."""
    composition = target.structure.composition
    formula = composition.reduced_formula
    units = formula_units(composition)
    config = PredictionConfig(z=(units,))
    found, _ = propose_candidates(model, formula, config, bundled(), fitted())
    case = Case(
        of_templates=[candidate.of_templates for candidate in found],
        of_samples=[candidate.of_samples for candidate in found],
        right=np.array(
            [rms_distance(c.structure, target.structure) is not None for c in found], dtype=bool
        ),
    )
    return case, [candidate.structure for candidate in found]


@click.command()
@click.argument("data", type=click.Path(path_type=Path))
@click.option("-n", default=150, show_default=True, help="Targets.")
@click.option("--relaxed", default=25, show_default=True, help="Targets that are relaxed too.")
@click.option("--most", default=10, show_default=True, help="Atoms of those.")
@click.option("--seed", default=1, show_default=True)
def main(data: Path, n: int, relaxed: int, most: int, seed: int) -> None:
    """Write the fitted numbers."""
    torch.set_num_threads(1)
    crystals = read(data, max_atoms=20, skip_invalid=True)
    measured = {c.id for c in random.Random(0).sample(crystals, MEASURED)}
    rest = [crystal for crystal in crystals if crystal.id not in measured]
    targets = random.Random(seed).sample(rest, n)
    model = FlowLLM.from_pretrained(device="cpu")
    found = [(target, *candidates_of(model, target)) for target in targets]
    cases = [case for _, case, _ in found if case.right.any()]
    curve = {round(float(share), 2): likelihood(cases, share) for share in SHARES}
    share = max(curve, key=lambda one: curve[one][0])
    for one, (mean, first) in curve.items():
        click.echo(f"a {one:.2f}: {mean:.4f} nats, first {100 * first:.1f}% of {len(cases)}")
    relax = relaxer(load_calculator("chgnet"))
    with_energies = []
    small = [one for one in found if len(one[0].structure) <= most][:relaxed]
    for place, (target, case, structures) in enumerate(small):
        outcomes = relax(structures, SYMMETRIC)
        energies = [math.inf if r.energy_per_atom is None else r.energy_per_atom for r in outcomes]
        right = [
            r.structure is not None and rms_distance(r.structure, target.structure) is not None
            for r in outcomes
        ]
        if any(right):
            with_energies.append(
                Case(
                    of_templates=case.of_templates,
                    of_samples=case.of_samples,
                    right=np.array(right),
                    energies=np.array(energies),
                )
            )
        click.echo(f"{place + 1} of {len(small)} relaxed", err=True)
    widths = {float(width): likelihood(with_energies, share, width) for width in WIDTHS}
    width = max(widths, key=lambda one: widths[one][0])
    for one, (mean, first) in widths.items():
        click.echo(
            f"w {one:.3f}: {mean:.4f} nats, first {100 * first:.1f}% of {len(with_energies)}"
        )
    record: dict[str, Any] = {
        "weights": {"template_share": share, "energy_width": width},
        "fitted_to": {
            "data": data.name,
            "targets": n,
            "with a right candidate": len(cases),
            "relaxed by chgnet, with a right candidate": len(with_energies),
            "seed": seed,
        },
    }
    WEIGHTS_FILE.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
