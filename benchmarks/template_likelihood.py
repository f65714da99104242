"""Does the likelihood of a prior help to rank templates?

    python benchmarks/template_likelihood.py ../shared/data/mp20/val.parquet -n 400

For each target the first eight proposals (composition and number of atoms of its cell
given) are scored by the prior: the log-likelihood of the discrete part of their texts (space group,
elements and Wyckoff letters of the orbits), and of the whole text, with the same conditions in the
prompt. The first proposal by

    log p(gene) of the templates + w * log-likelihood

is compared with the target (StructureMatcher 0.5, 10, 0.3), for several weights w. The targets are
not among those of `benchmarks/templates.py` with its defaults.
"""

from __future__ import annotations

import random
import time
from pathlib import Path

import click
import numpy as np
import torch

from flowllm.crystals.crystal import ignore_missing_electronegativity
from flowllm.crystals.formulas import formula_units
from flowllm.crystals.io import read
from flowllm.hub.locate import BUNDLED_PRIOR, resolve
from flowllm.metrics.csp import rms_distance
from flowllm.metrics.intervals import wilson
from flowllm.templates.proposals import MAX_ATOMS, Proposal, propose_templates
from llm_prior import Prior
from llm_prior.dataset import IGNORED, Collator, tokenize
from llm_prior.layouts.wyckoff import WyckoffLayout
from llm_prior.wyckoff.text import to_text

SCORED = 8  # proposals for a target
WEIGHTS = (0.0, 0.05, 0.1, 0.2, 0.3, 0.5, 1.0, 2.0)
BATCH = 64


@torch.inference_mode()
def log_likelihoods(prior: Prior, proposals: list[Proposal]) -> np.ndarray:
    """Return the log-likelihoods (N, 2) of the discrete part and of the whole text, in nats."""
    layout = prior.layout
    assert isinstance(layout, WyckoffLayout)
    collate, found = Collator(prior.tokenizer.pad_token_id), np.empty((len(proposals), 2))
    for start in range(0, len(proposals), BATCH):
        examples, ends = [], []
        for proposal in proposals[start : start + BATCH]:
            crystal = proposal.crystal
            text = to_text(crystal, layout.wyckoff_format)
            formula = proposal.structure.composition.reduced_formula
            prompt = layout.prompt({"formula": formula, "num_atoms": crystal.num_atoms})
            ids, labels = tokenize(prior.tokenizer, prompt, text)
            examples.append({"ids": "", "input_ids": ids, "labels": labels})
            discrete = "\n".join(text.split("\n")[: 1 + len(crystal.orbits)])
            _, part = tokenize(prior.tokenizer, prompt, discrete)
            ends.append(sum(label != IGNORED for label in part) - 1)  # without the end of sequence
        batch = collate(examples)
        logits = prior.model(
            input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False
        ).logits[:, :-1]
        for row, end in enumerate(ends):
            targets = batch["labels"][row, 1:]
            answer = targets != IGNORED
            steps = logits[row][answer].float().log_softmax(-1)
            logs = steps.gather(1, targets[answer][:, None])[:, 0]
            found[start + row] = logs[:end].sum(), logs.sum()
    return found


@click.command()
@click.argument("data", type=click.Path(path_type=Path))
@click.option("-n", default=400, show_default=True, help="Targets, drawn at random.")
@click.option("--prior", "name", help="Folder or hub id of a prior of the layout wyckoff.")
@ignore_missing_electronegativity()
def main(data: Path, n: int, name: str | None) -> None:
    """Print the match rates of the first proposals for DATA."""
    torch.set_num_threads(1)
    prior = Prior.from_pretrained(resolve(name, BUNDLED_PRIOR), device="cpu")
    crystals = read(data, max_atoms=MAX_ATOMS, skip_invalid=True)
    others = {crystal.id for crystal in random.Random(0).sample(crystals, 1000)}
    drawn = random.Random(1).sample(crystals, len(crystals))
    targets = [crystal for crystal in drawn if crystal.id not in others][:n]
    rows, seconds = [], 0.0
    for target in targets:
        composition = target.structure.composition
        units = formula_units(composition)
        proposals = propose_templates(composition.formula, n=SCORED, formula_units=[units])
        if not proposals:
            continue
        start = time.process_time()
        scores = log_likelihoods(prior, proposals)
        seconds += time.process_time() - start
        logs = np.array([proposal.log_probability for proposal in proposals])
        found = [rms_distance(proposal.structure, target.structure) for proposal in proposals]
        rows.append((logs, scores, found))
    click.echo(f"{1000 * seconds / len(rows):.0f} ms of CPU for the likelihoods of a target")
    for column, what in enumerate(("discrete part", "whole text")):
        for weight in WEIGHTS:
            first = [found[int(np.argmax(logs + weight * s[:, column]))] for logs, s, found in rows]
            met = [distance for distance in first if distance is not None]
            low, high = wilson(len(met), len(targets))
            click.echo(
                f"{what}, w = {weight}: {100 * len(met) / len(targets):.1f}% "
                f"[{100 * low:.1f}, {100 * high:.1f}], RMSD {np.mean(met):.3f}"
            )


if __name__ == "__main__":
    main()
