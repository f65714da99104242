"""Put a trained pair into the package: bfloat16 weights, settings, and a model card each.

python tools/bundle.py weights --prior runs/prior/model --refiner runs/refiner/model
python benchmarks/match_rate.py ../shared/data/mp20/val.parquet --out figures.json
python tools/bundle.py cards --prior-recipe "..." --refiner-recipe "..." figures.json
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import click
import torch

from flowllm.models import BUNDLED_PRIOR, BUNDLED_REFINER
from llm_prior import Prior
from rfm import Refiner

HEAD = """---
license: mit
library_name: flowllm-crystal
tags: [crystals, materials, {tag}]
---

# FlowLLM bundled {name}, v0

{what}

**Data.** Materials Project (CC BY 4.0): {data} Every crystal is reduced to its Niggli cell first.

**Recipe.** {recipe}

**Figures** (`python benchmarks/match_rate.py ../shared/data/mp20/val.parquet -n {targets}`:
targets from the validation split of MP-20, formula and number of atoms given, 95% intervals; about
one in forty of them has a near-duplicate among the prior's further crystals):

{figures}

**Limits.** At most 20 atoms. A small model trained on one CPU core: a first version that
shows the whole way, not a match for the published models. It knows nothing of
pressure, temperature, magnetism or charge, and nothing says that its crystals are stable; relax
them with a potential or with DFT before you believe them.
"""


@click.group()
def main() -> None:
    """Bundle a trained pair."""


@main.command()
@click.option("--prior", required=True, type=click.Path(path_type=Path))
@click.option("--refiner", required=True, type=click.Path(path_type=Path))
def weights(prior: Path, refiner: Path) -> None:
    """Write both models into flowllm/bundled/ in bfloat16."""
    models = {
        BUNDLED_PRIOR: Prior.from_pretrained(prior),
        BUNDLED_REFINER: Refiner.from_pretrained(refiner),
    }
    for folder, model in models.items():
        shutil.rmtree(folder, ignore_errors=True)
        model.save_pretrained(folder, dtype=torch.bfloat16)
    size = sum(p.stat().st_size for p in BUNDLED_PRIOR.parent.rglob("*") if p.is_file())
    click.echo(f"{BUNDLED_PRIOR.parent}: {size / 1e6:.1f} MB")


@main.command()
@click.option("--prior-recipe", required=True, help="How the prior was trained.")
@click.option("--refiner-recipe", required=True, help="How the refiner was trained.")
@click.argument("figures", type=click.Path(path_type=Path))
def cards(prior_recipe: str, refiner_recipe: str, figures: Path) -> None:
    """Write the model cards, with what benchmarks/match_rate.py measured of the bundled pair."""
    measured = json.loads(figures.read_text())
    table = "\n".join(f"- {name}: {value}" for name, value in measured.items())
    for folder, tag, what, data, recipe in (
        (
            BUNDLED_PRIOR,
            "llama",
            "A LLaMA decoder that writes crystals as text (CrystalLLM, arXiv 2402.04379).",
            "the training split of MP-20 and further crystals with at most 20 atoms.",
            prior_recipe,
        ),
        (
            BUNDLED_REFINER,
            "flow-matching",
            "A velocity network that moves atoms and cell of a rough crystal "
            "(FlowLLM, arXiv 2410.23405).",
            "the training split of MP-20, paired with samples of the bundled prior.",
            refiner_recipe,
        ),
    ):
        card = HEAD.format(
            tag=tag,
            name=folder.name,
            what=what,
            data=data,
            recipe=recipe,
            targets=measured["targets"],
            figures=table,
        )
        (folder / "README.md").write_text(card)


if __name__ == "__main__":
    main()
