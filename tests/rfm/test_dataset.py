from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from pymatgen.core import Lattice, Structure

from rfm.averages import BlockBatch
from rfm.config import BaseConfig
from rfm.dataset import PairDataset, PairedCrystal, collate
from rfm.errors import RefinerError


def make_pairs(count: int = 6) -> list[PairedCrystal]:
    rng = np.random.default_rng(11)
    pairs = []
    for k in range(count):
        n = 1 + k % 4
        lattice = Lattice.from_parameters(*rng.uniform(3, 8, 3), *rng.uniform(75, 105, 3)).matrix
        target = rng.random((n, 3))
        pairs.append(
            PairedCrystal(
                id=f"pair-{k}",
                atomic_numbers=rng.integers(1, 90, n),
                base_frac_coords=target + rng.normal(0, 0.05, (n, 3)),
                base_lattice=lattice * 1.05,
                target_frac_coords=target,
                target_lattice=lattice,
            )
        )
    return pairs


def test_a_draw_without_noise_is_the_pair() -> None:
    pairs = make_pairs()
    data = PairDataset(pairs)
    assert len(data) == 6
    for k, pair in enumerate(pairs):
        item = data.draw(k, np.random.default_rng(0))
        assert data.size(k) == len(item["atomic_numbers"]) == len(pair.atomic_numbers)
        assert item["ids"] == pair.id
        assert (item["atomic_numbers"] == pair.atomic_numbers).all()
        assert np.allclose(item["base_frac_coords"], pair.base_frac_coords % 1, atol=1e-6)
        assert np.allclose(item["target_frac_coords"], pair.target_frac_coords)
        for key in ("base", "target"):
            vector = torch.tensor(item[f"{key}_lattice"])[None].double()
            back = Lattice(data.cell.decode(vector)[0].numpy())
            expected = Lattice(getattr(pair, f"{key}_lattice"))
            assert np.allclose(back.parameters, expected.parameters, rtol=1e-5)
        assert 0 <= item["t"] <= 1


def test_cells_are_standardised_over_base_and_target() -> None:
    data = PairDataset(make_pairs(40))
    items = [data.draw(k, np.random.default_rng(k)) for k in range(40)]
    both = np.array([i["base_lattice"] for i in items] + [i["target_lattice"] for i in items])
    assert np.allclose(both.mean(0), 0, atol=1e-5)
    assert np.allclose(both.std(0), 1, atol=1e-5)


def test_statistics_of_one_cell_do_not_divide_by_nothing() -> None:
    same = replace(make_pairs()[0], base_lattice=np.eye(3) * 4, target_lattice=np.eye(3) * 4)
    statistics = PairDataset([same] * 3).statistics
    assert statistics.std == [1.0] * 6
    assert np.allclose(statistics.log_length_mean, np.log(4))


def test_noise_has_the_width_asked_for() -> None:
    pairs = make_pairs()
    clean = PairDataset(pairs)
    noisy = PairDataset(pairs, base=BaseConfig(position_sigma=0.05, cell_sigma=0.2))
    rng = np.random.default_rng(0)
    coords, cells = [], []
    for _ in range(400):
        for k in range(6):
            item, plain = noisy.draw(k, rng), clean.draw(k, np.random.default_rng(0))
            assert ((item["base_frac_coords"] >= 0) & (item["base_frac_coords"] < 1)).all()
            d = item["base_frac_coords"] - plain["base_frac_coords"]
            d -= np.round(d)
            assert np.abs(d.mean(0)).max() < 1e-6  # no shift of the whole crystal
            if (n := len(d)) > 1:  # removing the mean takes one of n degrees of freedom
                coords.append(d.ravel() / np.sqrt(1 - 1 / n))
            cells.append(item["base_lattice"] - plain["base_lattice"])
    # Some 15,000 numbers each: the standard error of a width is half a percent.
    assert np.concatenate(coords).std() == pytest.approx(0.05, rel=0.03)
    assert np.concatenate(cells).std() == pytest.approx(0.2, rel=0.03)


def test_a_draw_depends_on_its_generator_alone() -> None:
    for kind in ("llm", "file", "uniform"):
        data = PairDataset(make_pairs(), base=BaseConfig(kind=kind, position_sigma=0.1))
        first = data.draw(3, np.random.default_rng(42))
        data.draw(1, np.random.default_rng(0))
        again = data.draw(3, np.random.default_rng(42))
        other = data.draw(3, np.random.default_rng(43))
        for key in ("base_frac_coords", "base_lattice", "t"):
            assert np.array_equal(first[key], again[key])
        assert not np.array_equal(first["base_frac_coords"], other["base_frac_coords"])
        assert first["t"] != other["t"]


def test_validation_uses_the_statistics_of_training() -> None:
    train = PairDataset(make_pairs())
    validation = PairDataset(make_pairs(2), statistics=train.statistics)
    a, b = (data.draw(0, np.random.default_rng(0)) for data in (train, validation))
    assert np.array_equal(a["target_lattice"], b["target_lattice"])
    assert PairDataset(make_pairs(2)).statistics != train.statistics


def test_uniform_base_needs_no_prior() -> None:
    bare = [replace(p, base_frac_coords=None, base_lattice=None) for p in make_pairs()]
    data = PairDataset(bare, base=BaseConfig(kind="uniform"))
    assert data.draw(5, np.random.default_rng(0))["base_frac_coords"].shape == (2, 3)
    with pytest.raises(RefinerError, match="'pair-0' has no base crystal"):
        PairDataset(bare)


def test_collate_gives_tensors_of_the_documented_shapes_and_types() -> None:
    data = PairDataset(make_pairs())
    batch = collate([data.draw(k, np.random.default_rng(k)) for k in (3, 0, 2)])
    assert batch["ids"] == ["pair-3", "pair-0", "pair-2"]
    assert batch["num_atoms"].tolist() == [4, 1, 3]
    shapes = {
        "atomic_numbers": (8,),
        "base_frac_coords": (8, 3),
        "target_frac_coords": (8, 3),
        "base_lattice": (3, 6),
        "target_lattice": (3, 6),
        "t": (3,),
    }
    for key, shape in shapes.items():
        assert batch[key].shape == shape
        assert batch[key].dtype == (torch.int64 if key == "atomic_numbers" else torch.float32)
    assert batch.keys() == shapes.keys() | {"ids", "num_atoms"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"target_frac_coords": np.zeros((9, 3))}, r"target_frac_coords has shape \(9, 3\)"),
        ({"base_lattice": np.zeros((3, 3))}, "base_lattice has no volume"),
        ({"base_lattice": np.diag([1e200, 1.0, 1.0])}, "base_lattice has no volume"),
        # A row is a sum of the others, but for rounding.
        ({"target_lattice": [[0.1, 0.2, 0.3], [1, 2, 3.1], [1.1, 2.2, 3.4]]}, "has no volume"),
        ({"atomic_numbers": np.array([8, 0, 8])}, "the atomic number 0, which no element has"),
        ({"target_lattice": np.full((3, 3), np.nan)}, "target_lattice holds a number"),
        ({"atomic_numbers": np.array([], dtype=int)}, "no atoms"),
    ],
)
def test_pairs_that_do_not_fit_together_are_refused(change: dict, message: str) -> None:
    pairs = make_pairs()
    with pytest.raises(RefinerError, match=f"'pair-2'.*{message}"):
        PairDataset([*pairs[:2], replace(pairs[2], **change)])


def test_an_empty_data_set_is_refused() -> None:
    with pytest.raises(RefinerError, match="no pairs"):
        PairDataset([])


def symmetric_pair(name: str, target: Structure) -> PairedCrystal:
    """A rough rocksalt as the base of a target with the same two atoms."""
    base = Structure(
        Lattice.from_parameters(4.0, 4.02, 4.0, 60.2, 60, 59.9),
        ["Na", "Cl"],
        [[0.005] * 3, [0.5] * 3],
    )
    return PairedCrystal(
        id=name,
        atomic_numbers=np.array([11, 17]),
        base_frac_coords=base.frac_coords,
        base_lattice=base.lattice.matrix,
        target_frac_coords=target.frac_coords,
        target_lattice=target.lattice.matrix,
    )


@pytest.mark.parametrize("chart_name", ["logmetric", "params"])
def test_paths_are_symmetric_where_the_target_has_the_group_of_its_base(chart_name: str) -> None:
    rocksalt = Lattice.from_parameters(3.9, 3.9, 3.9, 60, 60, 60)
    pairs = [
        symmetric_pair("same", Structure(rocksalt, ["Na", "Cl"], [[0.003] * 3, [0.502] * 3])),
        symmetric_pair("off centre", Structure(rocksalt, ["Na", "Cl"], [[0] * 3, [0.45] * 3])),
        symmetric_pair(
            "strained",
            Structure(
                Lattice.from_parameters(3.9, 3.9, 4.4, 60, 60, 60),
                ["Na", "Cl"],
                [[0] * 3, [0.5] * 3],
            ),
        ),
        make_pairs(4)[3],  # a base without symmetry
    ]
    noise = BaseConfig(position_sigma=0.05, cell_sigma=0.1)
    keep = PairDataset(pairs, chart_name=chart_name, base=replace(noise, symmetry="keep"))
    assert keep.ids == ["same", pairs[3].id]
    free = PairDataset(
        [pairs[0], pairs[3]], chart_name=chart_name, base=noise, statistics=keep.statistics
    )
    draws, as_they_are = (
        [data.draw(k, np.random.default_rng(k)) for k in range(2)] for data in (keep, free)
    )
    assert [item["blocks"] is not None for item in draws] == [True, False]
    assert all(np.array_equal(draws[1][key], value) for key, value in as_they_are[1].items())
    # In rocksalt no atom can move, and cubic cells differ by their volume alone.
    for key in ("base", "target"):
        gap = draws[0][f"{key}_frac_coords"][1] - draws[0][f"{key}_frac_coords"][0]
        assert np.allclose(np.abs(gap), 0.5, atol=1e-6)
        vector = torch.tensor(draws[0][f"{key}_lattice"])[None].double()
        *lengths, alpha, beta, gamma = Lattice(keep.cell.decode(vector)[0].numpy()).parameters
        assert np.allclose(lengths, lengths[0], rtol=1e-5)
        assert np.allclose([alpha, beta, gamma], 60, atol=1e-3)
    assert not np.allclose(draws[0]["base_lattice"], as_they_are[0]["base_lattice"], atol=1e-3)

    batch = collate(draws)
    average = BlockBatch(**batch["blocks"]).average(torch.ones(len(batch["base_frac_coords"]), 3))
    assert torch.equal(average[:2], torch.zeros(2, 3)) and torch.equal(
        average[2:], torch.ones(len(average) - 2, 3)
    )
    with pytest.raises(RefinerError, match="no target has the space group of its base; give other"):
        PairDataset(pairs[1:3], base=replace(noise, symmetry="keep"))


def test_draws_without_symmetry_have_no_blocks() -> None:
    assert "blocks" not in PairDataset(make_pairs()).draw(0, np.random.default_rng(0))


@pytest.mark.parametrize("chart_name", ["logmetric", "params"])
def test_cells_of_real_crystals_survive_the_chart(chart_name: str, mp20: list[Structure]) -> None:
    pairs = [
        PairedCrystal(
            id=str(k),
            atomic_numbers=np.array(structure.atomic_numbers),
            base_frac_coords=structure.frac_coords.round(2),
            base_lattice=structure.lattice.matrix,
            target_frac_coords=structure.frac_coords,
            target_lattice=structure.lattice.matrix,
        )
        for k, structure in enumerate(mp20)
    ]
    data = PairDataset(pairs, chart_name=chart_name)
    rng = np.random.default_rng(0)
    batch = collate([data.draw(k, rng) for k in range(len(pairs))])
    back = data.cell.decode(batch["target_lattice"].double()).numpy()
    for matrix, pair in zip(back, pairs, strict=True):
        expected = Lattice(pair.target_lattice).parameters
        assert np.allclose(Lattice(matrix).parameters, expected, rtol=2e-5)
