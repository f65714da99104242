"""Match rate of templates with a given composition: element swaps in the crystals of MP-20 train.

    python benchmarks/templates.py ../shared/data/mp20/val.parquet -n 1000

The targets and the match are those of `benchmarks/match_rate.py` (pymatgen's StructureMatcher, stol
0.5, angle_tol 10, ltol 0.3). RMSD is its root mean square displacement over the cube root of the
volume per atom, averaged over the matched targets. "Any of 5" counts a target that one of the
first five proposals matches. A target without a proposal counts as not matched. Intervals are
Wilson's at 95%.

The composition has the number of atoms of the target's cell, as in published comparisons, unless a
line says "any number of formula units". "Plain distance" is the mean over the elements of the
distance in (Mendeleev number / 33, Pauling electronegativity, atomic radius / 0.5 Angstrom), the
nearest template first. The matcher makes volumes equal before it compares, so the size of the cell
is measured on its own: the median over matched first proposals of |V / V of the target - 1|.

"Polymorphs" are structures of formulas of which DATA and the library together have several. The
composition is given without the number of atoms, and a structure is found if one of the first ten
proposals matches it. "No template of the formula" counts all structures, "all templates" those of
DATA.
"""

from __future__ import annotations

import json
import random
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import click
import numpy as np
from pymatgen.core import Composition, Element, Structure

from flowllm.crystals.crystal import ignore_missing_electronegativity
from flowllm.crystals.formulas import formula_units
from flowllm.crystals.io import Crystal, read
from flowllm.metrics.csp import rms_distance
from flowllm.metrics.intervals import wilson
from flowllm.templates.library import TemplateLibrary, bundled
from flowllm.templates.proposals import MAX_ATOMS, propose_templates
from flowllm.templates.ranking import Ranking, fitted
from llm_prior.text import SYMBOLS

SHOWN = 5  # proposals for a target
LISTED = 10  # proposals for a formula with several structures


@dataclass(kw_only=True)
class Trial:
    """A setting, and what it gave for each target."""

    name: str
    ranking: Ranking
    n: int = SHOWN
    same_size: bool = True
    options: dict[str, Any] = field(default_factory=dict)
    distances: list[list[float | None]] = field(default_factory=list)
    volumes: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)

    def figures(self) -> dict[str, Any]:
        """Return the figures of the trial."""
        total = len(self.distances)
        first = [row[0] for row in self.distances if row and row[0] is not None]
        nearest = [
            min(d for d in row if d is not None)
            for row in self.distances
            if any(d is not None for d in row)
        ]
        figures = {
            "name": self.name,
            "targets": total,
            "without a proposal": sum(not row for row in self.distances),
            "first": share(len(first), total),
            "first RMSD": round(float(np.mean(first)), 4),
            "volume error": round(float(np.median(np.abs(np.array(self.volumes) - 1))), 3),
            "CPU ms, median": round(1000 * float(np.median(self.seconds)), 1),
            "CPU ms, 99%": round(1000 * float(np.quantile(self.seconds, 0.99)), 1),
        }
        if self.n > 1:
            figures[f"any of {self.n}"] = share(len(nearest), total)
            figures[f"any of {self.n} RMSD"] = round(float(np.mean(nearest)), 4)
        return figures


def share(hits: int, total: int) -> str:
    """Return a share with its 95% interval (Wilson 1927), in percent."""
    low, high = wilson(hits, total)
    return f"{100 * hits / total:.1f}% [{100 * low:.1f}, {100 * high:.1f}]"


@ignore_missing_electronegativity()
def plain_distance() -> Ranking:
    """Return the plain distance: the nearest template alone counts."""
    table = []
    for element in map(Element, SYMBOLS):
        known = element.Z < 104  # of heavier ones pymatgen has no Mendeleev number
        number = element.mendeleev_no if known else np.nan
        table.append([number / 33, element.X, (element.atomic_radius or np.nan) / 0.5])
    points = np.array(table)
    points = np.where(np.isnan(points), np.nanmean(points, axis=0), points)
    return Ranking(
        points=np.concatenate([points, points]),
        size_exponent=0.0,
        sharpness=200.0,
        hull_weight=0.0,
        polymorph_weight=0.0,
        polymorph_penalty=0.0,
        log_volumes=fitted().log_volumes,
    )


@click.command()
@click.argument("data", type=click.Path(path_type=Path))
@click.option("-n", default=1000, show_default=True, help="Targets, drawn at random.")
@click.option("--seed", default=0, show_default=True)
@click.option("--formulas", default=100, show_default=True, help="Formulas with polymorphs.")
@click.option("--templates", type=click.Path(path_type=Path), help="Library; default: bundled.")
@click.option("--out", type=click.Path(path_type=Path), help="Write the figures as JSON.")
def main(
    data: Path, n: int, seed: int, formulas: int, templates: Path | None, out: Path | None
) -> None:
    """Print the figures for DATA."""
    library = bundled() if templates is None else TemplateLibrary.read(templates)
    crystals = read(data, max_atoms=MAX_ATOMS, skip_invalid=True)
    targets = random.Random(seed).sample(crystals, n)
    sharp = {
        "sharpness": 100 * fitted().sharpness,
        "hull_weight": 0.0,
        "polymorph_weight": 0.0,
        "polymorph_penalty": 0.0,
    }
    trials = [
        Trial(name="plain distance", ranking=plain_distance()),
        Trial(name="fitted distance, nearest template", ranking=replace(fitted(), **sharp)),
        Trial(name="fitted ranking", ranking=fitted()),
        Trial(name="same, cell not scaled", ranking=fitted(), n=1, options={"scale": False}),
        Trial(
            name="same, no template of the formula",
            ranking=fitted(),
            options={"exclude_formula": True},
        ),
        Trial(name="same, any number of formula units", ranking=fitted(), same_size=False),
    ]
    known: dict[Any, float | None] = {}
    for trial in trials:
        for target in targets:
            evaluate(trial, target, library, known)
        click.echo(json.dumps(trial.figures(), indent=2))
    figures = [trial.figures() for trial in trials]
    if formulas:
        figures.append(polymorphs(crystals, library, formulas, seed))
        click.echo(json.dumps(figures[-1], indent=2))
    if out is not None:
        out.write_text(json.dumps(figures, indent=2) + "\n")


def polymorphs(
    crystals: Sequence[Crystal], library: TemplateLibrary, count: int, seed: int
) -> dict[str, Any]:
    """Return how many structures of formulas with several of them are found."""
    unknown: dict[str, list[Structure]] = defaultdict(list)
    for crystal in crystals:
        unknown[crystal.structure.composition.reduced_formula].append(crystal.structure)
    known: dict[str, list[int]] = defaultdict(list)
    for row in range(len(library)):
        known[Composition(library.crystal(row).composition).reduced_formula].append(row)
    several = sorted(f for f in unknown if len(unknown[f]) + len(known[f]) > 1)
    chosen = random.Random(seed).sample(several, min(count, len(several)))
    hits = {"no template of the formula": 0, "all templates": 0}
    totals = dict.fromkeys(hits, 0)
    for formula in chosen:
        theirs = [library.crystal(row).primitive() for row in known[formula]]
        for name, wanted, options in (
            ("no template of the formula", unknown[formula] + theirs, {"exclude_formula": True}),
            ("all templates", unknown[formula], {}),
        ):
            found = propose_templates(formula, n=LISTED, library=library, **options)
            made = [proposal.structure for proposal in found]
            totals[name] += len(wanted)
            hits[name] += sum(
                any(rms_distance(structure, target) is not None for structure in made)
                for target in wanted
            )
    return {
        "name": "polymorphs",
        "formulas": len(chosen),
        "formulas with several structures": len(several),
        **{f"first {LISTED}, {name}": share(hits[name], totals[name]) for name in hits},
        **{f"structures, {name}": totals[name] for name in hits},
    }


def evaluate(
    trial: Trial, target: Crystal, library: TemplateLibrary, known: dict[Any, float | None]
) -> None:
    """Add the result of a target to a trial; `known` keeps distances of what was compared."""
    composition = target.structure.composition
    units = formula_units(composition)
    start = time.process_time()
    proposals = propose_templates(
        composition.formula,
        n=trial.n,
        formula_units=[units] if trial.same_size else (),
        library=library,
        ranking=trial.ranking,
        **trial.options,
    )
    structures: list[Structure] = [proposal.structure for proposal in proposals]
    trial.seconds.append(time.process_time() - start)
    row = []
    for proposal, structure in zip(proposals, structures, strict=True):
        key = (target.id, proposal.crystal)
        if key not in known:
            known[key] = rms_distance(structure, target.structure)
        row.append(known[key])
    trial.distances.append(row)
    if row and row[0] is not None:
        density = target.structure.volume / len(target.structure)
        trial.volumes.append(structures[0].volume / len(structures[0]) / density)


if __name__ == "__main__":
    main()
