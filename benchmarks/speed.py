"""Speed and memory of the bundled pair, and of training small models, on one thread.

    OMP_NUM_THREADS=1 python benchmarks/speed.py ../shared/data/mp20/val.parquet

Each part runs in a process of its own, so that peak memory is measured for each part. Rates are per
second of wall-clock time and, in brackets, per second of CPU time, which hardly depends on other
load.
"""

from __future__ import annotations

import multiprocessing
import resource
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import click

SAMPLES = 256
STEPS = 40  # timed training steps, after as many for warm-up


def sampling(data: Path) -> str:
    """Return the speed of the prior alone, without conditions."""
    from flowllm.hub.locate import BUNDLED_PRIOR
    from llm_prior import Prior, propose

    prior = Prior.from_pretrained(BUNDLED_PRIOR)
    propose(prior, [{}] * 4, seed=1, max_attempts=1)

    def work() -> int:
        for start in range(0, SAMPLES, 64):
            propose(prior, [{}] * 64, seed=start, max_attempts=1)
        return SAMPLES

    return _rate(work, "texts")


def refining(data: Path) -> str:
    """Return the speed of the refiner alone, with its own number of steps."""
    from flowllm.crystals.io import read
    from flowllm.hub.locate import BUNDLED_REFINER
    from rfm import Refiner, refine

    refiner = Refiner.from_pretrained(BUNDLED_REFINER)
    structures = [crystal.structure for crystal in read(data, limit=SAMPLES)]

    def work() -> int:
        refine(refiner, structures)
        return len(structures)

    return _rate(work, "crystals") + f", {refiner.config.integration.steps} steps"


def training_prior(data: Path) -> str:
    """Return the speed of training `llm/small`."""
    from flowllm.crystals.io import read
    from flowllm.training.engine import train
    from flowllm.training.recipes import PriorRecipe, load_recipe
    from llm_prior import Collator, CrystalTextDataset, Prior

    recipe = load_recipe(PriorRecipe, "llm/small")
    prior = Prior.build(recipe.model, recipe.text)
    prior.model.set_attn_implementation("eager")
    rows = [(c.id, c.structure, c.properties) for c in read(data, limit=8000)]
    texts = CrystalTextDataset(rows, prior.tokenizer, recipe.text, recipe.tasks)
    collate = Collator(prior.tokenizer.pad_token_id)
    tokens = 0

    def counting(items: list) -> dict:
        nonlocal tokens
        tokens += sum(len(item["input_ids"]) for item in items)
        return collate(items)

    def work() -> int:
        nonlocal tokens
        tokens = 0
        config = replace(recipe.training, max_steps=STEPS, save_steps=10**6)
        with tempfile.TemporaryDirectory() as folder:
            train(
                prior.model,
                texts,
                collate=counting,
                config=config,
                folder=Path(folder),
                seed=0,
                device="cpu",
            )
        return STEPS * config.batch_size

    work()
    rate = _rate(work, "crystals")
    return rate + f", {tokens / (STEPS * recipe.training.batch_size):.1f} tokens a crystal"


def training_refiner(data: Path) -> str:
    """Return the speed of training `rfm/uniform`."""
    from flowllm.crystals.io import read
    from flowllm.training.engine import train
    from flowllm.training.pairing.table import targets_only
    from flowllm.training.recipes import RefinerRecipe, load_recipe
    from rfm import PairDataset, Refiner, RefinerConfig, collate

    recipe = load_recipe(RefinerRecipe, "rfm/uniform")
    pairs = PairDataset(targets_only(read(data, limit=8000)), base=recipe.base)
    refiner = Refiner(
        RefinerConfig(statistics=pairs.statistics, network=recipe.network, base=recipe.base)
    )

    def work() -> int:
        config = replace(recipe.training, max_steps=STEPS, save_steps=10**6)
        with tempfile.TemporaryDirectory() as folder:
            train(
                refiner,
                pairs,
                collate=collate,
                config=config,
                folder=Path(folder),
                seed=0,
                device="cpu",
            )
        return STEPS * config.batch_size

    work()
    return _rate(work, "crystals")


def _rate(work: Callable[[], int], unit: str) -> str:
    wall, cpu = time.perf_counter(), time.process_time()
    done = work()
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return f"{done / wall:.1f} {unit}/s [{done / cpu:.1f}]"


def _in_process(part: Callable[[Path], str], data: Path, answers: multiprocessing.Queue) -> None:
    import torch

    torch.set_num_threads(1)
    text = part(data)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    answers.put(f"{part.__name__}: {text}, peak memory {peak:.2f} GiB")


@click.command()
@click.argument("data", type=click.Path(path_type=Path))
def main(data: Path) -> None:
    """Print one line of figures for each part."""
    spawn = multiprocessing.get_context("spawn")
    for part in (sampling, refining, training_prior, training_refiner):
        answers = spawn.Queue()
        process = spawn.Process(target=_in_process, args=(part, data, answers))
        process.start()
        process.join()
        click.echo(answers.get() if process.exitcode == 0 else f"{part.__name__} failed")


if __name__ == "__main__":
    main()
