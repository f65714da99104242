"""Rounds of preference tuning, and what another potential than the rewarding one says of them.

    python benchmarks/tuning.py -n 2000 --train ../shared/data/mp20/train.parquet \\
        --hull ../shared/data/mp20/hull_entries.parquet \\
        --references ../shared/data/mp_reference/mp_elemental_ref_energies_per_atom.json \\
        --reward chgnet --judge sevennet --out runs/rounds

A round draws refined samples from the last prior without a condition, has `flowllm evaluate` judge
them with --reward, and tunes the prior; each round has its --temperature. At the end the start and
every tuned prior draw --judged samples alike (temperature 1, another seed), which both potentials
relax. The tables have rates with 95% intervals. `KL` is the divergence of the prior from the first
start with its standard error, in nats per crystal, over the texts that the first round has drawn
from it. The same command resumes after a kill. Everything after `--` is a change to the recipe of
the tunings, such as `loss.beta=0.2`.
"""

from __future__ import annotations

from pathlib import Path

import click
import numpy as np

from flowllm.evaluation.evaluate import evaluate
from flowllm.evaluation.results import SetResult
from flowllm.generation.sampling_run import run_sampling
from flowllm.hub.locate import BUNDLED_PRIOR, resolve
from flowllm.training.preference.progress import START_FILE, read_start_texts
from flowllm.training.tuning import tune_prior
from llm_prior import Prior, score_texts

RATES = ("valid", "uniqueness", "novelty", "gene_novelty")
RATES += ("stable_0", "stable_0.1", "sun", "metastable_sun")


def divergence(prior: Path, texts: list[tuple[str, str, float]], start: Path) -> str:
    """Return the divergence of a prior from the start of the first round, in words."""
    prompts, answers = [prompt for prompt, _, _ in texts], [text for _, text, _ in texts]
    nats = [
        [
            score.log_likelihood
            for score in score_texts(Prior.from_pretrained(one), prompts, answers)
        ]
        for one in (start, prior)
    ]
    lost = np.subtract(*nats)
    return f"{lost.mean():.2f} ± {lost.std(ddof=1) / len(lost) ** 0.5:.2f}"


def cells(measured: SetResult) -> list[str]:
    """Return the rates of a set with their intervals."""
    found = [measured.metrics.get(rate) for rate in RATES]
    return [
        "-"
        if one is None or one.value is None
        else f"{one.value:.1%} [{one.low:.1%}, {one.high:.1%}]"
        for one in found
    ]


@click.command()
@click.option("-n", "n", default=2000, show_default=True, help="Samples of each round.")
@click.option(
    "--temperature",
    "temperatures",
    multiple=True,
    type=float,
    default=(0.8, 1.0, 1.2),
    show_default=True,
    help="Of a round. Repeatable.",
)
@click.option("--prior", help="Start of the first round; default: the bundled one.")
@click.option("--refiner", help="Folder; default: that of the pair, or the bundled one.")
@click.option("--train", required=True, type=click.Path(path_type=Path))
@click.option("--hull", required=True, type=click.Path(path_type=Path))
@click.option("--references", required=True, type=click.Path(path_type=Path))
@click.option("--reward", default="chgnet", show_default=True, help="Potential that rewards.")
@click.option("--judge", default="sevennet", show_default=True, help="Potential that judges.")
@click.option("--judged", default=1000, show_default=True, help="Samples of each prior at the end.")
@click.option("--seed", default=0, show_default=True)
@click.option("--workers", default=1, show_default=True)
@click.option("--out", required=True, type=click.Path(path_type=Path))
@click.argument("overrides", nargs=-1)
def main(
    n: int,
    temperatures: tuple[float, ...],
    prior: str | None,
    refiner: str | None,
    train: Path,
    hull: Path,
    references: Path,
    reward: str,
    judge: str,
    judged: int,
    seed: int,
    workers: int,
    out: Path,
    overrides: tuple[str, ...],
) -> None:
    """Tune in rounds, and print a table for each potential."""
    known = {"train": train, "hull": hull, "references": references, "workers": workers}
    priors = {"start": resolve(prior, BUNDLED_PRIOR)}
    last = priors["start"]
    for number, temperature in enumerate(temperatures, start=1):
        folder = out / f"round{number}"
        folder.mkdir(parents=True, exist_ok=True)
        run_sampling(
            n,
            out=folder / "samples",
            prior=last,
            refiner=refiner,
            temperature=temperature,
            seed=seed + number,
            workers=workers,
        )
        evaluate(folder / "samples", out=folder / "judged", potential=reward, **known)
        last = tune_prior(
            samples=folder / "samples",
            evaluation=folder / "judged",
            prior=last,
            out=folder / "tuned",
            overrides=overrides,
            seed=seed,
            resume=True,
        )
        priors[f"round {number}"] = last
    final = out / "final"
    final.mkdir(parents=True, exist_ok=True)
    runs = []
    for name, folder in priors.items():
        runs.append(final / name.replace(" ", ""))
        run_sampling(
            judged,
            out=runs[-1],
            prior=folder,
            refiner=refiner,
            temperature=1.0,
            seed=seed + 1000,
            workers=workers,
        )
    texts = read_start_texts(out / "round1" / "tuned" / START_FILE)
    apart = [divergence(folder, texts, priors["start"]) for folder in priors.values()]
    for potential in (reward, judge):
        result = evaluate(runs, out=final / f"by-{potential}", potential=potential, **known)
        click.echo(f"\nby {potential}, {judged} samples each")
        click.echo(f"| prior | {' | '.join(RATES)} | KL |")
        click.echo("|---" * (len(RATES) + 2) + "|")
        for name, measured, far in zip(priors, result.sets, apart, strict=True):
            click.echo(f"| {name} | {' | '.join(cells(measured))} | {far} |")


if __name__ == "__main__":
    main()
