from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from pymatgen.core import Lattice, Structure
from safetensors.torch import load_file

from rfm.batch import CrystalBatch
from rfm.config import BaseConfig
from rfm.dataset import PairDataset, PairedCrystal, collate
from rfm.errors import RefinerError
from rfm.model import Refiner
from rfm.torus import wrap_difference


def rngs(seed: int, count: int) -> list[np.random.Generator]:
    return [np.random.default_rng((seed, k)) for k in range(count)]


def test_saved_and_loaded_is_the_same(
    refiner: Refiner, state: CrystalBatch, tmp_path: Path
) -> None:
    refiner.save_pretrained(tmp_path / "a/b")
    loaded = Refiner.from_pretrained(tmp_path / "a/b")
    assert loaded.config == refiner.config
    assert not loaded.training
    t = torch.full((4,), 0.3)
    with torch.no_grad():
        for a, b in zip(loaded.velocity(state, t), refiner.velocity(state, t), strict=True):
            assert torch.equal(a, b)


def test_whoever_may_read_the_config_may_read_the_weights(refiner: Refiner, tmp_path: Path) -> None:
    refiner.save_pretrained(tmp_path)
    assert len({path.stat().st_mode for path in tmp_path.iterdir()}) == 1


def test_bfloat16_storage_is_half_the_size(refiner: Refiner, tmp_path: Path) -> None:
    refiner.save_pretrained(tmp_path / "full")
    refiner.save_pretrained(tmp_path / "half", dtype=torch.bfloat16)
    stored = load_file(tmp_path / "half/model.safetensors")
    assert {w.dtype for w in stored.values()} == {torch.bfloat16}
    loaded = Refiner.from_pretrained(tmp_path / "half")
    for a, b in zip(loaded.parameters(), refiner.parameters(), strict=True):
        assert a.dtype == torch.float32
        assert torch.equal(a, b.bfloat16().float())


def break_config(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def truncate_weights(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "config.json").unlink(), "config.json is missing"),
        (lambda f: (f / "model.safetensors").unlink(), "model.safetensors is missing"),
        (truncate_weights, "model.safetensors is damaged"),
        (lambda f: (f / "model.safetensors").write_bytes(b""), "model.safetensors is damaged"),
        (lambda f: (f / "config.json").write_text("{"), "config.json is not JSON"),
        (lambda f: (f / "config.json").write_bytes(b"\xff\xfe{"), "config.json is not JSON"),
        (lambda f: (f / "config.json").write_text("[]"), "does not hold a JSON object"),
        (lambda f: break_config(f, chart="polar"), "unknown lattice chart 'polar'"),
        (lambda f: break_config(f, model_type="llama"), "model_type is 'llama'"),
        (lambda f: break_config(f, colour="red"), "colour"),
        (lambda f: break_config(f, network={"width": "16"}), "network.width"),
        (lambda f: break_config(f, base={"kind": "other"}), "unknown base 'other'"),
        (lambda f: break_config(f, statistics={"mean": [0.0]}), "statistics.std"),
        (
            lambda f: break_config(f, network={"width": 32, "layers": 2, "num_frequencies": 3}),
            "model.safetensors does not fit .*size mismatch",
        ),
        (
            lambda f: break_config(f, network={"width": 16, "layers": 3, "num_frequencies": 3}),
            "model.safetensors does not fit .*[Mm]issing",
        ),
    ],
)
def test_damaged_folders_are_refused(
    damage, message: str, refiner: Refiner, tmp_path: Path
) -> None:
    refiner.save_pretrained(tmp_path)
    damage(tmp_path)
    with pytest.raises(RefinerError, match=message) as caught:
        Refiner.from_pretrained(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_missing_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RefinerError, match="config.json is missing"):
        Refiner.from_pretrained(tmp_path / "nowhere")


def test_forward_gives_the_weighted_loss(refiner: Refiner) -> None:
    pair = PairedCrystal(
        id="x",
        atomic_numbers=np.array([11, 17]),
        base_frac_coords=np.array([[0.0, 0.1, 0.0], [0.5, 0.4, 0.5]]),
        base_lattice=np.eye(3) * 4,
        target_frac_coords=np.array([[0.0, 0.0, 0.0], [0.5, 0.5, 0.5]]),
        target_lattice=np.eye(3) * 4.2,
    )
    data = PairDataset([pair], statistics=refiner.config.statistics)
    out = refiner(**collate([data.draw(0, np.random.default_rng(0))]))
    assert out["loss"].item() == pytest.approx(
        400 * out["coord_loss"].item() + out["lattice_loss"].item()
    )
    out["loss"].backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in refiner.parameters())


def test_base_of_a_crystal_depends_on_its_own_generator(
    refiner: Refiner, structures: list[Structure], state: CrystalBatch
) -> None:
    together = refiner.draw_base(state, rngs(5, 4))
    alone = refiner.draw_base(
        CrystalBatch.from_structures(structures[2:3], refiner.cell), rngs(5, 4)[2:3]
    )
    assert torch.equal(alone.frac_coords, together.frac_coords[together.batch == 2])
    assert torch.allclose(alone.lattice, together.lattice[2:3])
    other = refiner.draw_base(state, rngs(6, 4))
    assert not torch.equal(other.frac_coords, together.frac_coords)


def test_base_noise_lies_around_the_prior(refiner: Refiner, state: CrystalBatch) -> None:
    drawn = [refiner.draw_base(state, rngs(seed, 4)) for seed in range(200)]
    moved = torch.stack([wrap_difference(b.frac_coords - state.frac_coords) for b in drawn])
    strained = torch.stack([b.lattice - state.lattice for b in drawn])
    # The mean of a crystal is taken out of its noise, and with it one of n degrees of freedom.
    sizes = state.num_atoms[state.batch]
    expected = 0.05 * (1 - 1 / sizes).mean().sqrt().item()
    assert moved.square().mean().sqrt().item() == pytest.approx(expected, rel=0.05)
    assert strained.std().item() == pytest.approx(0.1, rel=0.05)
    refiner.config.base = BaseConfig()
    still = refiner.draw_base(state, rngs(0, 4))
    assert torch.equal(still.frac_coords, state.frac_coords)
    assert torch.equal(still.lattice, state.lattice)


def test_uniform_base_forgets_the_prior(refiner: Refiner, state: CrystalBatch) -> None:
    refiner.config.base = BaseConfig(kind="uniform")
    here = refiner.draw_base(state, rngs(0, 4))
    there = refiner.draw_base(
        state.at(torch.zeros_like(state.frac_coords), torch.zeros_like(state.lattice)), rngs(0, 4)
    )
    assert torch.equal(here.frac_coords, there.frac_coords)
    assert torch.equal(here.lattice, there.lattice)
    assert torch.equal(here.atomic_numbers, state.atomic_numbers)


def test_one_generator_per_crystal(refiner: Refiner, state: CrystalBatch) -> None:
    with pytest.raises(RefinerError, match="3 generators for 4 crystals"):
        refiner.draw_base(state, rngs(0, 3))


def test_loss_does_not_see_whole_translations(refiner: Refiner) -> None:
    """A common shift of the target changes neither target velocity nor prediction at t = 0."""
    rng = np.random.default_rng(0)
    coords = rng.random((3, 3))
    push = rng.uniform(-0.1, 0.1, (3, 3))
    losses = []
    for shift in (0.0, 0.13):
        pair = PairedCrystal(
            id="x",
            atomic_numbers=np.array([5, 6, 7]),
            base_frac_coords=coords,
            base_lattice=Lattice.cubic(4).matrix,
            target_frac_coords=coords + push + shift,
            target_lattice=Lattice.cubic(4).matrix,
        )
        data = PairDataset([pair], statistics=refiner.config.statistics)
        item = {**data.draw(0, np.random.default_rng(0)), "t": 0.5}
        losses.append(refiner(**collate([item]))["loss"].item())
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_a_refiner_from_before_the_size_was_recorded_says_so(
    refiner: Refiner, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    refiner.config.max_atoms = 7
    refiner.save_pretrained(tmp_path)
    assert Refiner.from_pretrained(tmp_path).config.max_atoms == 7 and not caplog.records
    settings = json.loads((tmp_path / "config.json").read_text())
    del settings["max_atoms"]
    (tmp_path / "config.json").write_text(json.dumps(settings))
    assert Refiner.from_pretrained(tmp_path).config.max_atoms is None
    assert "config.json has no max_atoms" in caplog.text
