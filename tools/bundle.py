"""Bundle a trained pair with the package: bfloat16 weights, settings and model cards.

python tools/bundle.py weights --prior runs/prior/model --refiner runs/refiner/model
python benchmarks/match_rate.py ../shared/data/mp20/val.parquet --out figures.json
python tools/bundle.py cards --prior-recipe runs/prior --refiner-recipe runs/refiner figures.json

`tools/release.sh` does all of it.
"""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import torch
import yaml

from flowllm.hub.card import Measurement, write_card
from flowllm.hub.locate import BUNDLED_PRIOR
from flowllm.runs.identity import read_identity
from flowllm.training.folder import RUN_FILE
from llm_prior import Prior
from rfm import Refiner

SUMMARIES = {
    "prior": "A LLaMA decoder that writes inorganic crystals as text (CrystalLLM, arXiv "
    "2402.04379): the first half of FlowLLM (arXiv 2410.23405).",
    "refiner": "A velocity network that moves the atoms and the cell of a rough crystal to a "
    "stable structure by Riemannian flow matching: the second half of FlowLLM (arXiv 2410.23405).",
}
DATA = {
    "prior": "The training split of MP-20 (Xie et al. 2021, arXiv 2110.06197) and additional "
    "crystals of at most 20 atoms, all from the Materials Project (Jain et al. 2013, APL Materials "
    "1, 011002), licence CC BY 4.0.",
    "refiner": "The training split of MP-20 (Xie et al. 2021, arXiv 2110.06197), from the "
    "Materials Project (Jain et al. 2013, APL Materials 1, 011002), licence CC BY 4.0, each "
    "crystal paired with samples of a prior.",
}
REDUCED = " Every crystal is reduced to its Niggli cell first."
USE = (
    "Research and teaching: proposals of inorganic crystals for calculations, with `flowllm "
    "sample` or `flowllm.FlowLLM.from_pretrained()`. The model is not a source of facts about "
    "existing materials."
)
LIMITS = (
    "The model makes ordered bulk crystals of at most 20 atoms in the cell, with elements up to "
    "fermium. It was trained on calculated crystals near the convex hull and shares their biases "
    "(many oxides and intermetallics). Temperature, pressure, magnetism and charge are not taken "
    "into account. A generated crystal need not be stable, and it may be impossible to make: relax "
    "it with a potential or with DFT before use. About one in forty validation targets has a "
    "near-duplicate among the additional crystals that the prior was trained on."
)
SHOWN = {  # figures of `flowllm evaluate` that go into the card
    "structural_validity",
    "compositional_validity",
    "valid",
    "uniqueness",
    "novelty",
    "stable_0",
    "stable_0.1",
    "sun",
    "metastable_sun",
}
PATH = click.Path(path_type=Path)


@click.group()
def main() -> None:
    """Bundle a trained pair."""


@main.command()
@click.option("--prior", required=True, type=PATH)
@click.option("--refiner", required=True, type=PATH)
@click.option(
    "--choice",
    type=PATH,
    help="JSON of benchmarks/match_rate.py; the slope with the highest match rate becomes the "
    "refiner's default.",
)
@click.option("--out", type=PATH, default=BUNDLED_PRIOR.parent)
def weights(prior: Path, refiner: Path, choice: Path | None, out: Path) -> None:
    """Write both models in bfloat16 to OUT/prior and OUT/refiner (default: the package's)."""
    trained = Refiner.from_pretrained(refiner)
    if choice is not None:
        best = max(_refined(choice), key=lambda result: result["match_rate"]["value"])
        trained.config.integration = replace(
            trained.config.integration, position_slope=best["position_slope"], steps=best["steps"]
        )
        click.echo(f"chosen: {best['name']}")
    models: dict[str, Prior | Refiner] = {"prior": Prior.from_pretrained(prior), "refiner": trained}
    for name, model in models.items():
        shutil.rmtree(out / name, ignore_errors=True)
        model.save_pretrained(out / name, dtype=torch.bfloat16)
    size = sum(p.stat().st_size for name in models for p in (out / name).rglob("*") if p.is_file())
    click.echo(f"{out}: {size / 1e6:.1f} MB")


@main.command()
@click.option(
    "--prior-recipe",
    "prior_recipes",
    required=True,
    multiple=True,
    help="Recipe of the prior: a run folder, or a text. Repeat it for trainings in a row.",
)
@click.option(
    "--refiner-recipe",
    "refiner_recipes",
    required=True,
    multiple=True,
    help="Recipe of the refiner, likewise.",
)
@click.option("--out", type=PATH, default=BUNDLED_PRIOR.parent)
@click.argument("figures", nargs=-1, type=PATH)
def cards(
    prior_recipes: tuple[str, ...],
    refiner_recipes: tuple[str, ...],
    out: Path,
    figures: tuple[Path, ...],
) -> None:
    """Write both model cards.

    FIGURES are the JSON of benchmarks/match_rate.py and the metrics.json of `flowllm evaluate`.
    """
    measurements = [_measurement(file) for file in figures]
    for name, recipes, tag in (
        ("prior", prior_recipes, "llama"),
        ("refiner", refiner_recipes, "flow-matching"),
    ):
        card = write_card(
            out / name,
            name=f"flowllm-mp20-{out.name}-{name}",
            license="mit",
            datasets=["mp_20"],
            tags=["crystals", "materials", tag],
            sections={
                "": SUMMARIES[name],
                "Data": DATA[name] + REDUCED,
                "Intended use": USE,
                "Recipe": "\n\nThen: ".join(map(_recipe, recipes)),
                "Limits": LIMITS,
            },
            measurements=measurements,
        )
        click.echo(card)


def _recipe(text: str) -> str:
    if not os.path.isdir(text):  # pathlib raises for a text that is too long to be a name
        return text
    folder = Path(text)
    run, info = read_identity(folder, RUN_FILE)
    data = ", ".join(f"{d['name']} (sha256 {d['sha256'][:8]})" for d in run["data"])
    recipe = yaml.safe_dump(info["recipe"], sort_keys=False)
    return f"`flowllm {run['stage']}` on {data}, seed {run['seed']}:\n\n```yaml\n{recipe}```"


def _refined(file: Path) -> list[dict[str, Any]]:
    results = json.loads(file.read_text())["results"]
    return [r for r in results if "position_slope" in r and r["samples"] == 1]


def _measurement(file: Path) -> Measurement:
    content = json.loads(file.read_text())
    if "results" in content:
        return Measurement(
            what="Validation targets of MP-20, formula and number of atoms given, one sample each "
            "(StructureMatcher 0.5, 10, 0.3)",
            dataset="MP-20 validation split",
            command=f"python benchmarks/match_rate.py val.parquet -n {content['targets']}",
            figures={
                f"{figure.replace('_', ' ')}, {result['name'].split(' (')[0]}": result[figure]
                for result in content["results"]
                for figure in ("match_rate", "rmsd")
            },
        )
    (measured,) = content["sets"]
    return Measurement(
        what="Refined samples without conditions, novelty against the training split of MP-20",
        dataset=f"MP-20, {measured['num_generated']} samples",
        command=f"flowllm sample -n {measured['num_generated']}; flowllm evaluate --train"
        + (" --potential chgnet --hull --references" if "sun" in measured["metrics"] else ""),
        figures={k: v for k, v in measured["metrics"].items() if k in SHOWN},
    )


if __name__ == "__main__":
    main()
