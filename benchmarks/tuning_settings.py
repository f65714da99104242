"""Settings of preference tuning on one judged run: what is learnt, held-out pairs, divergence.

    flowllm sample -n 200 --temperature 1 --seed 1 -o samples
    flowllm evaluate samples --train ../shared/data/mp20/train.parquet --potential chgnet \\
        --hull ../shared/data/mp20/hull_entries.parquet \\
        --references ../shared/data/mp_reference/mp_elemental_ref_energies_per_atom.json -o judged
    python benchmarks/tuning_settings.py samples judged --out runs/settings \\
        "training.learning_rate=1e-4 training.epochs=4" "training.learning_rate=3e-4"

Each further argument is one setting: changes to the recipe `llm/tune` on top of 30% held-out
samples. A row has the figures at the end (`flowllm.training.preference.progress`), and processor
seconds and the largest memory so far. The trial in docs/tuning.md took the first 129 of the 200
samples.
"""

from __future__ import annotations

import json
import resource
import time
from pathlib import Path

import click

from flowllm.training.tuning import tune_prior

FIGURES = ("margin", "accuracy", "chosen", "held_out_accuracy", "held_out_chosen", "kl", "kl_error")


@click.command()
@click.argument("samples", type=click.Path(path_type=Path))
@click.argument("evaluation", type=click.Path(path_type=Path))
@click.argument("settings", nargs=-1, required=True)
@click.option("--prior", help="Folder; default: the bundled one.")
@click.option("--out", required=True, type=click.Path(path_type=Path))
def main(
    samples: Path, evaluation: Path, settings: tuple[str, ...], prior: str | None, out: Path
) -> None:
    """Print the table."""
    click.echo(f"| setting | {' | '.join(FIGURES)} | s | GB |")
    click.echo("|---" * (len(FIGURES) + 3) + "|")
    for number, setting in enumerate(settings):
        start = time.process_time()
        folder = out / str(number)
        tune_prior(
            samples=samples,
            evaluation=evaluation,
            prior=prior,
            out=folder,
            overrides=["preference.held_out=0.3", *setting.split()],
        )
        figures = json.loads((folder / "run.json").read_text())["info"]["figures"]
        cells = [f"{figures[name]:.3f}" if name in figures else "-" for name in FIGURES]
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
        seconds = time.process_time() - start
        click.echo(f"| {setting} | {' | '.join(cells)} | {seconds:.0f} | {memory:.2f} |")


if __name__ == "__main__":
    main()
