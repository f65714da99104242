"""Fit the share of the templates in `flowllm.prediction.scores`; write `bundled/weights.json`.

    python tools/fit_prediction.py ../shared/data/mp20/val.parquet

The prior was trained on MP-20's training split, so that its samples of training crystals are too
good to weigh it by. Targets are validation crystals, without those that `benchmarks/predict.py`
measures on (the first 1,000 of its order); templates are of the training split.

The share a of the templates is the one under which the observed structures are likeliest: the sum
of the log-probabilities of the candidates that match their target, over targets with such a
candidate. The same is then shown for widths w of the energies, with candidates that CHGNet has
relaxed with their symmetry kept, equal ones merged, as `flowllm predict` does before it looks for
lower minima. w is chosen by hand and stays as it is.
"""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch

from flowllm import FlowLLM
from flowllm.crystals.crystal import Crystal
from flowllm.crystals.formulas import formula_units
from flowllm.crystals.io import read
from flowllm.energy.calculators import load_calculator
from flowllm.errors import UserError
from flowllm.evaluation.energies import load_energy_model
from flowllm.metrics.csp import rms_distance
from flowllm.prediction.candidates import Candidate, merge, propose_candidates
from flowllm.prediction.config import PredictionConfig
from flowllm.prediction.minima import relaxer
from flowllm.prediction.prediction import Energies, relaxed_candidates
from flowllm.prediction.scores import WEIGHTS_FILE, Weights, fitted
from flowllm.templates.library import bundled

MEASURED = 1000  # targets of the benchmark with its seed 0
SHARES = np.arange(0.05, 1.0, 0.05)
WIDTHS = np.array([1, 2, 3, 5, 7, 10, 15, 20, 30, 50, 70, 100, 200, 500]) / 1000  # eV/atom


@dataclass(frozen=True, kw_only=True)
class Case:
    """The K candidates of a target.

    Attributes:
        candidates: (K,), with energies if they were relaxed.
        right: (K,) whether the candidate matches.
    """

    candidates: list[Candidate]
    right: np.ndarray

    @classmethod
    def of(cls, candidates: list[Candidate], target: Crystal) -> Case:
        """Return the case of candidates for a target."""
        right = [rms_distance(c.structure, target.structure) is not None for c in candidates]
        return cls(candidates=candidates, right=np.array(right, dtype=bool))


def weighed(candidates: list[Candidate], share: float) -> list[Candidate]:
    """Return candidates with the log-probabilities by a share of the templates."""
    weights = Weights(template_share=share, energy_width=1.0)
    return [
        replace(c, log_probability=weights.log_probability(c.of_templates, c.of_samples))
        for c in candidates
    ]


def likelihood(cases: list[Case], weigh: Callable[[Candidate], float]) -> tuple[float, float]:
    """Return the mean log-probability of what is right, and how often it is first."""
    total, first = 0.0, 0
    for case in cases:
        values = np.array([weigh(candidate) for candidate in case.candidates])
        total += np.logaddexp.reduce(values[case.right]) - np.logaddexp.reduce(values)
        first += bool(case.right[values.argmax()])
    return total / len(cases), first / len(cases)


def candidates_of(model: FlowLLM, target: Crystal) -> list[Candidate]:
    """Return the candidates of a target with the number of atoms of its cell."""
    composition = target.structure.composition
    config = PredictionConfig(z=(formula_units(composition),))
    return propose_candidates(model, composition.reduced_formula, config, bundled(), fitted())[0]


def potential() -> Energies:
    """Return CHGNet, as `flowllm predict --potential chgnet` uses it."""
    calculator = load_calculator("chgnet")
    model = load_energy_model(
        "chgnet", hull=None, references=None, min_elements=1, calculator=calculator
    )
    return Energies(model=model, relax=relaxer(calculator))


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
    found = [(target, candidates_of(model, target)) for target in targets]
    every = [Case.of(candidates, target) for target, candidates in found]
    cases = [case for case in every if case.right.any()]
    if not cases:
        raise click.ClickException("no candidate matches its target; take more targets (-n)")
    curve = {}
    for share in SHARES:
        weights = Weights(template_share=float(share), energy_width=1.0)
        curve[round(float(share), 2)] = likelihood(
            cases,
            lambda c, weights=weights: weights.log_probability(c.of_templates, c.of_samples),
        )
    share = max(curve, key=lambda one: curve[one][0])
    for one, (mean, first) in curve.items():
        click.echo(f"a {one:.2f}: {mean:.4f} nats, first {100 * first:.1f}% of {len(cases)}")
    with_energies = []
    small = [one for one in found if len(one[0].structure) <= most][:relaxed]
    energies = potential() if small else None
    for place, (target, candidates) in enumerate(small):
        formula = target.structure.composition.reduced_formula
        try:
            minima = relaxed_candidates(formula, weighed(candidates, share), energies, Counter())
        except UserError as error:  # the potential fails on all of them
            click.echo(str(error), err=True)
            continue
        lowest_first = sorted(minima, key=lambda c: c.energy_per_atom)
        case = Case.of(merge(lowest_first), target)
        if case.right.any():
            with_energies.append(case)
        click.echo(f"{place + 1} of {len(small)} relaxed", err=True)
    width = fitted().energy_width
    if with_energies:
        widths = {
            float(width): likelihood(
                with_energies, lambda c, width=width: c.log_probability - c.energy_per_atom / width
            )
            for width in WIDTHS
        }
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
