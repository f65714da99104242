"""The validation loss: the training loss on fixed draws, and its parts by t."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from rfm import (
    PATH_LOSSES,
    BaseConfig,
    NetworkConfig,
    PairDataset,
    PairedCrystal,
    Refiner,
    RefinerConfig,
    collate,
    path_losses,
)


def pairs(count: int) -> list[PairedCrystal]:
    rng = np.random.default_rng(0)
    found = []
    for k in range(count):
        n = 1 + k % 4
        found.append(
            PairedCrystal(
                id=str(k),
                atomic_numbers=rng.integers(1, 30, n),
                base_frac_coords=rng.random((n, 3)),
                base_lattice=4 * np.eye(3) + 0.3 * rng.standard_normal((3, 3)),
                target_frac_coords=rng.random((n, 3)),
                target_lattice=4 * np.eye(3) + 0.3 * rng.standard_normal((3, 3)),
            )
        )
    return found


def refiner_of(data: PairDataset) -> Refiner:
    torch.manual_seed(0)
    network = NetworkConfig(width=8, layers=1, num_frequencies=2)
    return Refiner(
        RefinerConfig(statistics=data.statistics, network=network, base=data.base)
    ).eval()


@pytest.mark.parametrize("kind", ["llm", "file", "uniform"])
def test_the_parts_are_those_of_the_training_loss_and_every_call_draws_alike(kind: str) -> None:
    data = PairDataset(pairs(40), base=BaseConfig(kind=kind, position_sigma=0.1))
    refiner = refiner_of(data)
    found = path_losses(refiner, data, seed=3, batch_size=7)
    assert tuple(found) == PATH_LOSSES
    assert path_losses(refiner, data, seed=3, batch_size=7) == found
    assert path_losses(refiner, data, seed=4)["loss"] != found["loss"]

    rngs = [np.random.default_rng(np.random.SeedSequence(3, spawn_key=(k,))) for k in range(40)]
    draws = [data.draw(k, rng) for k, rng in enumerate(rngs)]
    for names, start, end in (
        (("loss", "coord_loss", "lattice_loss"), 0, 1),
        (("", "coord_loss_t0_25", "lattice_loss_t0_25"), 0, 0.25),
        (("", "coord_loss_t75_100", "lattice_loss_t75_100"), 0.75, 1),
    ):
        expected = refiner(**collate([d for d in draws if start <= d["t"] < end]))
        for name, value in zip(names, expected.values(), strict=True):
            assert not name or found[name] == pytest.approx(value.item(), rel=1e-4)


def test_a_quarter_without_a_draw_has_no_loss() -> None:
    data = PairDataset(pairs(1))
    found = path_losses(refiner_of(data), data)
    assert len([name for name in found if name.startswith("coord_loss_t")]) == 1
