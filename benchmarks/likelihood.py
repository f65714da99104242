"""Held-out log-likelihood of a prior with and without the grammar, and its IPT.

    python benchmarks/likelihood.py ../shared/data/mp20/val.parquet -n 1000

The log-likelihood is summed over the tokens of a crystal, end of sequence included, in nats per
crystal, so that priors with different tokenizers can be compared. The crystals are Niggli-reduced;
their coordinates are kept. Under the grammar, only the tokens that constrained decoding allows
share the probability. `llm_prior.translation` defines the IPT. Every figure is a mean over the same
random crystals, with its standard error.
"""

from __future__ import annotations

import random
import tempfile
from pathlib import Path

import click
import torch

from flowllm.crystals.io import Crystals, read, write
from flowllm.generation.scoring import ScoreSummary, ipt, score
from flowllm.hub.locate import BUNDLED_PRIOR, resolve
from llm_prior import Prior

CONDITIONS: tuple[tuple[str, ...], ...] = ((), ("formula",), ("formula", "num_atoms"))


def shown(measured: ScoreSummary, digits: int) -> str:
    """Return mean, standard error and the number of crystals without a finite value."""
    text = f"{measured.mean:.{digits}f} +- {measured.standard_error:.{digits}f}"
    lost = len(measured.rows) - len(measured.values)
    return f"{text} ({lost} outside)" if lost else text


@click.command()
@click.argument("data", type=click.Path(path_type=Path))
@click.option("-n", default=1000, show_default=True, help="Crystals, drawn at random.")
@click.option("--ipt-crystals", default=100, show_default=True, help="Of these, for the IPT.")
@click.option("--prior", help="Folder; default: the bundled one.")
@click.option("--seed", default=0, show_default=True)
def main(data: Path, n: int, ipt_crystals: int, prior: str | None, seed: int) -> None:
    """Print the figures for DATA."""
    torch.set_num_threads(1)
    max_atoms = Prior.from_pretrained(resolve(prior, BUNDLED_PRIOR)).fmt.max_atoms
    crystals = read(data, max_atoms=max_atoms, skip_invalid=True)
    drawn = Crystals(random.Random(seed).sample(crystals, min(n, len(crystals))))
    with tempfile.TemporaryDirectory() as folder:
        file = write(drawn, Path(folder) / "drawn.jsonl")
        click.echo(f"{len(drawn)} crystals; log-likelihood in nats per crystal")
        click.echo(f"{'conditions':20}  {'free':>20}  {'under the grammar':>20}")
        for conditions in CONDITIONS:
            free, bound = (
                shown(score(file, prior=prior, conditions=conditions, constrain=constrain), 2)
                for constrain in (False, True)
            )
            click.echo(f"{', '.join(conditions) or 'none':20}  {free:>20}  {bound:>20}")
        shifted = ipt(file, prior=prior, limit=ipt_crystals, seed=seed)
        click.echo(f"IPT of {len(shifted.rows)} crystals: {shown(shifted, 4)}")


if __name__ == "__main__":
    main()
