from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest
import torch
from pymatgen.core import Lattice, Structure
from torch import Tensor
from torch.nn.functional import silu

from rfm.batch import CrystalBatch
from rfm.errors import RefinerError
from rfm.lattice import metric_tensor
from rfm.model import Refiner
from rfm.network import NetworkConfig, VelocityNetwork, crystal_features, image_density
from rfm.torus import wrap_difference

TIMES = torch.tensor([0.1, 0.4, 0.7, 1.0])


@pytest.fixture
def batch(structures: list[Structure], refiner: Refiner) -> CrystalBatch:
    return CrystalBatch.from_structures(structures, refiner.cell)


def plain_velocity(refiner: Refiner, structure: Structure, t: float) -> tuple[Tensor, Tensor]:
    """The formula of the network, one pair at a time, with Cartesian vectors and one big matrix
    on the concatenated inputs of an edge."""
    net = refiner.network
    n, matrix = len(structure), torch.tensor(structure.lattice.matrix)
    x = torch.tensor(structure.frac_coords)
    z = refiner.cell.encode(matrix[None]).float()
    crystal = net.embed_crystal(
        crystal_features(
            z, metric_tensor(matrix)[None].float(), torch.tensor([[float(n)]]), torch.tensor([t])
        )
    )[0]
    h = net.embed_element(torch.tensor([s.Z for s in structure.species]))
    for layer in net.layers:
        weight = torch.cat(
            [
                m.weight
                for m in (layer.from_source, layer.from_target, layer.from_crystal, layer.from_edge)
            ],
            dim=1,
        )
        normed = layer.norm(h)
        rows = []
        for i in range(n):
            messages = [torch.zeros(h.shape[1])]
            for j in range(n):
                if i == j:
                    continue
                d = x[j] - x[i]
                d = d - torch.floor(d + 0.5)
                cartesian = d @ matrix
                distance = cartesian.norm()
                waves = [
                    wave(2 * math.pi * k * d[axis])
                    for wave in (torch.sin, torch.cos)
                    for axis in range(3)
                    for k in range(1, net.config.num_frequencies + 1)
                ]
                cosines = [cartesian @ row / distance / row.norm() for row in matrix]
                density = plain_density(d, matrix)
                feature = torch.stack([*waves, *cosines, distance.log(), *density]).float()
                inputs = torch.cat([normed[i], normed[j], crystal, feature])
                messages.append(silu(layer.message(silu(weight @ inputs + layer.from_source.bias))))
            mean = torch.stack(messages).sum(0) / max(n - 1, 1)
            rows.append(h[i] + layer.update(torch.cat([normed[i], mean])))
        h = torch.stack(rows)
    h = net.norm(h)
    coord = net.coord_head(h)
    cell = net.cell_head(torch.cat([h.mean(0), h.sum(0), crystal]))
    return coord - coord.mean(0), cell


def plain_density(d: Tensor, matrix: Tensor) -> list[Tensor]:
    """The image density of one pair, image by image."""
    density = [torch.zeros((), dtype=d.dtype) for _ in range(12)]
    for moves in product((False, True), repeat=3):
        image, weight = d.clone(), 1.0
        for axis, move in enumerate(moves):
            if move:
                image[axis] += -1 if d[axis] >= 0 else 1
                weight = weight * torch.sin(math.pi * d[axis]) ** 2
        distance = (image @ matrix).norm()
        for m in range(12):
            # sigma = 1/2 Angstrom: 2 sigma^2 = 1/2.
            density[m] = density[m] + weight * torch.exp(-2 * (distance - 1 - 0.5 * m) ** 2)
    return density


def assert_same(a: tuple[Tensor, Tensor], b: tuple[Tensor, Tensor], tolerance: float) -> None:
    for left, right in zip(a, b, strict=True):
        assert torch.allclose(left, right, atol=tolerance), (left - right).abs().max()


@torch.no_grad()
def test_agrees_with_the_plain_formula(
    structures: list[Structure], refiner: Refiner, batch: CrystalBatch
) -> None:
    coord, cell = refiner.velocity(batch, TIMES)
    assert coord.std() > 0.01 and cell.std() > 0.01
    start = 0
    for k, structure in enumerate(structures):
        stop = start + len(structure)
        expected = plain_velocity(refiner, structure, TIMES[k].item())
        assert_same((coord[start:stop], cell[k]), expected, 1e-5)
        start = stop


@pytest.mark.parametrize("edge", [-0.5, 0.0])
def test_image_density_is_continuous_where_the_choice_of_images_changes(edge: float) -> None:
    metric = torch.tensor(Lattice.from_parameters(3, 4, 5, 70, 80, 95).metric_tensor)[None]
    step = torch.tensor([[1e-7, 0.0, 0.0]], dtype=torch.float64)
    middle = torch.tensor([[edge, 0.2, -0.3]], dtype=torch.float64)
    below, above = (image_density(wrap_difference(middle + s), metric) for s in (-step, step))
    assert above.max() > 0.1
    assert torch.allclose(below, above, atol=1e-5)


@torch.no_grad()
def test_permutation_of_atoms(refiner: Refiner, batch: CrystalBatch) -> None:
    coord, cell = refiner.velocity(batch, TIMES)
    # Atoms 3 to 7 are the third crystal.
    order = torch.tensor([0, 1, 2, 5, 3, 7, 6, 4, 8, 9, 10])
    permuted = CrystalBatch(
        atomic_numbers=batch.atomic_numbers[order],
        frac_coords=batch.frac_coords[order],
        lattice=batch.lattice,
        num_atoms=batch.num_atoms,
        batch=batch.batch,
    )
    assert_same(refiner.velocity(permuted, TIMES), (coord[order], cell), 1e-5)


@torch.no_grad()
def test_translation_of_whole_crystals(refiner: Refiner, batch: CrystalBatch) -> None:
    shift = torch.tensor([[0.3, -0.2, 0.9], [0.5, 0.5, 0.1], [-0.7, 0.15, 0.35], [0.01, 0.8, 0.6]])
    # The atoms of the first crystal lie exactly half a period apart, where rounding decides.
    coords = batch.frac_coords + 0.03 * batch.atomic_numbers.unsqueeze(-1).remainder(7)
    moved = batch.at(coords + shift[batch.batch], batch.lattice)
    here = batch.at(coords, batch.lattice)
    assert_same(refiner.velocity(moved, TIMES), refiner.velocity(here, TIMES), 2e-5)


@torch.no_grad()
def test_whole_periods(refiner: Refiner, batch: CrystalBatch) -> None:
    turns = torch.randint(-2, 3, batch.frac_coords.shape, generator=torch.manual_seed(3))
    # Multiples of 1/256 stay exact when whole numbers are added.
    coords = (batch.frac_coords * 256).round() / 256
    moved = batch.at(coords + turns, batch.lattice)
    here = batch.at(coords, batch.lattice)
    assert_same(refiner.velocity(moved, TIMES), refiner.velocity(here, TIMES), 1e-6)


@torch.no_grad()
def test_rotation_of_the_lattice(structures: list[Structure], refiner: Refiner) -> None:
    turn, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))
    turned = [
        Structure(Lattice(s.lattice.matrix @ turn), s.species, s.frac_coords) for s in structures
    ]
    here, there = (CrystalBatch.from_structures(s, refiner.cell) for s in (structures, turned))
    assert_same(refiner.velocity(there, TIMES), refiner.velocity(here, TIMES), 1e-5)


@torch.no_grad()
def test_a_crystal_does_not_see_its_batch(
    structures: list[Structure], refiner: Refiner, batch: CrystalBatch
) -> None:
    coord, cell = refiner.velocity(batch, TIMES)
    for k, structure in enumerate(structures):
        alone = CrystalBatch.from_structures([structure], refiner.cell)
        velocity = refiner.velocity(alone, TIMES[k : k + 1])
        assert_same(velocity, (coord[batch.batch == k], cell[k : k + 1]), 1e-5)


@torch.no_grad()
def test_mean_coordinate_velocity_is_zero(refiner: Refiner, batch: CrystalBatch) -> None:
    coord, _ = refiner.velocity(batch, TIMES)
    total = torch.zeros(4, 3).index_add(0, batch.batch, coord)
    assert total.abs().max() < 1e-5
    assert coord[2].abs().max() == 0  # the single atom


def test_coinciding_atoms_have_finite_velocities_and_gradients(refiner: Refiner) -> None:
    piled = Structure(Lattice.cubic(3), ["Fe"] * 3, [[0.2, 0.2, 0.2]] * 3)
    batch = CrystalBatch.from_structures([piled], refiner.cell)
    coord, cell = refiner.velocity(batch, torch.tensor([0.5]))
    (coord.square().sum() + cell.square().sum()).backward()
    assert coord.isfinite().all() and cell.isfinite().all()
    assert all(p.grad.isfinite().all() for p in refiner.parameters() if p.grad is not None)


@torch.no_grad()
def test_the_inputs_matter(refiner: Refiner, batch: CrystalBatch) -> None:
    coord, cell = refiner.velocity(batch, TIMES)
    generator = torch.Generator().manual_seed(0)
    noise = torch.rand(batch.frac_coords.shape, generator=generator)
    for other, times in (
        (batch.at(batch.frac_coords + noise, batch.lattice), TIMES),
        (batch.at(batch.frac_coords, batch.lattice + 1), TIMES),
        (batch, 1 - TIMES),
    ):
        new_coord, new_cell = refiner.velocity(other, times)
        # Well above the rounding of float32; at random weights some inputs weigh little.
        assert (new_coord - coord).abs().max() > 1e-4
        assert (new_cell - cell).abs().max() > 1e-4


@torch.no_grad()
def test_bfloat16_autocast_is_close(refiner: Refiner, batch: CrystalBatch) -> None:
    full = refiner.velocity(batch, TIMES)
    with torch.autocast("cpu", torch.bfloat16):
        half = refiner.velocity(batch, TIMES)
    assert half[0].dtype == half[1].dtype == torch.float32
    # bfloat16 keeps 8 bits; a few layers lose a few of them.
    assert_same(half, full, 0.03)
    assert not torch.equal(half[1], full[1])


def test_paper_size() -> None:
    network = VelocityNetwork(NetworkConfig(width=512, layers=6, num_frequencies=128))
    # Miller et al. 2024 report 14.2 M for their own network of this width and depth; this one
    # keeps the cell and the time apart from the atoms, hence the tolerance.
    assert sum(p.numel() for p in network.parameters()) == pytest.approx(14.2e6, rel=0.15)


def test_refused_sizes_and_elements(refiner: Refiner) -> None:
    with pytest.raises(RefinerError, match="layers is 0"):
        NetworkConfig(layers=0)
    refiner.network.config.max_atomic_number = 20
    iron = Structure(Lattice.cubic(3), ["Fe"], [[0, 0, 0]])
    batch = CrystalBatch.from_structures([iron], refiner.cell)
    with pytest.raises(RefinerError, match="atomic number 26 .* 20"):
        refiner.velocity(batch, torch.tensor([0.0]))
