from __future__ import annotations

import importlib.util
from functools import partial
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from pymatgen.core import Lattice, Structure
from torch import Tensor
from torch.nn.functional import silu
from torch_geometric.nn import MessagePassing
from torch_geometric.utils import scatter

from rfm import network as network_module
from rfm.batch import CrystalBatch, atom_pairs
from rfm.config import NetworkConfig
from rfm.errors import RefinerError
from rfm.model import Refiner
from rfm.network import VelocityNetwork, crystal_sums, image_density, pair_features
from rfm.torus import wrap_difference
from support import ROOT

TIMES = torch.tensor([0.1, 0.4, 0.7, 1.0])


def _load_plain() -> ModuleType:
    """The plain network is a benchmark's module, which is no package."""
    path = ROOT / "benchmarks" / "plain_network.py"
    spec = importlib.util.spec_from_file_location("plain_network", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


PLAIN = _load_plain()


def plain_velocity(refiner: Refiner, state: CrystalBatch, t: Tensor) -> tuple[Tensor, Tensor]:
    return PLAIN.plain_velocity(refiner.network, state, refiner.cell.decode(state.lattice), t)


def assert_same(a: tuple[Tensor, Tensor], b: tuple[Tensor, Tensor], tolerance: float) -> None:
    for left, right in zip(a, b, strict=True):
        assert torch.allclose(left, right, atol=tolerance), (left - right).abs().max()


class PlainLayer(MessagePassing):
    """A layer of the network as torch-geometric has it: a message for every ordered pair."""

    def __init__(self, layer: Any) -> None:
        super().__init__(aggr="mean")
        self.layer = layer

    def forward(self, h: Tensor, edges: Tensor, crystal: Tensor, features: Tensor) -> Tensor:
        x = self.layer.norm(h)
        mean = self.propagate(edges, x=x, crystal=crystal, features=features)
        return h + self.layer.update(torch.cat([x, mean], dim=-1))

    def message(self, x_i: Tensor, x_j: Tensor, crystal_i: Tensor, features: Tensor) -> Tensor:
        of = self.layer
        edge = of.from_source(x_i) + of.from_target(x_j)
        edge = edge + of.from_crystal(crystal_i) + of.from_edge(features)
        return silu(of.message(silu(edge)))


@torch.no_grad()
def test_a_layer_agrees_with_message_passing_of_torch_geometric(
    refiner: Refiner, state: CrystalBatch
) -> None:
    num_frequencies = refiner.config.network.num_frequencies
    waves = 3 * num_frequencies
    pairs = atom_pairs(state.num_atoms)
    metric = refiner.cell.metric(state.lattice)
    even, odd = geometry = pair_features(state.frac_coords, metric, pairs, num_frequencies)
    directed = []
    for sign in (1, -1):  # from j to i, then from i to j
        sines, cosines = sign * odd[:, :waves], even[:, :waves]
        direction = even[:, waves : waves + 4] + sign * odd[:, waves:]
        directed.append(torch.cat([sines, cosines, direction, even[:, waves + 4 :]], dim=1))
    edges = torch.stack(
        [torch.cat([pairs.second, pairs.first]), torch.cat([pairs.first, pairs.second])]
    )
    generator = torch.Generator().manual_seed(0)
    width = refiner.config.network.width
    h = torch.randn(len(state.batch), width, generator=generator)
    crystal = torch.randn(state.num_crystals, width, generator=generator)
    degree = (state.num_atoms - 1).clamp(min=1)[state.batch].unsqueeze(-1)
    for layer in refiner.network.layers:
        ours = layer(h, crystal, geometry, state.batch, pairs, 1 / degree, False)
        theirs = PlainLayer(layer)(h, edges, crystal[state.batch], torch.cat(directed))
        assert torch.allclose(ours, theirs, atol=1e-5)


def test_sums_over_crystals_agree_with_torch_geometric(state: CrystalBatch) -> None:
    values = torch.rand(len(state.batch), 5, generator=torch.Generator().manual_seed(0))
    expected = scatter(values, state.batch, dim_size=state.num_crystals)
    assert torch.equal(crystal_sums(values, state.batch, state.num_crystals), expected)


@torch.no_grad()
def test_agrees_with_the_plain_formula(refiner: Refiner, state: CrystalBatch) -> None:
    coord, cell = refiner.velocity(state, TIMES)
    assert coord.std() > 0.01 and cell.std() > 0.01
    assert_same((coord, cell), plain_velocity(refiner, state, TIMES), 1e-5)


def test_gradients_agree_with_the_plain_formula(refiner: Refiner, state: CrystalBatch) -> None:
    # Not exactly half a period apart, where the direction and with it the gradient jumps.
    coords = state.frac_coords + 0.03 * state.atomic_numbers.unsqueeze(-1).remainder(7)
    gradients = []
    for velocity in (refiner.velocity, partial(plain_velocity, refiner)):
        inputs = [coords.clone().requires_grad_(), state.lattice.clone().requires_grad_()]
        coord, cell = velocity(state.at(*inputs), TIMES)
        loss = coord.square().sum() + cell.square().sum()
        gradients.append(torch.autograd.grad(loss, [*inputs, *refiner.parameters()]))
    assert all(gradient.abs().max() > 1e-4 for gradient in gradients[0])
    for ours, plain in zip(*gradients, strict=True):
        assert torch.allclose(ours, plain, rtol=1e-5, atol=1e-5 * max(1, plain.abs().max()))


def test_parts_of_a_batch_add_up(
    refiner: Refiner, state: CrystalBatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without gradients the pairs are worked off in parts, here of two pairs each."""
    whole = refiner.velocity(state, TIMES)
    monkeypatch.setattr(network_module, "_CACHED", 2 * 4 * refiner.config.network.width)
    with torch.no_grad():
        assert_same(refiner.velocity(state, TIMES), whole, 1e-6)


@pytest.mark.parametrize("edge", [-0.5, 0.0])
def test_image_density_is_continuous_where_the_choice_of_images_changes(edge: float) -> None:
    metric = torch.tensor(Lattice.from_parameters(3, 4, 5, 70, 80, 95).metric_tensor)[None]
    step = torch.tensor([[1e-7, 0.0, 0.0]], dtype=torch.float64)
    middle = torch.tensor([[edge, 0.2, -0.3]], dtype=torch.float64)
    below, above = (image_density(wrap_difference(middle + s), metric) for s in (-step, step))
    assert above.max() > 0.1
    assert torch.allclose(below, above, atol=1e-5)


@torch.no_grad()
def test_velocities_permute_with_the_atoms(refiner: Refiner, state: CrystalBatch) -> None:
    coord, cell = refiner.velocity(state, TIMES)
    # Atoms 3 to 7 are the third crystal.
    order = torch.tensor([0, 1, 2, 5, 3, 7, 6, 4, 8, 9, 10])
    permuted = CrystalBatch(
        atomic_numbers=state.atomic_numbers[order],
        frac_coords=state.frac_coords[order],
        lattice=state.lattice,
        num_atoms=state.num_atoms,
        batch=state.batch,
    )
    assert_same(refiner.velocity(permuted, TIMES), (coord[order], cell), 1e-5)


@torch.no_grad()
def test_velocities_do_not_change_with_translation(refiner: Refiner, state: CrystalBatch) -> None:
    shift = torch.tensor([[0.3, -0.2, 0.9], [0.5, 0.5, 0.1], [-0.7, 0.15, 0.35], [0.01, 0.8, 0.6]])
    # The atoms of the first crystal lie exactly half a period apart, where rounding decides.
    coords = state.frac_coords + 0.03 * state.atomic_numbers.unsqueeze(-1).remainder(7)
    moved = state.at(coords + shift[state.batch], state.lattice)
    here = state.at(coords, state.lattice)
    assert_same(refiner.velocity(moved, TIMES), refiner.velocity(here, TIMES), 2e-5)


@torch.no_grad()
def test_velocities_do_not_change_with_whole_periods(refiner: Refiner, state: CrystalBatch) -> None:
    turns = torch.randint(-2, 3, state.frac_coords.shape, generator=torch.manual_seed(3))
    # Multiples of 1/256 stay exact when whole numbers are added.
    coords = (state.frac_coords * 256).round() / 256
    moved = state.at(coords + turns, state.lattice)
    here = state.at(coords, state.lattice)
    assert_same(refiner.velocity(moved, TIMES), refiner.velocity(here, TIMES), 1e-6)


@torch.no_grad()
def test_velocities_do_not_change_with_rotation(
    structures: list[Structure], refiner: Refiner
) -> None:
    turn, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))
    turned = [
        Structure(Lattice(s.lattice.matrix @ turn), s.species, s.frac_coords) for s in structures
    ]
    here, there = (CrystalBatch.from_structures(s, refiner.cell) for s in (structures, turned))
    assert_same(refiner.velocity(there, TIMES), refiner.velocity(here, TIMES), 1e-5)


@torch.no_grad()
def test_a_crystal_does_not_see_its_batch(
    structures: list[Structure], refiner: Refiner, state: CrystalBatch
) -> None:
    coord, cell = refiner.velocity(state, TIMES)
    for k, structure in enumerate(structures):
        alone = CrystalBatch.from_structures([structure], refiner.cell)
        velocity = refiner.velocity(alone, TIMES[k : k + 1])
        assert_same(velocity, (coord[state.batch == k], cell[k : k + 1]), 1e-5)


@torch.no_grad()
def test_mean_coordinate_velocity_is_zero(refiner: Refiner, state: CrystalBatch) -> None:
    coord, _ = refiner.velocity(state, TIMES)
    total = torch.zeros(4, 3).index_add(0, state.batch, coord)
    assert total.abs().max() < 1e-5
    assert coord[2].abs().max() == 0  # the single atom


def test_coinciding_atoms_have_finite_velocities_and_gradients(refiner: Refiner) -> None:
    piled = Structure(Lattice.cubic(3), ["Fe"] * 3, [[0.2, 0.2, 0.2]] * 3)
    state = CrystalBatch.from_structures([piled], refiner.cell)
    coord, cell = refiner.velocity(state, torch.tensor([0.5]))
    (coord.square().sum() + cell.square().sum()).backward()
    assert coord.isfinite().all() and cell.isfinite().all()
    assert all(p.grad.isfinite().all() for p in refiner.parameters() if p.grad is not None)


@pytest.mark.parametrize(
    "lattice",
    [
        Lattice.from_parameters(2, 2, 80, 90, 90, 90),
        Lattice.from_parameters(0.1, 0.1, 0.1, 90, 90, 90),
        Lattice.from_parameters(3, 3, 3, 1, 1, 1),
        Lattice.from_parameters(5, 5, 5, 119.9, 119.9, 119.9),
    ],
    ids=["needle", "tiny", "sharp", "flat"],
)
def test_extreme_cells_have_finite_velocities_and_gradients(
    refiner: Refiner, lattice: Lattice
) -> None:
    structure = Structure(lattice, ["Fe", "O"], [[0, 0, 0], [0.5, 0.2, 1e-7]])
    state = CrystalBatch.from_structures([structure], refiner.cell)
    coord, cell = refiner.velocity(state, torch.tensor([0.5]))
    (coord.square().sum() + cell.square().sum()).backward()
    assert coord.isfinite().all() and cell.isfinite().all()
    assert all(p.grad.isfinite().all() for p in refiner.parameters() if p.grad is not None)


def test_a_batch_of_single_atoms_has_gradients_for_every_weight(refiner: Refiner) -> None:
    """Distributed training waits for a gradient of every weight."""
    copper = Structure(Lattice.cubic(3), ["Cu"], [[0.1, 0.2, 0.3]])
    state = CrystalBatch.from_structures([copper, copper], refiner.cell)
    coord, cell = refiner.velocity(state, torch.tensor([0.2, 0.7]))
    assert coord.abs().max() == 0 and cell.abs().max() > 0
    (coord.sum() + cell.square().sum()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in refiner.parameters())


def test_memory_is_linear_in_the_batch(refiner: Refiner) -> None:
    """The largest tensor of a step holds as many numbers per crystal in every batch."""
    rng = np.random.default_rng(0)
    crystal = Structure(Lattice.cubic(5), ["Na"] * 6, rng.random((6, 3)))
    largest = []
    for count in (8, 32):
        state = CrystalBatch.from_structures([crystal] * count, refiner.cell)
        sizes: list[int] = []

        def note(tensor: Tensor, sizes: list[int] = sizes) -> Tensor:
            sizes.append(tensor.numel())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            refiner.velocity(state, torch.full((count,), 0.5))
        largest.append((max(sizes), sum(sizes)))
    assert largest[1][0] <= 4 * largest[0][0]
    assert largest[1][1] <= 4 * largest[0][1]


@torch.no_grad()
def test_velocities_depend_on_all_inputs(refiner: Refiner, state: CrystalBatch) -> None:
    coord, cell = refiner.velocity(state, TIMES)
    generator = torch.Generator().manual_seed(0)
    noise = torch.rand(state.frac_coords.shape, generator=generator)
    for other, times in (
        (state.at(state.frac_coords + noise, state.lattice), TIMES),
        (state.at(state.frac_coords, state.lattice + 1), TIMES),
        (state, 1 - TIMES),
    ):
        new_coord, new_cell = refiner.velocity(other, times)
        # Well above the rounding of float32; at random weights some inputs weigh little.
        assert (new_coord - coord).abs().max() > 1e-4
        assert (new_cell - cell).abs().max() > 1e-4


@torch.no_grad()
def test_bfloat16_autocast_is_close(refiner: Refiner, state: CrystalBatch) -> None:
    full = refiner.velocity(state, TIMES)
    with torch.autocast("cpu", torch.bfloat16):
        half = refiner.velocity(state, TIMES)
    assert half[0].dtype == half[1].dtype == torch.float32
    # bfloat16 keeps 8 bits; a few layers lose a few of them.
    assert_same(half, full, 0.03)
    assert not torch.equal(half[1], full[1])


def test_the_network_of_the_paper_has_its_number_of_parameters() -> None:
    network = VelocityNetwork(NetworkConfig(width=512, layers=6, num_frequencies=128))
    # Miller et al. 2024 report 14.2 M for their own network of this width and depth; this one
    # keeps the cell and the time apart from the atoms, hence the tolerance.
    assert sum(p.numel() for p in network.parameters()) == pytest.approx(14.2e6, rel=0.15)


def test_empty_networks_and_unknown_elements_are_refused(refiner: Refiner) -> None:
    with pytest.raises(RefinerError, match="layers is 0"):
        NetworkConfig(layers=0)
    refiner.network.config.max_atomic_number = 20
    iron = Structure(Lattice.cubic(3), ["Fe"], [[0, 0, 0]])
    state = CrystalBatch.from_structures([iron], refiner.cell)
    with pytest.raises(RefinerError, match="atomic number 26 .* 20"):
        refiner.velocity(state, torch.tensor([0.0]))


def test_recomputing_saves_memory_and_changes_no_gradient(
    refiner: Refiner, monkeypatch: pytest.MonkeyPatch
) -> None:
    coords = np.random.default_rng(0).random((30, 3))
    crystal = Structure(Lattice.cubic(7), ["Na"] * 30, coords)  # 435 pairs, in three parts
    state = CrystalBatch.from_structures([crystal], refiner.cell)
    times = TIMES[:1]
    monkeypatch.setattr(network_module, "_RECOMPUTED", 4 * refiner.config.network.width * 200)
    gradients, saved = [], []
    for recompute in (False, True):
        refiner.network.recompute = recompute
        refiner.zero_grad()
        sizes: list[int] = []

        def note(tensor: Tensor, sizes: list[int] = sizes) -> Tensor:
            sizes.append(tensor.numel())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            coord, cell = refiner.velocity(state, times)
        (coord.square().sum() + cell.square().sum()).backward()
        gradients.append([p.grad.clone() for p in refiner.parameters()])
        saved.append(sum(sizes))
    refiner.network.recompute = False
    assert saved[1] < 0.6 * saved[0]
    for plain, recomputed in zip(*gradients, strict=True):
        assert torch.allclose(plain, recomputed, atol=1e-5)


# torch 2.13's compiler looks at .grad of every input, also where it has none.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")
def test_compiled_messages_are_the_same_for_all_numbers_of_pairs(
    refiner: Refiner, state: CrystalBatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The graph that the compiler is given, run as it is: machine code takes half a minute to make.
    compiled = partial(torch.compile, backend="eager", fullgraph=True)
    monkeypatch.setattr(torch, "compile", compiled)
    crystal = Structure(Lattice.cubic(4), ["Na"] * 9, np.random.default_rng(0).random((9, 3)))
    small = CrystalBatch.from_structures([crystal], refiner.cell)
    cases = [(state, TIMES), (small, TIMES[:1])]
    plain = [refiner.velocity(*case) for case in cases]
    refiner.network.compile_messages()
    torch._dynamo.reset()
    counters = torch._dynamo.utils.counters
    counters.clear()
    for case, expected in zip(cases, plain, strict=True):
        assert_same(refiner.velocity(*case), expected, 1e-6)
    assert counters["stats"]["unique_graphs"] == 1
