"""Hint that the order of elements gives about a masked one.

    OMP_NUM_THREADS=1 python benchmarks/infill_order.py ../shared/data/mp20/val.parquet

The texts of both layouts list elements by electronegativity, so a masked one lies between its
neighbours in that order. Masks a random element of each crystal and prints, for each bundled
prior: how often the likeliest element is the right one, how often it lies in the interval, the
probability of the interval, and accuracy and nats if elements outside it are left out. What the
restriction gains is what the prior does not already take from the order.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

import click
import numpy as np
import torch
from pymatgen.core import Structure

from flowllm.crystals.io import read
from flowllm.hub.locate import BUNDLED_PRIOR, resolve
from llm_prior import Prior, element_probabilities
from llm_prior.text import SYMBOLS
from llm_prior.wyckoff.crystal import element_order


def interval(structure: Structure, mask: str) -> set[str]:
    """Return the elements between the neighbours of the masked one."""
    rank = element_order()
    ranks = [rank[element.symbol] for element in structure.composition.elements]
    low = max((r for r in ranks if r < rank[mask]), default=-1)
    high = min((r for r in ranks if r > rank[mask]), default=len(SYMBOLS))
    return {symbol for symbol in SYMBOLS if low < rank[symbol] < high}


def figures(prior: Prior, structures: Sequence[Structure], masks: Sequence[str]) -> str:
    """Return the figures of a prior."""
    inside = [interval(structure, mask) for structure, mask in zip(structures, masks, strict=True)]
    free = element_probabilities(prior, structures, masks)
    bound = element_probabilities(prior, structures, masks, candidates=inside)

    def right(found: Sequence[dict[str, float]]) -> str:
        hits = [next(iter(p)) == mask for p, mask in zip(found, masks, strict=True)]
        nats = [-np.log(p[mask]) for p, mask in zip(found, masks, strict=True)]
        return f"{np.mean(hits):.1%} right, {np.mean(nats):.2f} nats"

    first = np.mean([next(iter(p)) in part for p, part in zip(free, inside, strict=True)])
    mass = np.mean([sum(p[s] for s in part) for p, part in zip(free, inside, strict=True)])
    return (
        f"{right(free)}; in the interval {first:.1%} of the likeliest and {mass:.1%} of the "
        f"probability; restricted to it {right(bound)}"
    )


@click.command(help=__doc__)
@click.argument("data", type=click.Path(exists=True, path_type=Path))
@click.option("-n", "count", default=300, show_default=True, help="Crystals.")
def main(data: Path, count: int) -> None:
    """Print the figures of both bundled priors."""
    torch.set_num_threads(1)
    rng = random.Random(0)
    structures = [crystal.structure for crystal in rng.sample(list(read(data)), count)]
    masks = [rng.choice(structure.composition.elements).symbol for structure in structures]
    shares = [len(interval(s, mask)) for s, mask in zip(structures, masks, strict=True)]
    click.echo(f"{count} crystals, the interval holds {np.mean(shares):.0f} of {len(SYMBOLS)}")
    for name in ("bundled:wyckoff", "bundled:sites"):
        prior = Prior.from_pretrained(resolve(name, BUNDLED_PRIOR))
        click.echo(f"{name}: {figures(prior, structures, masks)}")


if __name__ == "__main__":
    main()
