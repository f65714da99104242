"""Effect on S.U.N. of drawing novel compositions only, and of best-of-K sampling.

    python benchmarks/novelty.py -n 1000 --train ../shared/data/mp20/train.parquet \\
        --hull ../shared/data/mp20/hull_entries.parquet \\
        --references ../shared/data/mp_reference/mp_elemental_ref_energies_per_atom.json \\
        --out runs/novelty

For each lever, refined samples are drawn without conditions and with the same seed. `flowllm
evaluate` then relaxes all of them with --potential. The table has rates with 95% intervals, and the
seconds of sampling per crystal. The same command resumes after a kill; the seconds then cover only
the remaining crystals. If --rank-potential is also --potential, the rows ranked by energy come out
too well, because the same potential chooses and judges.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import click

from flowllm.evaluation.evaluate import evaluate
from flowllm.generation.sampling_run import run_sampling

RATES = ("valid", "uniqueness", "novelty", "stable_0", "stable_0.1", "sun", "metastable_sun")


def levers(train: Path, best_of: int, potential: str) -> dict[str, dict[str, Any]]:
    """Return the arguments of `run_sampling` for each lever, by the name of its folder."""
    prior, flow = ({"best_of": best_of, "rank": rank} for rank in ("prior", "flow"))
    energy = {"best_of": best_of, "rank": "energy", "potential": potential}
    return {
        "none": {},
        "novel": {"novel_to": train},
        f"best-of-{best_of}-prior": prior,
        f"best-of-{best_of}-flow": flow,
        f"best-of-{best_of}-energy": energy,
        f"novel-best-of-{best_of}-energy": {"novel_to": train, **energy},
    }


@click.command()
@click.option("-n", "n", default=1000, show_default=True, help="Crystals for each lever.")
@click.option("--best-of", default=4, show_default=True)
@click.option("--only", multiple=True, help="Only these levers, by the names of their folders.")
@click.option("--prior", help="Folder; default: the bundled one.")
@click.option("--refiner", help="Folder; default: the bundled one.")
@click.option("--temperature", default=0.7, show_default=True)
@click.option("--train", required=True, type=click.Path(path_type=Path))
@click.option("--hull", required=True, type=click.Path(path_type=Path))
@click.option("--references", required=True, type=click.Path(path_type=Path))
@click.option("--potential", default="chgnet", show_default=True)
@click.option("--rank-potential", default="chgnet", show_default=True)
@click.option("--seed", default=0, show_default=True)
@click.option("--workers", default=1, show_default=True)
@click.option("--device", default="auto", show_default=True, help="For sampling.")
@click.option("--out", required=True, type=click.Path(path_type=Path))
def main(
    n: int,
    best_of: int,
    only: tuple[str, ...],
    prior: str | None,
    refiner: str | None,
    temperature: float,
    train: Path,
    hull: Path,
    references: Path,
    potential: str,
    rank_potential: str,
    seed: int,
    workers: int,
    device: str,
    out: Path,
) -> None:
    """Print the table for one pair of models."""
    wanted = {
        k: v for k, v in levers(train, best_of, rank_potential).items() if not only or k in only
    }
    out.mkdir(parents=True, exist_ok=True)
    seconds, refused = {}, {}
    for name, arguments in wanted.items():
        start = time.perf_counter()
        outcome = run_sampling(
            n,
            out=out / name,
            prior=prior,
            refiner=refiner,
            seed=seed,
            temperature=temperature,
            workers=workers,
            device=device,
            **arguments,
        )
        seconds[name] = (time.perf_counter() - start) / n
        refused[name] = outcome.rejects["known_formula"]
    result = evaluate(
        [out / name for name in wanted],
        out=out / f"evaluation-{'-'.join(only) or 'all'}",
        train=train,
        hull=hull,
        references=references,
        potential=potential,
        workers=workers,
    )
    click.echo(f"| lever | {' | '.join(RATES)} | known, drawn again | s/crystal |")
    click.echo("|---" * (len(RATES) + 3) + "|")
    for name, measured in zip(wanted, result.sets, strict=True):
        cells = []
        for rate in RATES:
            found = measured.metrics.get(rate)
            if found is None or found.value is None:
                cells.append("-")
                continue
            cells.append(f"{found.value:.1%} [{found.low:.1%}, {found.high:.1%}]")
        cells += [str(refused[name]), f"{seconds[name]:.2f}"]
        click.echo(f"| {name} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
