"""Match rate with a given composition, of raw samples of the prior and of refined ones.

    python benchmarks/match_rate.py ../shared/data/mp20/val.parquet -n 256

For each target the prior draws a crystal with the formula and number of atoms of the target. The
match is decided by pymatgen's StructureMatcher (stol 0.5, angle_tol 10, ltol 0.3). RMSD is its root
mean square displacement over the cube root of the volume per atom, averaged over the matched
targets. A target whose sample failed counts as not matched. Intervals are Wilson's at 95%.

The space group of a target, which --given-group gives as well, is that of spglib at 0.1 Angstrom.
Before refining, the volume of a sample is that of templates of other formulas, as `flowllm sample`
sets it; --volume prior keeps the one that the prior wrote.

With --samples K, the output also has the share of targets that at least one of K samples matches,
and the RMSD of the nearest one. With --rank, it also has the figures of the sample that `flowllm
sample --best-of K --rank` keeps of these K (`ranked_by` in the JSON).
"""

from __future__ import annotations

import itertools
import json
import random
import resource
import time
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from pymatgen.core import Structure

from flowllm.crystals.cells import reduce_cell
from flowllm.crystals.io import read
from flowllm.crystals.symmetry import symmetry_of
from flowllm.errors import InvalidCrystal
from flowllm.generation.sample import Sample
from flowllm.generation.selection import RankingPotential, choose, energy_scores, flat, prior_scores
from flowllm.hub.locate import BUNDLED_PRIOR, BUNDLED_REFINER, resolve
from flowllm.metrics.csp import rms_distance
from flowllm.metrics.intervals import bootstrap, rate, wilson
from flowllm.templates.volumes import with_template_volume
from llm_prior import Prior, composition_conditions, propose
from rfm import Refiner, refine
from rfm.config import SYMMETRIES

BATCH = 64


def share(hits: int, total: int) -> str:
    """Return a share with its 95% interval (Wilson 1927), in percent."""
    low, high = wilson(hits, total)
    return f"{100 * hits / total:.1f}% [{100 * low:.1f}, {100 * high:.1f}]"


@click.command()
@click.argument("data", type=click.Path(path_type=Path))
@click.option("-n", default=256, show_default=True, help="Targets, drawn at random.")
@click.option("--prior", help="Folder; default: the bundled one.")
@click.option("--refiner", "refiners", multiple=True, help="Folder; default: the bundled one.")
@click.option("--slope", "slopes", multiple=True, type=float, help="Position slopes to try.")
@click.option("--steps", "all_steps", multiple=True, type=int, help="Numbers of steps to try.")
@click.option(
    "--symmetry",
    "symmetries",
    multiple=True,
    type=click.Choice(SYMMETRIES),
    default=("keep",),
    show_default=True,
    help="Whether refining keeps space groups; repeat it to compare.",
)
@click.option("--temperature", default=0.7, show_default=True)
@click.option("--top-p", default=0.9, show_default=True)
@click.option("--guidance", default=1.0, show_default=True, help="Weight of the conditions.")
@click.option("--constrain/--no-constrain", default=True, show_default=True)
@click.option(
    "--samples",
    default=1,
    type=click.IntRange(min=1),
    show_default=True,
    help="Samples for each target.",
)
@click.option("--rank", "ranks", multiple=True, type=click.Choice(["prior", "energy"]))
@click.option("--potential", default="chgnet", show_default=True, help="For --rank energy.")
@click.option("--given-group", is_flag=True, help="Give the space group of the target as well.")
@click.option(
    "--volume",
    type=click.Choice(["templates", "prior"]),
    default="templates",
    show_default=True,
    help="Volume from which refining starts; templates of the target's formula are left out.",
)
@click.option("--attempts", default=10, show_default=True)
@click.option("--seed", default=0, show_default=True)
@click.option("--out", type=click.Path(path_type=Path), help="Write the figures as JSON.")
def main(
    data: Path,
    n: int,
    prior: str | None,
    refiners: tuple[str, ...],
    slopes: tuple[float, ...],
    all_steps: tuple[int, ...],
    symmetries: tuple[str, ...],
    temperature: float,
    top_p: float,
    guidance: float,
    constrain: bool,
    samples: int,
    ranks: tuple[str, ...],
    potential: str,
    given_group: bool,
    volume: str,
    attempts: int,
    seed: int,
    out: Path | None,
) -> None:
    """Print the figures for DATA."""
    torch.set_num_threads(1)
    if ranks and samples == 1:
        raise click.UsageError("--rank chooses among samples; give --samples 2 or more")
    ranking = RankingPotential.load(potential) if "energy" in ranks else None
    model = Prior.from_pretrained(resolve(prior, BUNDLED_PRIOR))
    crystals = read(data, max_atoms=model.fmt.max_atoms, skip_invalid=True)
    targets = sorted(random.Random(seed).sample(crystals, n), key=lambda c: len(c.structure))

    def request(structure: Structure) -> dict[str, Any]:
        conditions = composition_conditions(structure.formula)
        if given_group and (symmetry := symmetry_of(structure)) is not None:
            conditions["spacegroup"] = symmetry.spacegroup
        return conditions

    start = time.perf_counter()
    proposals = []
    for at in range(0, samples * n, BATCH):
        part = [targets[k % n] for k in range(at, min(at + BATCH, samples * n))]
        requests = [request(target.structure) for target in part]
        proposals += propose(
            model,
            requests,
            seed=seed + at,
            temperature=temperature,
            top_p=top_p,
            guidance=guidance,
            max_attempts=attempts,
            constrain=constrain,
        )
    seconds = time.perf_counter() - start

    first = Counter(
        "right" if p.structure is not None and p.attempts == 1 else next(iter(p.rejects))
        for p in proposals[:n]
    )
    parsed = sum(count for why, count in first.items() if why in ("right",) or "other_" in why)
    raw = []
    for proposal in proposals:
        try:
            raw.append(None if proposal.structure is None else reduce_cell(proposal.structure))
        except InvalidCrystal:
            raw.append(None)
    drawn = sum(p.attempts for p in proposals)
    figures = {
        "targets": n,
        "first attempt parsed": share(parsed, n),
        "first attempt right composition": share(first["right"], n),
        f"right composition within {attempts} attempts": share(
            sum(s is not None for s in raw[:n]), n
        ),
        "first attempt refused": dict(first),
        "prior texts/s": round(drawn / seconds, 1),
    }

    measured: list[dict[str, Any]] = []

    def score(name: str, structures: list, **settings: Any) -> None:
        """Score the first sample of each target, and the best of all its samples."""
        found = [
            None if s is None else rms_distance(s, targets[k % n].structure)
            for k, s in enumerate(structures)
        ]
        for number in sorted({1, len(structures) // n}):  # 1 alone if a sample was chosen
            near = [[d for d in found[k : number * n : n] if d is not None] for k in range(n)]
            rms = [min(distances) for distances in near if distances]
            mean = sum(rms) / len(rms) if rms else float("nan")
            label = name if number == 1 else f"{name}, best of {number}"
            figures[label] = f"match {share(len(rms), n)}, RMSD {mean:.3f}"
            click.echo(f"{label}: {figures[label]}", err=True)
            match_rate, rmsd = asdict(rate(len(rms), n)), asdict(bootstrap(rms, np.mean))
            measured.append(
                {
                    "name": label,
                    "samples": number,
                    "ranked_by": None,
                    **settings,
                    "match_rate": match_rate,
                    "rmsd": rmsd,
                }
            )

    score("raw", raw)
    if volume == "templates":
        raw = [s if s is None else with_template_volume(s, exclude_formula=True) for s in raw]
    good = [k for k, structure in enumerate(raw) if structure is not None]
    candidates = [Sample(id=str(k), prompt=p.prompt, text=p.text) for k, p in enumerate(proposals)]
    for folder in refiners or (None,):
        refiner = Refiner.from_pretrained(resolve(folder, BUNDLED_REFINER))
        settings = refiner.config.integration
        for slope in slopes or (settings.position_slope,):
            for steps, symmetry in itertools.product(all_steps or (settings.steps,), symmetries):
                start = time.perf_counter()
                results = refine(
                    refiner,
                    [raw[k] for k in good],
                    seed=seed,
                    integration=settings.but(position_slope=slope, steps=steps),
                    symmetry=symmetry,
                )
                pace = len(good) / (time.perf_counter() - start)
                refined: list = [None] * (samples * n)
                for k, result in zip(good, results, strict=True):
                    refined[k] = result.structure
                    candidates[k].structure, candidates[k].refinement = result.structure, result
                name = Path(folder).parent.name if folder else "bundled"
                score(
                    f"refined ({name}, slope {slope}, {steps} steps, {symmetry}, {pace:.1f}/s)",
                    refined,
                    refiner=folder,
                    position_slope=slope,
                    steps=steps,
                    symmetry=symmetry,
                )
                for rank in ranks:
                    start = time.perf_counter()
                    if rank == "energy":
                        scores = energy_scores(ranking, candidates)
                    else:
                        scores = prior_scores(model, {}, candidates)
                    pace = len(candidates) / (time.perf_counter() - start)
                    order = [k for first in range(n) for k in range(first, samples * n, n)]
                    groups = [candidates[k::n] for k in range(n)]
                    kept = flat(choose(groups, [scores[k] for k in order]))
                    score(
                        f"refined ({name}, slope {slope}, {steps} steps, {symmetry}, best of "
                        f"{samples} by {rank}, {pace:.1f}/s)",
                        [sample.structure for sample in kept],
                        refiner=folder,
                        position_slope=slope,
                        steps=steps,
                        symmetry=symmetry,
                        samples=samples,
                        ranked_by=rank,
                        potential=potential if rank == "energy" else None,
                    )
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    figures["peak memory"] = f"{peak:.2f} GiB"
    click.echo(json.dumps(figures, indent=2))
    if out is not None:
        out.write_text(json.dumps({**figures, "results": measured}, indent=2) + "\n")


if __name__ == "__main__":
    main()
