"""Speed and memory of the refiner's network, compared with a plain one of the same formula.

    OMP_NUM_THREADS=1 python benchmarks/refiner.py ../shared/data/mp20/val.parquet

The plain network is `benchmarks/plain_network.py`. Both networks do the same steps on the same
batches by turns in one process, and a ratio is the median over the turns, so that other load on the
machine affects both alike. On a CPU, times are CPU times of one thread. A training step is loss and
gradients without the optimiser; an integration step is one evaluation. Peak memory is measured in a
process for each case. On a CUDA device only the refiner's network is measured, with larger batches.
"""

from __future__ import annotations

import multiprocessing
import resource
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from plain_network import plain_velocity
from torch import Tensor

from flowllm.crystals.io import read
from flowllm.training.pairing.table import targets_only
from rfm import (
    BaseConfig,
    IntegrationConfig,
    NetworkConfig,
    PairDataset,
    Refiner,
    RefinerConfig,
    collate,
    integrate,
)
from rfm.batch import CrystalBatch

SIZES = {
    "paper": NetworkConfig(width=512, layers=6, num_frequencies=128),
    "small": NetworkConfig(),
}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
BATCH = 64
MEMORY_BATCHES = (64, 256, 1024)
# Dense peak without sparsity, FLOP/s: NVIDIA's data sheets (float32 as TF32 is off here).
PEAKS = {
    "H100": {"float32": 67e12, "bfloat16": 989e12},
    "H200": {"float32": 67e12, "bfloat16": 989e12},
}


class Plain(Refiner):
    """A refiner with the plain network."""

    def velocity(self, state: CrystalBatch, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return the velocities of a batch, as `Refiner.velocity` does."""
        matrices = self.cell.decode(state.lattice)
        return plain_velocity(self.network, state, matrices, t)


def batches(data: Path, size: int, count: int) -> tuple[PairDataset, list[dict[str, Any]]]:
    """Return the data set and `count` batches of random crystals with uniform bases."""
    pairs = PairDataset(targets_only(read(data)), base=BaseConfig(kind="uniform"))
    rng = np.random.default_rng(0)
    drawn = [
        collate([pairs.draw(k, rng) for k in rng.choice(len(pairs), size)]) for _ in range(count)
    ]
    for batch in drawn:
        del batch["ids"]
    return pairs, drawn


def build(kind: type[Refiner], pairs: PairDataset, size: str) -> Refiner:
    """Return a refiner with random weights of a fixed seed."""
    torch.manual_seed(0)
    config = RefinerConfig(statistics=pairs.statistics, network=SIZES[size], base=pairs.base)
    return kind(config)


def state_of(batch: dict[str, Any]) -> CrystalBatch:
    """Return the base crystals of a training batch."""
    return CrystalBatch(
        atomic_numbers=batch["atomic_numbers"],
        frac_coords=batch["base_frac_coords"],
        lattice=batch["base_lattice"],
        num_atoms=batch["num_atoms"],
        batch=torch.repeat_interleave(batch["num_atoms"]),
    )


def train_step(refiner: Refiner, batch: dict[str, Any], dtype: torch.dtype) -> None:
    """Compute the loss and its gradients."""
    refiner.zero_grad(set_to_none=True)
    with torch.autocast(refiner.device.type, torch.bfloat16, enabled=dtype == torch.bfloat16):
        loss = refiner(**batch)["loss"]
    loss.backward()


def evaluate(refiner: Refiner, batch: dict[str, Any], dtype: torch.dtype) -> None:
    """Evaluate the velocity once."""
    enabled = dtype == torch.bfloat16
    with torch.no_grad(), torch.autocast(refiner.device.type, torch.bfloat16, enabled=enabled):
        refiner.velocity(state_of(batch), batch["t"])


STEPS: dict[str, Callable[[Refiner, dict[str, Any], torch.dtype], None]] = {
    "training": train_step,
    "integration": evaluate,
}
MEASURED = (
    ("integration", "float32"),
    ("training", "float32"),
    ("training", "bfloat16"),
    ("recomputed", "float32"),
)


def compare(data: Path, turns: int) -> None:
    """Print the table of both networks."""
    pairs, drawn = batches(data, BATCH, 4)
    mean_pairs = statistics.mean(int((b["num_atoms"] ** 2 - b["num_atoms"]).sum()) for b in drawn)
    click.echo(f"batch {BATCH}, {mean_pairs / BATCH:.0f} ordered pairs of atoms per crystal")
    click.echo("ms per crystal      this    plain    ratio  ratio to plain float32")
    for size in SIZES:
        ours, plain = build(Refiner, pairs, size), build(Plain, pairs, size)
        for name, step in STEPS.items():
            # Turns of all four kinds alternate, so that ratios between precisions hold too.
            kinds = [(r, d) for d in DTYPES for r in (ours, plain)]
            times: dict[tuple[Refiner, str], list[float]] = {kind: [] for kind in kinds}
            for turn in range(turns + 1):
                for refiner, dtype in kinds:
                    start = time.process_time()
                    step(refiner, drawn[turn % len(drawn)], DTYPES[dtype])
                    if turn > 0:  # the first warms up
                        seconds = time.process_time() - start
                        times[refiner, dtype].append(1000 * seconds / BATCH)
            for dtype in DTYPES:
                mine, other = times[ours, dtype], times[plain, dtype]
                click.echo(
                    f"{size} {name:11s} {dtype:8s} {statistics.median(mine):7.2f} "
                    f"{statistics.median(other):7.2f} {_ratio(mine, other):7.2f} "
                    f"{_ratio(mine, times[plain, 'float32']):7.2f}"
                )
                if name == "integration":
                    rate = 1000 / (50 * statistics.median(mine))
                    click.echo(f"{size} 50 steps    {dtype:8s} {rate:7.2f} crystals/s")


def _ratio(times: list[float], others: list[float]) -> float:
    return statistics.median(a / b for a, b in zip(times, others, strict=True))


def memory(data: Path, size: str, dtype: str, name: str, crystals: int) -> str:
    """Return a line with the peak memory and the time of one step.

    The step `recomputed` is a training step with `training.gradient_checkpointing`.
    """
    torch.set_num_threads(1)
    pairs, (batch,) = batches(data, crystals, 1)
    refiner = build(Refiner, pairs, size)
    refiner.network.recompute = name == "recomputed"
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    start = time.process_time()
    STEPS.get(name, train_step)(refiner, batch, DTYPES[dtype])
    seconds = time.process_time() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return (
        f"{size} {name:11s} {dtype:8s} batch {crystals:4d}: peak {peak:5.2f} GiB, of it the step "
        f"{peak - before:5.2f}; {1000 * seconds / crystals:6.2f} ms per crystal"
    )


def on_cuda(data: Path) -> None:
    """Print crystals per second and the share of the card's peak performance."""
    name = torch.cuda.get_device_name()
    peak = next((values for key, values in PEAKS.items() if key in name), None)
    click.echo(name)
    for size, network in SIZES.items():
        for crystals in (256, 1024):
            pairs, (batch,) = batches(data, crystals, 1)
            batch = {key: value.cuda() for key, value in batch.items()}
            refiner = build(Refiner, pairs, size).cuda()
            work, training_work = _flop(batch, network)
            for dtype, kind in DTYPES.items():
                seconds = _seconds(lambda: train_step(refiner, batch, kind), 20)  # noqa: B023
                texts = [f"training {crystals / seconds:.0f} crystals/s"]
                if peak:
                    texts.append(f"{100 * training_work / seconds / peak[dtype]:.0f}% of peak")
                for steps in (50, 250):
                    seconds = _seconds(lambda: _integrate(refiner, batch, kind, steps), 1)  # noqa: B023
                    texts.append(f"{steps} steps {crystals / seconds:.0f} crystals/s")
                if peak:
                    texts.append(f"{100 * steps * work / seconds / peak[dtype]:.0f}% of peak")
                click.echo(f"{size} {dtype} batch {crystals}: {', '.join(texts)}")


def _integrate(refiner: Refiner, batch: dict[str, Any], dtype: torch.dtype, steps: int) -> None:
    with torch.autocast("cuda", torch.bfloat16, enabled=dtype == torch.bfloat16):
        integrate(refiner, state_of(batch), IntegrationConfig(steps=steps))


def _flop(batch: dict[str, Any], network: NetworkConfig) -> tuple[float, float]:
    """Return the FLOP of the matrix products of an evaluation and of a training step."""
    n, width = batch["num_atoms"], network.width
    pairs, atoms = int((n * (n - 1) // 2).sum()), int(n.sum())
    geometric = pairs * (6 * network.num_frequencies + 20) * width
    rest = pairs * 2 * width**2 + atoms * 5 * width**2
    # Training adds the gradients of weights and inputs; the features of pairs need none.
    return (
        2.0 * network.layers * (geometric + rest),
        2.0 * network.layers * (2 * geometric + 3 * rest),
    )


def _seconds(work: Callable[[], None], repeats: int) -> float:
    work()
    torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(repeats):
        work()
    torch.cuda.synchronize()
    return (time.perf_counter() - start) / repeats


@click.command()
@click.argument("data", type=click.Path(path_type=Path))
@click.option("--turns", default=6, show_default=True, help="Steps of each kind that are timed.")
@click.option("--device", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True)
def main(data: Path, turns: int, device: str) -> None:
    """Print the figures for crystals of DATA."""
    if device == "cuda":
        on_cuda(data)
        return
    torch.set_num_threads(1)
    spawn = multiprocessing.get_context("spawn")
    for size in SIZES:
        for name, dtype in MEASURED:
            for crystals in MEMORY_BATCHES:
                with spawn.Pool(1) as pool:
                    click.echo(pool.apply(memory, (data, size, dtype, name, crystals)))
    compare(data, turns)


if __name__ == "__main__":
    main()
