"""Classifier-free guidance of the prior: what conditions tell it, and what larger weights do.

    python benchmarks/guidance.py reaction ../shared/data/mp20/val.parquet -n 500
    python benchmarks/guidance.py groups -n 200 --weight 0 --weight 1 --weight 2 --weight 4
    python benchmarks/guidance.py stability -n 60 --condition e_above_hull=0.03 --out guided \\
        --train train.parquet --hull hull_entries.parquet \\
        --references mp_elemental_ref_energies_per_atom.json

`reaction` tells whether the prior uses a condition at all: the log-likelihood of validation
crystals with their own value in the prompt, minus that without it, with the value of another
crystal, and with the same energy above the hull for all. `groups` samples without the grammar with
each of several space groups in the prompt, and counts the first texts that decode and those that
have the group. `stability` samples with every weight, refines, relaxes with a potential and
evaluates (`flowllm evaluate`). It goes on where it was stopped. Shares have Wilson's 95% intervals.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import numpy as np
import torch

from flowllm import SamplingConfig, evaluate, run_sampling
from flowllm.crystals.io import read
from flowllm.evaluation.results import metrics_table
from flowllm.hub.locate import BUNDLED_PRIOR, resolve
from flowllm.metrics.intervals import rate
from flowllm.metrics.prototypes import SYMPREC
from flowllm.metrics.symmetry import spacegroup_number
from llm_prior import ParseError, Prior, propose
from llm_prior.scoring import score_texts

SHOWN = (
    *("structural_validity", "compositional_validity", "uniqueness", "novelty", "unique_novel"),
    *("median_e_above_hull", "stable_0", "stable_0.1", "sun", "metastable_sun"),
)
SETTINGS = ("spacegroup", "e_above_hull", "formation_energy_per_atom", "band_gap", "elements")
ENERGIES = (0.0, 0.05, 0.1, 0.3, 1.0)  # eV/atom above the hull
GROUPS = (2, 14, 62, 123, 166, 194, 221, 225)  # common ones of several crystal systems

prior_option = click.option("--prior", help="Folder or name; default: the bundled one.")
count_option = click.option("-n", default=60, show_default=True, type=click.IntRange(min=2))
seed_option = click.option("--seed", default=0, show_default=True)
weights_option = click.option(
    "--weight", "weights", multiple=True, type=float, default=(0, 1, 2, 4), show_default=True
)


def shown(values: np.ndarray) -> str:
    """Return the mean of (N,) values with its standard error."""
    return f"{values.mean():7.2f} +- {values.std(ddof=1) / len(values) ** 0.5:.2f}"


def percent(hits: int, total: int) -> str:
    """Return a share with its interval, in percent."""
    found = rate(hits, total)
    assert found.value is not None and found.low is not None and found.high is not None
    return f"{100 * found.value:.1f}% [{100 * found.low:.1f}, {100 * found.high:.1f}]"


@click.group()
def main() -> None:
    """Measure guidance."""
    torch.set_num_threads(1)


@main.command()
@click.argument("data", type=click.Path(path_type=Path))
@prior_option
@count_option
@seed_option
def reaction(data: Path, prior: str | None, n: int, seed: int) -> None:
    """Print the nats that each condition is worth on crystals of DATA."""
    model = Prior.from_pretrained(resolve(prior, BUNDLED_PRIOR))
    crystals = list(read(data, max_atoms=model.fmt.max_atoms, skip_invalid=True))
    rng = np.random.default_rng(seed)
    drawn = [crystals[k] for k in rng.choice(len(crystals), n, replace=False)]
    described = [model.layout.describe(crystal.structure) for crystal in drawn]
    known = [
        one.conditions(crystal.properties) for one, crystal in zip(described, drawn, strict=True)
    ]
    texts = [one.text() for one in described]

    def nats(requests: list[dict[str, Any]]) -> np.ndarray:
        prompts = [model.layout.prompt(request) for request in requests]
        return np.array([score.log_likelihood for score in score_texts(model, prompts, texts)])

    click.echo(f"{n} crystals; gain in nats per crystal over the prompt without the condition")
    for given in ((), ("formula", "num_atoms")):
        base = [{name: values[name] for name in given} for values in known]
        without = nats(base)
        click.echo(f"\ngiven {', '.join(given) or 'nothing'}: {shown(without)} nats")
        click.echo(f"{'condition':26}  {'own value':>18}  {'of another crystal':>18}")
        for name in SETTINGS:
            if name in ("elements",) and given:
                continue
            values = [one[name] for one in known]
            others = [values[k] for k in rng.permutation(n)]
            own, other = (
                nats([{**b, name: value} for b, value in zip(base, column, strict=True)]) - without
                for column in (values, others)
            )
            click.echo(f"{name:26}  {shown(own):>18}  {shown(other):>18}")
        for energy in ENERGIES:
            gain = nats([{**request, "e_above_hull": energy} for request in base]) - without
            click.echo(f"e_above_hull {energy:.2f} for all     {shown(gain):>18}")


@main.command()
@prior_option
@count_option
@seed_option
@weights_option
@click.option("--temperature", default=1.0, show_default=True)
def groups(
    prior: str | None, n: int, seed: int, weights: tuple[float, ...], temperature: float
) -> None:
    """Print how often a space group in the prompt is met where the grammar does not enforce it."""
    model = Prior.from_pretrained(resolve(prior, BUNDLED_PRIOR))
    requests = [{"spacegroup": GROUPS[k % len(GROUPS)]} for k in range(n)]
    click.echo(f"{n} texts, space groups {GROUPS}, temperature {temperature}, no grammar")
    for weight in weights:
        found = propose(
            model,
            requests,
            seed=seed,
            guidance=weight,
            temperature=temperature,
            top_p=1.0,
            max_attempts=1,
            constrain=False,
        )
        decoded = same = 0
        for request, proposal in zip(requests, found, strict=True):
            try:
                structure = model.layout.read(proposal.text, complete=True).structure
            except ParseError:  # the text is no crystal
                continue
            decoded += 1
            same += spacegroup_number(structure, symprec=SYMPREC) == request["spacegroup"]
        click.echo(
            f"weight {weight:g}: decode {percent(decoded, n)}, have the group {percent(same, n)}"
        )


@main.command()
@prior_option
@click.option("--refiner", help="Folder or name; default: the bundled one.")
@count_option
@seed_option
@weights_option
@click.option("--condition", "conditions", multiple=True, required=True, help="NAME=VALUE.")
@click.option("--temperature", default=1.0, show_default=True)
@click.option("--top-p", default=0.9, show_default=True)
@click.option("--train", type=click.Path(path_type=Path), required=True)
@click.option("--hull", type=click.Path(path_type=Path), required=True)
@click.option("--references", type=click.Path(path_type=Path), required=True)
@click.option("--potential", default="chgnet", show_default=True)
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder.")
def stability(
    prior: str | None,
    refiner: str | None,
    n: int,
    seed: int,
    weights: tuple[float, ...],
    conditions: tuple[str, ...],
    temperature: float,
    top_p: float,
    train: Path,
    hull: Path,
    references: Path,
    potential: str,
    out: Path,
) -> None:
    """Print stability, novelty and validity of refined samples for each weight."""
    requested = dict(condition.split("=", 1) for condition in conditions)
    folders = []
    for weight in weights:
        config = SamplingConfig.of(
            guidance=weight, seed=seed, temperature=temperature, top_p=top_p, **requested
        )
        folders.append(out / f"weight-{weight:g}")
        run_sampling(
            n, out=folders[-1], config=config, prior=prior, refiner=refiner, device="cpu",
            progress=False,
        )  # fmt: skip
    result = evaluate(
        folders,
        out=out / "evaluation",
        train=train,
        potential=potential,
        hull=hull,
        references=references,
        progress=False,
    )
    for one in result.sets:
        wanted = (*SHOWN, *(name for name in one.metrics if name.startswith("meets_")))
        one.metrics = {k: one.metrics[k] for k in wanted if k in one.metrics and "[" not in k}
    click.echo(f"{requested}, temperature {temperature}, {n} refined samples each")
    click.echo(metrics_table(result.sets))


if __name__ == "__main__":
    main()
