"""Put a trained pair into the package: bfloat16 weights, settings, and a model card each.

    python tools/bundle.py --prior runs/prior/model --refiner runs/refiner/model figures.json

`figures.json` is what `benchmarks/match_rate.py --out` wrote for this pair.
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

**Figures** (`python benchmarks/match_rate.py ../shared/data/mp20/val.parquet -n {targets}`: MP-20
validation targets that the training never saw, formula and number of atoms given, 95% intervals):

{figures}

**Limits.** At most 20 atoms. A small model trained for about an hour on one CPU core: a first
version that shows the whole way, not a match for the published models. It knows nothing of
pressure, temperature, magnetism or charge, and nothing says that its crystals are stable; relax
them with a potential or with DFT before you believe them.
"""


@click.command()
@click.option("--prior", required=True, type=click.Path(path_type=Path))
@click.option("--refiner", required=True, type=click.Path(path_type=Path))
@click.option("--recipe", "recipes", nargs=2, required=True, help="Recipe lines of the two cards.")
@click.argument("figures", type=click.Path(path_type=Path))
def main(prior: Path, refiner: Path, recipes: tuple[str, str], figures: Path) -> None:
    """Write both folders of flowllm/bundled/."""
    measured = json.loads(figures.read_text())
    table = "\n".join(f"- {name}: {value}" for name, value in measured.items())
    for folder in (BUNDLED_PRIOR, BUNDLED_REFINER):
        shutil.rmtree(folder, ignore_errors=True)

    language_model = Prior.from_pretrained(prior)
    language_model.info = {"recipe": recipes[0]}
    language_model.save_pretrained(BUNDLED_PRIOR, dtype=torch.bfloat16)
    Refiner.from_pretrained(refiner).save_pretrained(BUNDLED_REFINER, dtype=torch.bfloat16)
    for folder, tag, what, data, recipe in (
        (
            BUNDLED_PRIOR,
            "llama",
            "A LLaMA decoder that writes crystals as text (CrystalLLM, arXiv 2402.04379).",
            "the 26,244 training crystals of MP-20 and 36,070 further ones with at most 20 atoms.",
            recipes[0],
        ),
        (
            BUNDLED_REFINER,
            "flow-matching",
            "A velocity network that moves atoms and cell of a rough crystal "
            "(FlowLLM, arXiv 2410.23405).",
            "training crystals of MP-20, paired with samples of the bundled prior.",
            recipes[1],
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
    size = sum(p.stat().st_size for p in BUNDLED_PRIOR.parent.rglob("*") if p.is_file())
    click.echo(f"{BUNDLED_PRIOR.parent}: {size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
