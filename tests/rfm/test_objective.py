from __future__ import annotations

import pytest
import torch

from rfm.batch import CrystalBatch
from rfm.config import IntegrationConfig, LossWeights, NetworkConfig, RefinerConfig
from rfm.dataset import PairDataset, PairedCrystal, collate
from rfm.integration import integrate
from rfm.manifold import FlatTorus
from rfm.model import Refiner
from rfm.objective import PathPoint, conditional_path, velocity_loss

TORUS = FlatTorus()


def make_path(t: torch.Tensor) -> tuple[PathPoint, dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    ends = {
        "base_frac_coords": torch.rand(5, 3, generator=generator),
        "target_frac_coords": torch.rand(5, 3, generator=generator),
        "base_lattice": torch.randn(2, 6, generator=generator),
        "target_lattice": torch.randn(2, 6, generator=generator),
    }
    return conditional_path(**ends, t=t, batch=torch.tensor([0, 0, 0, 1, 1])), ends


def test_path_starts_at_the_base_and_ends_at_the_target() -> None:
    start, ends = make_path(torch.zeros(2))
    stop, _ = make_path(torch.ones(2))
    assert TORUS.dist(start.frac_coords, ends["base_frac_coords"]).max() < 1e-6
    assert TORUS.dist(stop.frac_coords, ends["target_frac_coords"]).max() < 1e-6
    assert torch.allclose(start.lattice, ends["base_lattice"])
    assert torch.allclose(stop.lattice, ends["target_lattice"], atol=1e-6)


def test_velocity_is_the_derivative_of_the_path_less_its_mean() -> None:
    t, dt = torch.tensor([0.2, 0.6]), 1e-3
    here, _ = make_path(t)
    there, _ = make_path(t + dt)
    slope = TORUS.logmap(here.frac_coords, there.frac_coords) / dt
    for atoms in (slice(0, 3), slice(3, 5)):
        expected = slope[atoms] - slope[atoms].mean(0)
        assert torch.allclose(here.coord_velocity[atoms], expected, atol=1e-3)
    assert torch.allclose(here.lattice_velocity, (there.lattice - here.lattice) / dt, atol=1e-3)


def test_each_crystal_has_its_own_time() -> None:
    mixed, ends = make_path(torch.tensor([0.0, 1.0]))
    assert TORUS.dist(mixed.frac_coords[:3], ends["base_frac_coords"][:3]).max() < 1e-6
    assert TORUS.dist(mixed.frac_coords[3:], ends["target_frac_coords"][3:]).max() < 1e-6


def test_the_loss_agrees_with_a_hand_calculation() -> None:
    point, _ = make_path(torch.rand(2))
    coord, lattice = point.coord_velocity.clone(), point.lattice_velocity.clone()
    weights = LossWeights(coord=400, lattice=2)
    assert velocity_loss(coord, lattice, point, weights).total == 0
    coord[0, 0] += 0.3  # 0.09 over 15 numbers
    lattice[1, 5] -= 0.6  # 0.36 over 12 numbers
    loss = velocity_loss(coord, lattice, point, weights)
    assert loss.coord.item() == pytest.approx(0.006)
    assert loss.lattice.item() == pytest.approx(0.03)
    assert loss.total.item() == pytest.approx(400 * 0.006 + 2 * 0.03)


def distances(batch: CrystalBatch, pairs: list[PairedCrystal]) -> torch.Tensor:
    """Distance of each atom to its target, after the best translation of each crystal."""
    target = torch.cat([torch.tensor(pair.target_frac_coords) for pair in pairs]).float()
    d = TORUS.logmap(target, batch.frac_coords)
    mean = torch.zeros(len(pairs), 3).index_add(0, batch.batch, d) / batch.num_atoms[:, None]
    return (d - mean[batch.batch]).norm(dim=-1)


def test_learns_three_crystals_by_heart() -> None:
    """Trained on three pairs, the flow must carry their bases to their targets."""
    import numpy as np

    rng = np.random.default_rng(5)
    pairs = []
    for k, n in enumerate((2, 3, 4)):
        target = rng.random((n, 3))
        # Aligned as in training: the displacements of a crystal have mean zero.
        push = rng.uniform(-0.25, 0.25, (n, 3))
        lattice = np.diag(rng.uniform(3, 6, 3))
        pairs.append(
            PairedCrystal(
                id=str(k),
                atomic_numbers=rng.integers(1, 90, n),
                base_frac_coords=target + push - push.mean(0),
                base_lattice=lattice @ (np.eye(3) + rng.uniform(-0.15, 0.15, (3, 3))),
                target_frac_coords=target,
                target_lattice=lattice,
            )
        )
    data = PairDataset(pairs)
    torch.manual_seed(0)
    refiner = Refiner(
        RefinerConfig(
            statistics=data.statistics,
            network=NetworkConfig(width=48, layers=2, num_frequencies=3),
        )
    )
    optimizer = torch.optim.Adam(refiner.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.05, total_iters=400)
    for _ in range(400):
        batch = collate([data.draw(index, rng) for index in (0, 1, 2) * 4])
        optimizer.zero_grad()
        refiner(**batch)["loss"].backward()
        optimizer.step()
        schedule.step()

    items = collate([data.draw(index, rng) for index in range(3)])
    start = CrystalBatch(
        atomic_numbers=items["atomic_numbers"],
        frac_coords=items["base_frac_coords"],
        lattice=items["base_lattice"],
        num_atoms=items["num_atoms"],
        batch=torch.repeat_interleave(items["num_atoms"]),
    )
    end = integrate(refiner, start, IntegrationConfig(steps=20, position_slope=0.0)).state
    assert distances(start, pairs).mean() > 0.15
    assert distances(end, pairs).max() < 0.02
    assert (start.lattice - items["target_lattice"]).abs().max() > 0.3
    assert (end.lattice - items["target_lattice"]).abs().max() < 0.05
