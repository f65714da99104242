"""Crystals with a requested composition and space group, from a prior of the layout `wyckoff`.

    OMP_NUM_THREADS=1 python benchmarks/space_groups.py ../shared/data/mp20/val.parquet \
        --prior bundled:wyckoff

Draws the pairs from the crystals of DATA and asks for each one several times, one text each. The
group of a sample is the one that spglib finds in its structure (symprec of pymatgen's
SpacegroupAnalyzer), its composition the one that pymatgen counts. Atoms closer than 0.5 Angstrom
are counted too. Rates are texts per second of CPU time of one thread; with --sites those of a prior
of the layout `sites` for the same compositions stand beside them, in turns.
"""

from __future__ import annotations

import json
import random
import time
from collections import Counter
from pathlib import Path
from typing import Any

import click
import torch
from pymatgen.symmetry.analyzer import SpacegroupAnalyzer

from flowllm.crystals.io import read
from flowllm.hub.locate import BUNDLED_PRIOR, resolve
from flowllm.metrics.validity import structural_validity
from llm_prior import Prior, Proposal, composition_conditions, propose

SYMPREC = 0.01  # Angstrom
BATCH = 128


class Tally:
    """Samples of one prior, and what they cost."""

    def __init__(self) -> None:
        self.cpu = 0.0
        self.found: list[tuple[dict[str, Any], Proposal]] = []

    def add(self, prior: Prior, requests: list[dict[str, Any]], **settings: Any) -> None:
        """Draw a text for each request."""
        start = time.process_time()
        proposals = propose(prior, requests, max_attempts=1, **settings)
        self.cpu += time.process_time() - start
        self.found += zip(requests, proposals, strict=True)

    @property
    def rate(self) -> float:
        """Texts per second."""
        return len(self.found) / self.cpu


def judge(request: dict[str, Any], proposal: Proposal) -> str:
    """Say what is wrong with a sample, by spglib and pymatgen; `right` if nothing is."""
    structure = proposal.structure
    if structure is None:
        return "refused: " + ", ".join(proposal.rejects)
    wanted = composition_conditions(structure.formula)
    if any(wanted[name] != request[name] for name in wanted):
        return "other composition"
    if SpacegroupAnalyzer(structure, SYMPREC).get_space_group_number() != request["spacegroup"]:
        return "other group"
    return "right" if structural_validity(structure) else "right, atoms within 0.5 Angstrom"


@click.command()
@click.argument("data", type=click.Path(path_type=Path))
@click.option(
    "--prior",
    "folder",
    required=True,
    help="Prior of the layout wyckoff: folder, hub id or bundled:wyckoff.",
)
@click.option("--pairs", default=200, show_default=True)
@click.option("--samples", default=10, show_default=True, help="Samples of each pair.")
@click.option("--sites/--no-sites", default=True, show_default=True, help="Time bundled:sites.")
@click.option("--temperature", default=0.7, show_default=True)
@click.option("--seed", default=0, show_default=True)
def main(
    data: Path, folder: str, pairs: int, samples: int, sites: bool, temperature: float, seed: int
) -> None:
    """Print the figures for pairs of composition and space group of DATA."""
    torch.set_num_threads(1)
    prior = Prior.from_pretrained(resolve(folder, BUNDLED_PRIOR))
    others = Prior.from_pretrained(resolve("bundled:sites", BUNDLED_PRIOR)) if sites else None
    crystals = read(data, max_atoms=prior.fmt.max_atoms, skip_invalid=True)
    requests = []
    for crystal in random.Random(seed).sample(crystals, pairs):
        known = prior.layout.describe(crystal.structure).conditions(crystal.properties)
        requests.append({key: known[key] for key in ("formula", "num_atoms", "spacegroup")})
    requests *= samples
    by_group, by_composition, of_sites = Tally(), Tally(), Tally()
    for model in filter(None, (prior, others)):
        propose(model, [{"formula": "NaCl"}], seed=0)  # kernels, grammar
    for at in range(0, len(requests), BATCH):
        part = requests[at : at + BATCH]
        bare = [{k: v for k, v in request.items() if k != "spacegroup"} for request in part]
        settings = {"seed": seed + at, "temperature": temperature}
        by_group.add(prior, part, **settings)
        by_composition.add(prior, bare, **settings)
        if others is not None:
            of_sites.add(others, bare, **settings)
    counts = Counter(judge(request, proposal) for request, proposal in by_group.found)
    figures: dict[str, Any] = {
        "samples": len(requests),
        **counts,
        "texts/s, composition and group": round(by_group.rate, 1),
        "texts/s, composition": round(by_composition.rate, 1),
    }
    if others is not None:
        figures["texts/s, composition, sites"] = round(of_sites.rate, 1)
    click.echo(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
