"""The space group of a base crystal, and what is left of motions after their average over it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import moyopy
import numpy as np
import pytest
import spglib
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from pymatgen.core import Lattice, Structure

from rfm.averages import SymmetryBatch
from rfm.base import crystal_generator
from rfm.batch import CrystalBatch
from rfm.config import BaseConfig, IntegrationConfig, NetworkConfig, RefinerConfig, Statistics
from rfm.dataset import PairDataset, PairedCrystal, collate
from rfm.errors import RefinerError
from rfm.integration import integrate
from rfm.lattice import StandardChart
from rfm.likelihood import batch_log_likelihood
from rfm.model import Refiner
from rfm.refining import refine
from rfm.symmetry import Operations, Symmetry, find_symmetry
from support import BUNDLED_REFINER, SALT, same_bits, skewed

# Crystals of every family and centring, most with free coordinates.
FAMILIES = {
    name: Structure.from_spacegroup(name, lattice, species, coords)
    for name, lattice, species, coords in (
        (
            "P-1",
            Lattice.from_parameters(4.1, 5.3, 6.2, 82, 97, 105),
            ["Ti", "O"],
            [[0, 0, 0], [0.21, 0.33, 0.12]],
        ),
        (
            "C2/m",
            Lattice.monoclinic(9.1, 3.2, 5.7, 103),
            ["Ga", "O"],
            [[0.1, 0, 0.3], [0.4, 0, 0.2]],
        ),
        (
            "Pnma",
            Lattice.orthorhombic(7.1, 4.2, 5.3),
            ["Fe", "B"],
            [[0.18, 0.25, 0.12], [0.04, 0.25, 0.6]],
        ),
        ("Immm", Lattice.orthorhombic(3.4, 4.3, 9.9), ["La", "Ni"], [[0, 0, 0.29], [0, 0.5, 0.11]]),
        (
            "I4/mmm",
            Lattice.tetragonal(3.9, 12.6),
            ["Sr", "Ti", "O"],
            [[0, 0, 0.35], [0, 0, 0], [0, 0, 0.16]],
        ),
        ("P4_2/mnm", Lattice.tetragonal(4.6, 2.9), ["Ti", "O"], [[0, 0, 0], [0.305, 0.305, 0]]),
        (
            "R-3m",
            Lattice.hexagonal(2.9, 14.2),
            ["Li", "Co", "O"],
            [[0, 0, 0], [0, 0, 0.5], [0, 0, 0.24]],
        ),
        (
            "P3_121",
            Lattice.hexagonal(4.9, 5.4),
            ["Si", "O"],
            [[0.47, 0, 1 / 3], [0.41, 0.27, 0.22]],
        ),
        (
            "P6_3mc",
            Lattice.hexagonal(3.2, 5.2),
            ["Zn", "O"],
            [[1 / 3, 2 / 3, 0], [1 / 3, 2 / 3, 0.38]],
        ),
        ("Pa-3", Lattice.cubic(5.4), ["Fe", "S"], [[0, 0, 0], [0.385, 0.385, 0.385]]),
        ("Fd-3m", Lattice.cubic(8.1), ["Mg", "Al", "O"], [[0.125] * 3, [0.5] * 3, [0.263] * 3]),
        ("Fm-3m", Lattice.cubic(5.69), ["Na", "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]]),
    )
}
NAMES = st.sampled_from(sorted(FAMILIES))
SEEDS = st.integers(0, 10_000)


def group_number(structure: Structure, symprec: float) -> int | None:
    cell: Any = (structure.lattice.matrix, structure.frac_coords, structure.atomic_numbers)
    dataset = spglib.get_symmetry_dataset(cell, symprec=symprec)
    return None if dataset is None else dataset.number


def rough(structure: Structure, rng: np.random.Generator, size: float = 0.01) -> Structure:
    """The crystal with errors of positions in Angstrom and a strain, far below `SYMPREC`."""
    strain = np.eye(3) + 0.2 * size * rng.uniform(-1, 1, (3, 3))
    coords = structure.cart_coords + size * rng.uniform(-1, 1, structure.frac_coords.shape)
    lattice = structure.lattice.matrix
    return Structure(Lattice(lattice @ strain), structure.species, coords @ np.linalg.inv(lattice))


def other_cell(structure: Structure, rng: np.random.Generator) -> Structure:
    """The crystal in a random cell of the same lattice, with another origin and order of atoms."""
    change = np.eye(3)
    for _ in range(3):
        row, column = rng.permutation(3)[:2]
        shear = np.eye(3)
        shear[row, column] = rng.choice([-1, 1])
        change = shear @ change
    coords = structure.frac_coords @ np.linalg.inv(change) + rng.random(3)
    order = rng.permutation(len(structure))
    return Structure(
        Lattice(change @ structure.lattice.matrix),
        [structure.species[k] for k in order],
        coords[order],
        to_unit_cell=True,
    )


def drawn(name: str, seed: int, *, primitive: bool = True) -> Structure:
    rng = np.random.default_rng(seed)
    structure = FAMILIES[name]
    return rough(
        other_cell(structure.get_primitive_structure() if primitive else structure, rng), rng
    )


def wrapped(differences: np.ndarray) -> np.ndarray:
    return differences - np.round(differences)


def found(structure: Structure) -> Symmetry:
    symmetry = find_symmetry(structure)
    assert symmetry is not None
    return symmetry


def deviation(symmetry: Symmetry, frac_coords: np.ndarray, metric: np.ndarray) -> float:
    """Largest distance in Angstrom of an image from its atom, one operation after the other."""
    largest = 0.0
    for rotation, shift, sources in zip(
        symmetry.rotations, symmetry.translations, symmetry.sources, strict=True
    ):
        for i, j in enumerate(sources):
            off = wrapped(rotation @ frac_coords[j] + shift - frac_coords[i])
            largest = max(largest, float(np.sqrt(off @ metric @ off)))
        turned = rotation.T @ metric @ rotation
        largest = max(
            largest, float(np.abs(np.sqrt(np.diag(turned)) - np.sqrt(np.diag(metric))).max())
        )
    return largest


def small_refiner(chart: str, structures: list[Structure], **base: float) -> Refiner:
    """A refiner with the weights of a fixed seed, in the units of the given cells."""
    plain = StandardChart(chart, torch.zeros(6), torch.ones(6))
    vectors = plain.encode(torch.tensor(np.array([s.lattice.matrix for s in structures])))
    statistics = Statistics(
        mean=vectors.mean(0).tolist(),
        std=[0.5] * 6,
        log_length_mean=[1.5] * 3,
        log_length_std=[0.2] * 3,
    )
    torch.manual_seed(0)
    network = NetworkConfig(width=16, layers=2, num_frequencies=3)
    config = RefinerConfig(
        statistics=statistics, chart=chart, network=network, base=BaseConfig(**base)
    )
    return Refiner(config).eval()


# The group of one crystal


@settings(max_examples=60, deadline=None)
@given(name=NAMES, seed=SEEDS, primitive=st.booleans())
def test_a_rough_crystal_in_any_cell_becomes_exactly_symmetric(
    name: str, seed: int, primitive: bool
) -> None:
    structure = drawn(name, seed, primitive=primitive)
    symmetry = found(structure)
    exact = symmetry.symmetrised(structure)
    number = group_number(FAMILIES[name], 0.01)
    assert group_number(structure, 1e-4) != number or name == "P-1"
    assert group_number(exact, 1e-7) == number
    assert deviation(symmetry, exact.frac_coords, exact.lattice.metric_tensor) < 1e-10
    assert exact.species == structure.species
    off = wrapped(exact.frac_coords - structure.frac_coords)
    assert np.abs(off.mean(0)).max() < 1e-12  # the centre stays
    assert np.abs(off @ structure.lattice.matrix).max() < 0.05
    again = symmetry.symmetrised(exact)
    assert np.allclose(again.lattice.matrix, exact.lattice.matrix, atol=1e-12)


def test_the_cell_keeps_its_handedness() -> None:
    left = Structure(Lattice(SALT.lattice.matrix * [1, 1, -1]), SALT.species, SALT.frac_coords)
    exact = found(left).symmetrised(left)
    assert np.linalg.det(exact.lattice.matrix) < 0
    assert np.allclose(exact.lattice.metric_tensor, left.lattice.metric_tensor)


def test_real_crystals_become_symmetric(mp20: list[Structure]) -> None:
    families = set()
    for structure in mp20:
        exact = found(structure).symmetrised(structure)
        number = group_number(structure, 0.1)
        assert group_number(exact, 1e-5) == number
        families.add(sum(number > bound for bound in (2, 15, 74, 142, 167, 194)))
    assert families == set(range(7))  # triclinic to cubic


@pytest.mark.parametrize(
    "lattice", [Lattice.cubic(3), Lattice.from_parameters(3, 4, 5, 80, 85, 99)]
)
def test_a_single_atom_stays_where_it_is(lattice: Lattice) -> None:
    atom = Structure(lattice, ["Fe"], [[0.1, 0.2, 0.3]])
    symmetry = found(atom)
    assert len(symmetry.rotations) in (2, 48)
    assert np.allclose(symmetry.symmetrised(atom).frac_coords, atom.frac_coords)
    assert np.array_equal(symmetry.blocks.average(np.ones((1, 3))), np.zeros((1, 3)))


def test_a_crystal_without_symmetry_has_the_identity_alone() -> None:
    symmetry = found(skewed())
    assert symmetry.trivial
    motions = np.random.default_rng(0).normal(size=(5, 3))
    assert np.array_equal(symmetry.blocks.average(motions), motions)
    assert np.array_equal(symmetry.metric_average, np.eye(6))


def test_a_search_that_fails_finds_nothing() -> None:
    piled = Structure(Lattice.cubic(4), ["Fe", "Fe"], [[0, 0, 0], [0, 0, 0]])
    assert find_symmetry(piled) is None


def test_operations_can_be_handed_in() -> None:
    structure = rough(SALT.get_primitive_structure(), np.random.default_rng(0))
    inversion = np.array([np.eye(3), -np.eye(3)])
    first = structure.frac_coords[0]
    symmetry = Symmetry.of(structure, Operations(inversion, np.array([0 * first, 2 * first])))
    exact = symmetry.symmetrised(structure)
    assert group_number(exact, 1e-5) == 2
    half = np.array([first, 2 * first])
    with pytest.raises(RefinerError, match="does not put atoms on atoms of their element"):
        Symmetry.of(structure, Operations(inversion, half))
    turns = found(SALT.get_primitive_structure())
    some = Operations(turns.rotations[:5], turns.translations[:5])
    with pytest.raises(RefinerError, match="the operations are no group"):
        Symmetry.of(SALT.get_primitive_structure(), some)
    with pytest.raises(RefinerError, match="puts two atoms on one"):
        Symmetry.of(
            Structure(Lattice.cubic(4), ["H", "H"], [[0, 0, 0], [0.02, 0, 0]]),
            Operations(np.array([np.eye(3)]), np.array([[0.015, 0, 0]])),
        )


# Averages


@settings(max_examples=40, deadline=None)
@given(name=NAMES, seed=SEEDS)
def test_averages_are_invariant_projections_that_keep_the_mean_free(name: str, seed: int) -> None:
    structure = drawn(name, seed)
    symmetry = found(structure)
    rng = np.random.default_rng(seed)
    motions = rng.normal(size=(len(structure), 3))
    average = symmetry.blocks.average(motions)
    naive = np.mean(
        [
            [rotation @ motions[j] for j in sources]
            for rotation, sources in zip(symmetry.rotations, symmetry.sources, strict=True)
        ],
        axis=0,
    )
    assert np.allclose(average, naive, atol=1e-12)
    assert np.allclose(symmetry.blocks.average(average), average, atol=1e-12)
    for rotation, sources in zip(symmetry.rotations, symmetry.sources, strict=True):
        assert np.allclose(average[sources] @ rotation.T, average, atol=1e-12)
    free = symmetry.blocks.average(motions - motions.mean(0))
    assert np.allclose(free.mean(0), 0, atol=1e-12)
    assert np.allclose(free, average - average.mean(0), atol=1e-12)


@pytest.mark.parametrize("chart", ["logmetric", "params"])
def test_a_batch_averages_as_its_crystals_do(chart: str) -> None:
    structures = [drawn(name, k) for k, name in enumerate(FAMILIES)]
    structures.insert(3, skewed())
    groups = [None if structure == skewed() else found(structure) for structure in structures]
    sizes = [len(structure) for structure in structures]
    cell = StandardChart(chart, torch.full((6,), 0.3), torch.linspace(0.4, 0.9, 6))
    batch = SymmetryBatch.of(groups, sizes, cell)

    rng = np.random.default_rng(0)
    motions = rng.normal(size=(sum(sizes), 3))
    averages = np.split(batch.blocks.average(torch.tensor(motions)).numpy(), np.cumsum(sizes)[:-1])
    for group, own, average in zip(
        groups, np.split(motions, np.cumsum(sizes)[:-1]), averages, strict=True
    ):
        assert np.allclose(average, own if group is None else group.blocks.average(own), atol=1e-6)

    matrices = torch.tensor(np.array([structure.lattice.matrix for structure in structures]))
    vectors = cell.encode(matrices) + 0.02 * torch.tensor(rng.normal(size=(len(sizes), 6)))
    metrics, averaged = cell.metric(vectors), cell.metric(batch.average_cells(vectors))
    for group, metric, average in zip(groups, metrics.numpy(), averaged.numpy(), strict=True):
        turns = [np.eye(3)] if group is None else group.rotations
        naive = np.mean([turn.T @ metric @ turn for turn in turns], axis=0)
        assert np.allclose(average, naive, atol=1e-9)
    assert torch.equal(batch.average_cells(vectors)[3], vectors[3])

    vectors[0] = torch.nan
    vectors[4, 0] = torch.inf
    vectors[5, 0] = 1e5  # finite, but no metric tensor
    finite = batch.average_cells(vectors).isfinite().all(-1)
    assert finite.tolist() == [k not in (0, 4, 5) for k in range(len(sizes))]


@settings(max_examples=20, deadline=None)
@given(
    name=st.sampled_from(["P-1", "Cm", "Imm2", "P4mm", "I-4", "P3m1", "R3m", "P6mm", "F23"]),
    seed=SEEDS,
)
def test_the_averaged_network_is_its_mean_over_the_descriptions_of_the_crystal(
    name: str, seed: int
) -> None:
    """Over the group: transform the crystal, ask the network, transform the answer back."""
    rng = np.random.default_rng(seed)
    cubic, hexagonal = name == "F23", name in ("P3m1", "R3m", "P6mm")
    lattice = Lattice.hexagonal(6, 9) if hexagonal else Lattice.cubic(9) if cubic else None
    # An atom on the origin and an orbit of the general position.
    structure = other_cell(
        Structure.from_spacegroup(
            name, lattice or Lattice.tetragonal(6, 9), ["O", "H"], [[0, 0, 0], rng.random(3)]
        ).get_primitive_structure(),
        rng,
    )
    symmetry = found(structure)
    refiner = small_refiner("logmetric", [structure], position_sigma=0.05, cell_sigma=0.05).double()
    batch = CrystalBatch.from_structures(
        [symmetry.symmetrised(structure)], refiner.cell, [symmetry]
    )
    state = refiner.draw_base(batch, [crystal_generator(seed, 0)])
    coords = state.frac_coords.double().numpy()
    lattice = state.symmetry.average_cells(state.lattice.double())
    metric = refiner.cell.metric(lattice)[0].numpy()
    assert deviation(symmetry, coords, metric) < 1e-5
    # The features of the network jump where two atoms are half a period apart.
    assume(np.abs(np.abs(wrapped(coords[:, None] - coords)) - 0.5).min() > 1e-3)

    t = torch.tensor([0.3], dtype=torch.float64)
    answers = []
    for rotation, shift in zip(symmetry.rotations, symmetry.translations, strict=True):
        back = np.linalg.inv(rotation)
        there = state.at(torch.tensor((coords @ rotation.T + shift) % 1.0), lattice)
        with torch.no_grad():
            velocity, _ = refiner.network(there, torch.tensor((back.T @ metric @ back)[None]), t)
        answers.append(velocity.numpy() @ back.T)
    with torch.no_grad():
        velocity, _ = refiner.velocity(state.at(state.frac_coords.double(), lattice), t)
    average = state.symmetry.blocks.average(velocity).numpy()
    assert np.allclose(average, np.mean(answers, axis=0), atol=2e-4 * float(velocity.abs().max()))


# Refining


@pytest.mark.parametrize("method", ["euler", "midpoint", "heun"])
@pytest.mark.parametrize("chart", ["logmetric", "params"])
def test_every_integrator_keeps_the_group_in_every_state(method: str, chart: str) -> None:
    structures = [drawn(name, k) for k, name in enumerate(FAMILIES)]
    groups = [found(structure) for structure in structures]
    refiner = small_refiner(chart, structures, position_sigma=0.05, cell_sigma=0.05)
    integration = IntegrationConfig(steps=20, method=method)
    results = refine(refiner, structures, integration=integration, trajectory=True)
    moved = 0
    for name, group, structure, result in zip(FAMILIES, groups, structures, results, strict=True):
        assert result.trajectory is not None
        for coords, lattice in zip(
            result.trajectory.frac_coords[::5], result.trajectory.lattice[::5], strict=True
        ):
            assert deviation(group, coords, lattice @ lattice.T) < 2e-5
        if result.structure is None:  # random weights may bring atoms together
            continue
        end = result.structure
        assert deviation(group, end.frac_coords, end.lattice.metric_tensor) < 1e-9
        assert group_number(end, 1e-4) == group_number(FAMILIES[name], 0.01)
        moved += np.abs(wrapped(end.frac_coords - structure.frac_coords)).max() > 0.05
    assert moved > 3


def test_the_bundled_refiner_keeps_the_groups_of_real_crystals(mp20: list[Structure]) -> None:
    refiner = Refiner.from_pretrained(BUNDLED_REFINER)
    kept = refine(refiner, mp20, seed=1)
    for structure, result in zip(mp20, kept, strict=True):
        assert result.structure is not None
        assert group_number(result.structure, 1e-4) == group_number(structure, 0.1)
        assert result.structure.composition == structure.composition


def test_without_symmetry_nothing_changes(mp20: list[Structure], refiner: Refiner) -> None:
    plain = [skewed(), *(s for s in mp20 if group_number(s, 0.1) == 1)]
    three = IntegrationConfig(steps=3)
    kept = refine(refiner, plain, integration=three, seed=4)
    free = refine(refiner, plain, integration=three, seed=4, symmetry="free")
    among = refine(refiner, [*plain, SALT], integration=three, seed=4)
    for one, two, three_ in zip(kept, free, among, strict=False):
        assert same_bits(one.structure, two.structure)
        assert np.allclose(one.structure.frac_coords, three_.structure.frac_coords, atol=1e-5)


def test_a_given_group_is_kept_instead_of_the_one_found(refiner: Refiner) -> None:
    structure = SALT.get_primitive_structure()
    three = IntegrationConfig(steps=3)
    whole = found(structure)
    places = [0, next(k for k, w in enumerate(whole.rotations) if np.array_equal(w, -np.eye(3)))]
    inversion = Symmetry.of(
        structure, Operations(whole.rotations[places], whole.translations[places])
    )
    results = refine(refiner, [structure] * 2, integration=three, groups=[inversion, None])
    assert [group_number(result.structure, 1e-4) for result in results] == [2, 1]


def test_a_base_of_noise_has_no_symmetry_to_keep(refiner: Refiner, mp20: list[Structure]) -> None:
    refiner.config.base = BaseConfig(kind="uniform")
    three = IntegrationConfig(steps=3)
    kept, free = (
        refine(refiner, mp20[:4], integration=three, symmetry=symmetry)
        for symmetry in ("keep", "free")
    )
    assert all(same_bits(a.structure, b.structure) for a, b in zip(kept, free, strict=True))


def test_the_likelihood_is_that_of_the_free_flow(refiner: Refiner) -> None:
    structure = drawn("R-3m", 0)
    symmetry = found(structure)
    state = CrystalBatch.from_structures(
        [symmetry.symmetrised(structure)], refiner.cell, [symmetry]
    )
    free = replace(state, symmetry=None)
    (one,), (two,) = (
        batch_log_likelihood(refiner, s, free, [crystal_generator(0, 0)], steps=2)
        for s in (state, free)
    )
    assert one == two
    assert one.degrees_of_freedom == 3 * len(structure) + 3


def test_a_crystal_lost_on_the_way_leaves_the_others_symmetric(refiner: Refiner) -> None:
    structures = [drawn("R-3m", 0), drawn("Fd-3m", 1), drawn("Pnma", 2)]
    groups = [found(structure) for structure in structures]
    exact = [g.symmetrised(s) for g, s in zip(groups, structures, strict=True)]
    state = CrystalBatch.from_structures(exact, refiner.cell, groups)

    class Lossy:
        def velocity(
            self, state: CrystalBatch, t: torch.Tensor
        ) -> tuple[torch.Tensor, torch.Tensor]:
            coord, lattice = refiner.velocity(state, t)
            lattice = lattice.clone()
            lattice[1] = torch.inf
            return coord, lattice

    with torch.no_grad():
        end = integrate(Lossy(), state, IntegrationConfig(steps=4))
    assert end.finite.tolist() == [True, False, True]
    parts = np.split(end.state.frac_coords.numpy(), np.cumsum([len(s) for s in exact])[:-1])
    metrics = refiner.cell.metric(end.state.lattice.double()).numpy()
    for group, coords, metric in zip(groups, parts, metrics, strict=True):
        assert deviation(group, coords, metric) < 1e-5


def test_crystals_whose_symmetry_is_not_found_are_counted(
    refiner: Refiner, caplog: pytest.LogCaptureFixture
) -> None:
    piled = Structure(Lattice.cubic(4), ["Fe", "Fe"], [[0, 0, 0], [0, 0, 0]])
    results = refine(refiner, [piled, SALT], integration=IntegrationConfig(steps=2))
    assert caplog.messages[0] == (
        "1 of 2 structures are refined without symmetry, as spglib finds none"
    )
    assert group_number(results[1].structure, 1e-4) == 225


def test_groups_that_do_not_fit_are_refused(refiner: Refiner, structures: list[Structure]) -> None:
    with pytest.raises(RefinerError, match="1 groups for 4 structures; give one group each"):
        refine(refiner, structures, groups=[None])
    with pytest.raises(RefinerError, match="groups are given, but symmetry is free"):
        refine(refiner, structures, groups=[None] * 4, symmetry="free")
    with pytest.raises(RefinerError, match="structure 2 has 5 atoms and its group 8; give the"):
        refine(refiner, structures, groups=[None, None, found(SALT), None])


# Training


def test_the_loss_is_that_of_the_averaged_velocity(refiner: Refiner, mp20: list[Structure]) -> None:
    pairs = [
        PairedCrystal(
            id=str(k),
            atomic_numbers=np.array(structure.atomic_numbers),
            base_frac_coords=structure.frac_coords,
            base_lattice=structure.lattice.matrix,
            target_frac_coords=structure.frac_coords,
            target_lattice=structure.lattice.matrix * 1.02,
        )
        for k, structure in enumerate(mp20[:12])
    ]
    base = BaseConfig(position_sigma=0.05, symmetry="keep")
    data = PairDataset(pairs, base=base, statistics=refiner.config.statistics)
    draws = [data.draw(k, np.random.default_rng(k)) for k in range(12)]
    batch = collate(draws)
    loss = refiner(**batch)
    loss["loss"].backward()
    assert all(weight.grad is not None for weight in refiner.parameters())

    point, (free, _) = refiner.path_velocity(
        **{name: value for name, value in batch.items() if name not in ("ids", "blocks")}
    )
    ends = np.cumsum([len(structure) for structure in mp20[:12]])[:-1]
    squares = []
    for item, velocity, target in zip(
        draws,
        np.split(free.detach().numpy(), ends),
        np.split(point.coord_velocity.numpy(), ends),
        strict=True,
    ):
        blocks = item["blocks"]
        average = velocity if blocks is None else blocks.average(velocity)
        squares.append((average - target) ** 2)
        if blocks is not None:  # the path keeps the group
            assert np.allclose(blocks.average(target), target, atol=1e-6)
    expected = float(np.concatenate(squares).mean())
    assert loss["coord_loss"].item() == pytest.approx(expected, rel=1e-4)
    unaveraged = float((free.detach() - point.coord_velocity).square().mean())
    assert unaveraged > 1.05 * expected


@pytest.mark.parametrize(
    "matrix",
    [
        [[0.2118, 0.1229, 0.0416], [-75.7, 351.7, 472.9], [0.0354, 0.0258, 0.007]],
        [[4, 0, 0], [0, 4, 0], [400, 80, 4]],
    ],
)
def test_moyo_is_not_asked_about_cells_that_are_not_reduced(
    matrix: list[list[float]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*args: object, **settings: object) -> None:
        raise AssertionError("moyo may not come to an end")

    monkeypatch.setattr(moyopy, "MoyoDataset", never)
    find_symmetry(Structure(Lattice(matrix), ["Na", "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]]))
