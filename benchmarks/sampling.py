"""Speed of the decoding engine compared with a plain loop over `model.generate`.

    OMP_NUM_THREADS=1 python benchmarks/sampling.py ../shared/data/mp20/val.parquet

Three methods take turns in one process. Each writes the same number of texts with the bundled
prior, one attempt each, at the same batch size and temperature:

1. transformers' `generate`, batch after batch;
2. the engine without the grammar;
3. the engine with the grammar.

They do so without conditions, and with the formula and number of atoms of validation crystals.
Rates are per second of CPU time of one thread, which depends less on other load, and in brackets
per second of wall-clock time. A text counts as a crystal if it decodes and has the requested
composition.

The numbers of atoms and the elements of the texts of two methods are compared by a permutation test
on the sum over the categories of (a - b)^2 / (a + b), which gives a p-value. The last figures are
the peak memory of processes that sample more and more texts at the same batch size (Linux).
"""

from __future__ import annotations

import json
import multiprocessing
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from transformers import GenerationConfig

from flowllm.crystals.io import read
from flowllm.hub.locate import BUNDLED_PRIOR
from llm_prior import (
    ParseError,
    Prior,
    composition_conditions,
    decode,
    propose,
)
from llm_prior.proposals import longest_answer

Requests = list[dict[str, Any]]
Texts = list[str | None]  # None: no crystal
ROUND = 2  # batches that one method writes before the next one takes its turn
PERMUTATIONS = 2000


def plain(prior: Prior, requests: Requests, seed: int, batch: int, **sampling: float) -> Texts:
    """Return texts from `model.generate`, batch after batch, with prompts padded on the left."""
    tokenizer = prior.tokenizer
    texts: Texts = []
    for at in range(0, len(requests), batch):
        prompts = [prior.layout.prompt(conditions) for conditions in requests[at : at + batch]]
        inputs = tokenizer(
            [tokenizer.bos_token + prompt for prompt in prompts],
            add_special_tokens=False,
            padding=True,
            return_tensors="pt",
        )
        settings = GenerationConfig(
            max_new_tokens=longest_answer(prior),
            do_sample=True,
            top_k=0,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            **sampling,
        )
        torch.manual_seed(seed + at)
        with torch.inference_mode():
            output = prior.model.generate(
                input_ids=inputs["input_ids"],
                attention_mask=inputs["attention_mask"],
                generation_config=settings,
            )
        for row in output[:, inputs["input_ids"].shape[1] :].tolist():
            whole = tokenizer.eos_token_id in row
            text = tokenizer.decode(row, skip_special_tokens=True)
            texts.append(text if _decodes(text, prior, whole) else None)
    return texts


def _decodes(text: str, prior: Prior, whole: bool) -> bool:
    try:
        decode(text, prior.fmt, complete=whole)
    except ParseError:
        return False
    return True


def engine(
    prior: Prior, requests: Requests, seed: int, batch: int, constrain: bool, **sampling: float
) -> Texts:
    """Return texts from `propose` with a single attempt."""
    proposals = propose(
        prior,
        requests,
        seed=seed,
        max_attempts=1,
        constrain=constrain,
        slots=batch,
        **sampling,
    )
    return [p.text if all("other_" in reason for reason in p.rejects) else None for p in proposals]


WAYS: dict[str, Callable[..., Texts]] = {
    "generate": plain,
    "engine": lambda *a, **k: engine(*a, constrain=False, **k),
    "engine, grammar": lambda *a, **k: engine(*a, constrain=True, **k),
}


class Tally:
    """Counts, contents and times of the texts of one method."""

    def __init__(self) -> None:
        self.wall = self.cpu = 0.0
        self.texts = self.decoded = self.right = 0
        self.atoms: list[int] = []
        self.elements: list[set[str]] = []

    def add(self, texts: Texts, requests: Requests, prior: Prior) -> None:
        """Count texts; this work is not part of the times."""
        for text, conditions in zip(texts, requests, strict=True):
            self.texts += 1
            if text is None:
                continue
            structure = decode(text, prior.fmt)
            symbols = [site.specie.symbol for site in structure]
            self.atoms.append(len(symbols))
            self.elements.append(set(symbols))
            self.decoded += 1
            wanted = conditions.get("formula")
            self.right += wanted is None or (
                structure.composition.reduced_formula == wanted
                and len(structure) == conditions["num_atoms"]
            )

    def figures(self) -> dict[str, str]:
        """Return the figures as text."""

        def rate(count: int) -> str:
            return f"{count / self.cpu:.1f} [{count / self.wall:.1f}]"

        return {
            "texts/s": rate(self.texts),
            "crystals/s": rate(self.right),
            "decodable": f"{100 * self.decoded / self.texts:.1f}%",
            "right": f"{100 * self.right / self.texts:.1f}%",
            "atoms": f"{np.mean(self.atoms):.2f}",
        }


def permutation_p(one: np.ndarray, two: np.ndarray, seed: int = 0) -> float:
    """Return the p-value that two samples of counts, (n, C) and (m, C), have one distribution."""
    together = np.concatenate([one, two]).astype(float)
    total = together.sum(0)
    together, total = together[:, total > 0], total[total > 0]

    def distance(rows: np.ndarray) -> float:
        first = together[rows].sum(0)
        expected = total * len(one) / len(together)
        return float(((first - expected) ** 2 / total).sum())

    rng = np.random.default_rng(seed)
    observed = distance(np.arange(len(one)))
    drawn = [distance(rng.permutation(len(together))[: len(one)]) for _ in range(PERMUTATIONS)]
    return (1 + sum(d >= observed - 1e-12 for d in drawn)) / (1 + PERMUTATIONS)


def alike(one: Tally, two: Tally) -> str:
    """Return the p-values of numbers of atoms and of elements of two methods."""
    symbols = sorted(set().union(*one.elements, *two.elements))
    most = max(*one.atoms, *two.atoms) + 1
    lengths = [np.eye(most)[tally.atoms] for tally in (one, two)]
    present = [
        np.array([[symbol in found for symbol in symbols] for found in tally.elements])
        for tally in (one, two)
    ]
    return f"atoms p {permutation_p(*lengths):.3f}, elements p {permutation_p(*present):.3f}"


def _peak(number: int, batch: int, answers: multiprocessing.Queue) -> None:
    torch.set_num_threads(1)
    prior = Prior.from_pretrained(BUNDLED_PRIOR)
    propose(prior, [{}], seed=0, slots=1, max_attempts=1)  # kernels, grammar
    Path("/proc/self/clear_refs").write_text("5")  # loading does not count for the peak
    before = _status("VmRSS")
    propose(prior, [{}] * number, seed=0, slots=batch, max_attempts=1)
    after = _status("VmHWM")
    answers.put(f"{after} MiB, {after - before} of them for sampling")


def _status(name: str) -> int:
    (line,) = (
        line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name)
    )
    return int(line.split()[1]) // 1024


def memory(number: int, batch: int) -> str:
    """Return the peak memory of sampling in a new process."""
    spawn = multiprocessing.get_context("spawn")
    answers = spawn.Queue()
    process = spawn.Process(target=_peak, args=(number, batch, answers))
    process.start()
    process.join()
    return answers.get() if process.exitcode == 0 else "failed"


@click.command()
@click.argument("data", type=click.Path(path_type=Path))
@click.option("-n", default=512, show_default=True, help="Texts of each method and workload.")
@click.option("--batch", default=64, show_default=True)
@click.option("--temperature", default=0.7, show_default=True)
@click.option("--top-p", default=0.9, show_default=True)
@click.option("--seed", default=0, show_default=True)
@click.option("--prior", "folder", help="Folder; default: the bundled one.")
@click.option("--out", type=click.Path(path_type=Path), help="Write the figures as JSON.")
def main(
    data: Path,
    n: int,
    batch: int,
    temperature: float,
    top_p: float,
    seed: int,
    folder: str | None,
    out: Path | None,
) -> None:
    """Print the figures, with the compositions of crystals of DATA as conditions."""
    torch.set_num_threads(1)
    prior = Prior.from_pretrained(folder or BUNDLED_PRIOR)
    targets = random.Random(seed).sample(read(data, max_atoms=prior.fmt.max_atoms), n)
    workloads: dict[str, Requests] = {
        "no conditions": [{}] * n,
        "composition": [composition_conditions(t.structure.formula) for t in targets],
    }
    sampling = {"temperature": temperature, "top_p": top_p}
    figures: dict[str, Any] = {"settings": {"n": n, "batch": batch, **sampling, "seed": seed}}
    for way in WAYS.values():  # warm-up
        way(prior, workloads["composition"][:batch], seed, batch, **sampling)
    for workload, requests in workloads.items():
        tallies = {name: Tally() for name in WAYS}
        for at in range(0, n, ROUND * batch):
            part = requests[at : at + ROUND * batch]
            for name, way in WAYS.items():
                wall, cpu = time.perf_counter(), time.thread_time()
                texts = way(prior, part, seed + at, batch, **sampling)
                tallies[name].wall += time.perf_counter() - wall
                tallies[name].cpu += time.thread_time() - cpu
                tallies[name].add(texts, part, prior)
        first, second, third = tallies.values()
        gain = (third.right / third.cpu) / (first.right / first.cpu)
        figures[workload] = {
            **{name: tally.figures() for name, tally in tallies.items()},
            "engine / generate, texts": f"{first.cpu / second.cpu:.2f}",
            "grammar / no grammar, texts": f"{second.cpu / third.cpu:.2f}",
            "grammar / generate, crystals": f"{gain:.2f}",
            "engine like generate": alike(first, second),
            "grammar like no grammar": alike(second, third),
        }
        click.echo(json.dumps({workload: figures[workload]}, indent=2), err=True)
    figures["peak memory"] = {
        f"{k} texts": memory(k, batch) for k in (batch, 4 * batch, 16 * batch)
    }
    click.echo(json.dumps(figures, indent=2))
    if out is not None:
        out.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
