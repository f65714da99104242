"""Choices of the prior: one table, each row a prior trained for the same time with one change.

    OMP_NUM_THREADS=1 python benchmarks/prior_choices.py TRAIN VALIDATION --extra MP_EXTRA \\
        --recipe llm/wyckoff --minutes 5 --out choices

Every row trains a recipe from random weights, with the change that its name describes. After a
warm-up of 100 steps the learning rate is constant, or falls along a cosine with --cosine. Two
things are then measured:

- the negative log-likelihood of validation crystals with the composition given, in nats per
  crystal, with the coordinates of the file;
- one constrained sample for each of other validation targets, with the composition given: the match
  rate without refining (StructureMatcher with stol 0.5, angle_tol 10, ltol 0.3), the RMSD of the
  matches, the error of the volumes, and texts per second.

Times are processor times, as in `llm_curves.py`.

The nats of rows with other texts cannot be compared with the others: three decimals add up to 3 n
ln 10 nats for n atoms, translated crystals cost up to 3 ln 100 = 13.8 nats for the origin, and
texts over the normalizer up to the logarithm of its order. The match rates of all rows can be
compared. A row that is in OUT.csv is skipped; its settings must be the same.
"""

from __future__ import annotations

import csv
import math
import random
import re
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import click
import numpy as np
import torch
from llm_curves import curve, next_token_loss
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from flowllm.crystals.cells import reduce_cell
from flowllm.crystals.io import Crystal, read
from flowllm.errors import InvalidCrystal
from flowllm.metrics.csp import rms_distance
from flowllm.metrics.intervals import wilson
from flowllm.training.recipes import PriorRecipe, load_recipe
from llm_prior import Prior, composition_conditions, propose
from llm_prior.dataset import IGNORED
from llm_prior.tokenizer import compact_tokenizer

LLAMA = "LLaMA-2 tokenizer"
MP_20_ALONE = "MP-20 alone"
BATCH_MEANS = "all batches of the same weight"
WIDTH = "model.architecture.hidden_size={0},model.architecture.intermediate_size={1}"
SOFT_LABELS = {
    "soft labels": {"coords": True, "lengths": False},
    "soft lengths": {"coords": False, "lengths": True},
    "soft labels and lengths": {"coords": True, "lengths": True},
}
_NEIGHBOUR = 0.1  # probability of each of the two bins beside a coordinate
_WIDTH = 0.15  # Angstrom; standard deviation of the label of a cell length
_COORD = re.compile(r"([\n ])(0\.[0-9]+)")
_LENGTH = re.compile(r"([\n ])([1-9][0-9]*\.[0-9])")
VARIANTS = {
    "llm/release": {
        "llm/release": "tasks.translated=0",
        "width 128": WIDTH.format(128, 352),
        "width 384": WIDTH.format(384, 1056),
        "three decimals": "text.coord_decimals=3",
        "all translated": "tasks.translated=1",
        MP_20_ALONE: "",
        LLAMA: "",
    },
    "llm/wyckoff": {
        "llm/wyckoff": "",
        BATCH_MEANS: "",
        "energies left out": "tasks.near_hull=null,tasks.one_property=0",
        **dict.fromkeys(SOFT_LABELS, ""),
        "half drawn over the normalizer": "tasks.augmented=0.5",
        "all drawn over the normalizer": "tasks.augmented=1",
        MP_20_ALONE: "",
        "width 128": WIDTH.format(128, 352) + ",model.architecture.num_attention_heads=2",
        "width 256": WIDTH.format(256, 704) + ",model.architecture.num_attention_heads=4",
        "bins of 0.005": "text.coord_decimals=3,text.coord_bins=200",
        "learning rate 1e-3": "training.learning_rate=1e-3",
        "learning rate 5e-3": "training.learning_rate=5e-3",
        "batch 32": "training.batch_size=32",
        "llm/wyckoff, layout sites": "text.layout=sites,tasks.translated=0",
    },
}


class SoftLabelLoss:
    """Cross entropy whose labels lend some probability to neighbouring numbers.

    The label of a coordinate gives `_NEIGHBOUR` to each of the bins beside it, around the torus.
    The label of a cell length is a normal distribution of `_WIDTH` Angstrom over the lengths within
    three widths.

    Args:
        recipe: of a prior with the compact tokenizer.
        coords: soften coordinates.
        lengths: soften cell lengths.
    """

    def __init__(self, recipe: PriorRecipe, *, coords: bool, lengths: bool) -> None:
        vocabulary = compact_tokenizer(recipe.text).get_vocab()
        size = len(vocabulary)
        near = round(3 * _WIDTH * 10**recipe.text.length_decimals) if lengths else 1
        self.tokens = torch.arange(size)[:, None].repeat(1, 2 * near + 1)  # (V, 2 near + 1)
        self.weights = torch.zeros(size, 2 * near + 1)
        self.weights[:, near] = 1.0
        for space in "\n ":
            if coords:
                names = [t for t in vocabulary if (m := _COORD.fullmatch(t)) and m[1] == space]
                bins = torch.tensor([vocabulary[t] for t in sorted(names)])
                for step in (-1, 1):
                    self.tokens[bins, near + step] = bins.roll(-step)
                    self.weights[bins, near + step] = _NEIGHBOUR
                self.weights[bins, near] = 1 - 2 * _NEIGHBOUR
            if lengths:
                names = [t for t in vocabulary if (m := _LENGTH.fullmatch(t)) and m[1] == space]
                bins = torch.tensor([vocabulary[t] for t in sorted(names, key=float)])
                for step in range(-near, near + 1):
                    places = (torch.arange(len(bins)) + step).clamp(0, len(bins) - 1)
                    self.tokens[bins, near + step] = bins[places]
                    width = _WIDTH * 10**recipe.text.length_decimals
                    self.weights[bins, near + step] = math.exp(-((step / width) ** 2) / 2)
                self.weights[bins] /= self.weights[bins].sum(1, keepdim=True)

    def __call__(self, prior: Prior, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Return the mean loss of a batch."""
        inputs = {k: batch[k] for k in ("input_ids", "attention_mask", "logits_to_keep")}
        logits = prior.model(**inputs).logits.flatten(0, -2).float()  # (K, V)
        labels = batch["shift_labels"]
        known = labels != IGNORED
        logs, labels = logits[known].log_softmax(-1), labels[known]
        return -(self.weights[labels] * logs.gather(1, self.tokens[labels])).sum(1).mean()


@contextmanager
def llama_folder(tokenizer: Path, recipe: PriorRecipe) -> Iterator[str]:
    """Write a model of the recipe's size with random weights and LLaMA-2's 32,000 tokens.

    Yields:
        The folder of the model.
    """
    size = recipe.model.architecture
    assert size is not None
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=32000,
            hidden_size=size.hidden_size,
            intermediate_size=size.intermediate_size,
            num_hidden_layers=size.num_hidden_layers,
            num_attention_heads=size.num_attention_heads,
            max_position_embeddings=1024,
            tie_word_embeddings=True,
            bos_token_id=1,
            eos_token_id=2,
        )
    )
    words = PreTrainedTokenizerFast(
        tokenizer_file=str(tokenizer), bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        words.save_pretrained(folder)
        yield folder


def raw_match(prior: Prior, targets: list[Crystal]) -> tuple[list[float], list[float], float]:
    """Return how near one constrained sample for each target is to it.

    Returns:
        The RMSD to each target that its sample matches, |V / V of the target - 1| of every sample,
        and texts per second.
    """
    start = time.process_time()
    requests = [composition_conditions(target.structure.formula) for target in targets]
    proposals = propose(prior, requests, seed=0, temperature=0.7, top_p=0.9)
    pace = sum(p.attempts for p in proposals) / (time.process_time() - start)
    met, volumes = [], []
    for proposal, target in zip(proposals, targets, strict=True):
        try:
            made = proposal.structure and reduce_cell(proposal.structure)
        except InvalidCrystal:
            made = None
        if made:
            volumes.append(abs(made.volume / target.structure.volume - 1))
        distance = made and rms_distance(made, target.structure)
        if distance is not None:
            met.append(distance)
    return met, volumes, pace


@click.command()
@click.argument("data", type=click.Path(exists=True, path_type=Path))
@click.argument("validation", type=click.Path(exists=True, path_type=Path))
@click.option("--extra", type=click.Path(exists=True, path_type=Path), required=True)
@click.option("--llama-tokenizer", type=click.Path(exists=True, path_type=Path))
@click.option(
    "--minutes", default=5.0, show_default=True, help="Processor time of training for each row."
)
@click.option("--scored", default=256, show_default=True, help="Crystals for the likelihood.")
@click.option("--targets", default=500, show_default=True, help="Crystals for the match rate.")
@click.option(
    "--recipe", "base", default="llm/release", show_default=True, type=click.Choice(list(VARIANTS))
)
@click.option("--cosine", is_flag=True, help="Let the learning rate fall along a cosine.")
@click.option("--only", multiple=True, help="Row; default: all rows of the recipe.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="OUT.csv")
def main(
    data: Path,
    validation: Path,
    extra: Path,
    llama_tokenizer: Path | None,
    minutes: float,
    scored: int,
    targets: int,
    base: str,
    cosine: bool,
    only: tuple[str, ...],
    out: Path,
) -> None:
    """Print and write the table."""
    torch.set_num_threads(1)
    table = out.with_suffix(".csv")
    settings = {"cpu_minutes": str(minutes), "scored": str(scored), "targets": str(targets)}
    settings["cosine"] = str(cosine)
    done: set[str] = set()
    if table.exists():
        with table.open(newline="") as file:
            for row in csv.DictReader(file):
                if any(row.get(key) != value for key, value in settings.items()):
                    raise click.UsageError(
                        f"{table} has rows of other settings; give another --out"
                    )
                done.add(row["row"])
    crystals = read(validation)
    if len(crystals) < scored + targets:
        raise click.UsageError(f"{validation} has fewer than {scored + targets} crystals")
    drawn = random.Random(0).sample(range(len(crystals)), scored + targets)
    held_out = [crystals[k].structure for k in drawn[:scored]]
    aims = [crystals[k] for k in drawn[scored:]]
    if unknown := set(only) - set(VARIANTS[base]):
        raise click.UsageError(f"{base} has no row {unknown.pop()!r}; see VARIANTS")
    for name, changes in VARIANTS[base].items():
        if name in done or (only and name not in only):
            continue
        if name == LLAMA and llama_tokenizer is None:
            if LLAMA in only:
                raise click.UsageError(f"{LLAMA} needs --llama-tokenizer")
            continue
        overrides = ["training.warmup_steps=100", *filter(None, changes.split(","))]
        recipe = load_recipe(PriorRecipe, base, overrides)
        sets = [data] if name == MP_20_ALONE else [data, extra]
        if name == LLAMA:
            with llama_folder(llama_tokenizer, recipe) as folder:
                overrides += ["model.architecture=null", f"model.name={folder}"]
                recipe = load_recipe(PriorRecipe, base, overrides)
                rows, prior = curve(name, recipe, sets, held_out, minutes, 1, cosine=cosine)
        else:
            soft = SOFT_LABELS.get(name)
            loss = SoftLabelLoss(recipe, **soft) if soft else next_token_loss
            rows, prior = curve(
                name,
                recipe,
                sets,
                held_out,
                minutes,
                1,
                cosine=cosine,
                loss_of=loss,
                equal_weights=name != BATCH_MEANS,
            )
        met, volumes, pace = raw_match(prior, aims)
        low, high = wilson(len(met), targets)
        size = sum(weight.numel() for weight in prior.model.parameters())
        row = {
            "row": name,
            "parameters": size,
            "crystals": rows[-1]["crystals"],
            "nats": rows[-1]["nats_per_crystal"],
            "standard_error": rows[-1]["standard_error"],
            "match": f"{100 * len(met) / targets:.1f}",
            "low": f"{100 * low:.1f}",
            "high": f"{100 * high:.1f}",
            "rmsd": f"{np.mean(met) if met else float('nan'):.3f}",
            "volume_error": f"{np.median(volumes):.3f}",
            "volumes_off_by_0.2": f"{np.mean(np.array(volumes) > 0.2):.3f}",
            "texts_per_second": f"{pace:.1f}",
            **settings,
        }
        with table.open("a", newline="") as file:
            writer = csv.DictWriter(file, list(row))
            if file.tell() == 0:
                writer.writeheader()
            writer.writerow(row)
        click.echo(row)


if __name__ == "__main__":
    main()
