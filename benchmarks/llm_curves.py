"""Held-out loss against training time: `llm/small` from random weights and LoRA on SmolLM2.

    OMP_NUM_THREADS=1 python benchmarks/llm_curves.py TRAIN VALIDATION --minutes 60 --out curves

The loss is the negative log-likelihood of a crystal with formula and number of atoms given, summed
over the tokens of its text and the end of sequence. It is in nats per crystal, so that models with
different tokenizers can be compared. Time is processor time of training, so that other load on the
machine does not count; with one thread it equals the wall time on an idle core. Scoring, building
the model, reading the data and searching symmetries are not included. The recipes are trained one
after the other, with a constant learning rate after a warm-up.
"""

from __future__ import annotations

import csv
import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import click
import numpy as np
import torch

from flowllm.crystals.descriptions import describe_crystals
from flowllm.crystals.io import read
from flowllm.training.epochs import VirtualEpochs
from flowllm.training.recipes import PriorRecipe, load_recipe
from llm_prior import Collator, CrystalTextDataset, Prior
from llm_prior.dataset import IGNORED
from llm_prior.scoring import log_likelihood

RECIPES = ("llm/small", "llm/smollm2-135m")

Loss = Callable[[Prior, Mapping[str, torch.Tensor]], torch.Tensor]


def next_token_loss(prior: Prior, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Return the mean cross entropy of the answers' tokens, as in training.

    Args:
        prior: the prior.
        batch: of a `Collator`.
    """
    loss: torch.Tensor = prior.model(**batch).loss
    return loss


def curve(
    name: str,
    recipe: PriorRecipe,
    data: Sequence[Path],
    held_out: list,
    minutes: float,
    points: int,
    *,
    cosine: bool = False,
    loss_of: Loss = next_token_loss,
    equal_weights: bool = True,
) -> tuple[list[dict], Prior]:
    """Train one recipe and return its losses and the trained prior.

    Args:
        name: name of the recipe in the results.
        recipe: the recipe.
        data: files of training crystals.
        held_out: crystals for the loss.
        minutes: processor time of training.
        points: number of losses after the first, at equal intervals of time.
        cosine: let the learning rate fall to 0 along a cosine of the processor time.
        loss_of: the training loss of a batch, a mean over its labels.
        equal_weights: give all labels the same weight, as `flowllm train-llm` does; otherwise all
            batches, which hold texts of similar length, have the same weight.
    """
    training = recipe.training
    prior = Prior.build(recipe.model, recipe.text)
    prior.model.set_attn_implementation("eager")
    rows = [
        (c.id, c.structure, c.properties)
        for path in data
        for c in read(path, skip_invalid=True, max_atoms=recipe.text.max_atoms)
    ]
    rows, described = describe_crystals(rows, recipe.text, skip_invalid=True)
    examples = CrystalTextDataset(rows, prior.tokenizer, recipe.text, recipe.tasks, described)
    draws = VirtualEpochs(examples, epochs=1000, batch_size=training.batch_size, seed=0)
    batches = torch.utils.data.DataLoader(
        draws, training.batch_size, collate_fn=Collator(prior.tokenizer.pad_token_id)
    )
    learnt = [weight for weight in prior.model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(
        learnt,
        lr=training.learning_rate,
        betas=(0.9, training.beta2),
        weight_decay=training.weight_decay,
        fused=True,
    )
    labels_per_draw = examples.labels_per_draw()
    found: list[dict] = []
    spent, seen, tokens = 0.0, 0, 0

    def rate(step: int) -> float:
        """Return the factor of the learning rate."""
        warm = min(1.0, (step + 1) / max(1, int(training.warmup_steps)))
        fallen = (1 + math.cos(math.pi * spent / (60 * minutes))) / 2
        return warm * (fallen if cosine else 1)

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)

    def score() -> None:
        prior.model.eval()
        scores = log_likelihood(prior, held_out, conditions=("formula", "num_atoms"))
        nats = -np.array([result.log_likelihood for result in scores])
        found.append(
            {
                "recipe": name,
                "minutes": round(spent / 60, 3),
                "nats_per_crystal": round(float(nats.mean()), 3),
                "standard_error": round(float(nats.std() / len(nats) ** 0.5), 3),
                "crystals": seen,
                "tokens": tokens,
            }
        )
        click.echo(json.dumps(found[-1]), err=True)
        prior.model.train()

    torch.manual_seed(0)
    score()
    start = time.process_time()
    for number, batch in enumerate(batches, start=1):
        batch.pop("ids")
        with torch.autocast("cpu", torch.bfloat16, enabled=training.bf16):
            loss = loss_of(prior, batch)
        if equal_weights:
            labels = int((batch["shift_labels"] != IGNORED).sum())
            loss = loss * labels / (labels_per_draw * len(batch["labels"]))
        (loss / training.gradient_accumulation).backward()
        seen, tokens = seen + len(batch["labels"]), tokens + int(batch["attention_mask"].sum())
        if number % training.gradient_accumulation == 0:
            torch.nn.utils.clip_grad_norm_(learnt, training.max_grad_norm)
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
        spent += time.process_time() - start
        if spent >= len(found) * minutes * 60 / points:
            score()
            if spent >= minutes * 60:
                break
        start = time.process_time()
    prior.model.eval()
    return found, prior


@click.command()
@click.argument("data", type=click.Path(exists=True, path_type=Path))
@click.argument("validation", type=click.Path(exists=True, path_type=Path))
@click.option("--minutes", default=60.0, show_default=True, help="Of training, for each recipe.")
@click.option("--points", default=10, show_default=True, help="Scores after the first.")
@click.option("--crystals", default=128, show_default=True, help="Of the validation file.")
@click.option("--recipe", multiple=True, default=RECIPES, show_default=True)
@click.option("--out", type=click.Path(path_type=Path), required=True, help="OUT.csv and OUT.json")
def main(
    data: Path,
    validation: Path,
    minutes: float,
    points: int,
    crystals: int,
    recipe: tuple[str, ...],
    out: Path,
) -> None:
    """Write the curves and print them as a table."""
    held_out = [crystal.structure for crystal in read(validation, limit=crystals)]
    rows = []
    for name in recipe:
        loaded = load_recipe(PriorRecipe, name)
        rows += curve(name, loaded, [data], held_out, minutes, points)[0]
    out.with_suffix(".json").write_text(json.dumps(rows, indent=1) + "\n")
    with out.with_suffix(".csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    click.echo(f"{'recipe':18} {'minutes':>8} {'nats/crystal':>14} {'crystals':>9} {'tokens':>10}")
    for row in rows:
        nats = f"{row['nats_per_crystal']:.1f} +- {row['standard_error']:.1f}"
        click.echo(
            f"{row['recipe']:18} {row['minutes']:8.2f} {nats:>14} {row['crystals']:9} "
            f"{row['tokens']:10}"
        )


if __name__ == "__main__":
    main()
