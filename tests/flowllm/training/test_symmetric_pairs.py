"""Training on symmetric paths: the recipe setting, the recorded model and resuming."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from training_support import NETWORK, TRAINING, weights

from flowllm.crystals.io import read
from flowllm.errors import UserError
from flowllm.training.pairing.table import write_pairs
from flowllm.training.refiner import train_refiner
from rfm import PairedCrystal, Refiner
from support import MP20_SAMPLE


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Real crystals as targets of rough copies, which have their space groups at 0.1 Angstrom."""
    rng = np.random.default_rng(0)
    file = tmp_path_factory.mktemp("pairs") / "pairs.parquet"
    found = []
    for crystal in read(MP20_SAMPLE, limit=12):
        target = crystal.structure
        found.append(
            PairedCrystal(
                id=crystal.id,
                atomic_numbers=np.array(target.atomic_numbers),
                base_frac_coords=target.frac_coords + 0.002 * rng.standard_normal((len(target), 3)),
                base_lattice=target.lattice.matrix * 1.04,
                target_frac_coords=target.frac_coords,
                target_lattice=target.lattice.matrix,
            )
        )
    write_pairs(found, file)
    return file


def test_a_refiner_is_trained_on_symmetric_paths(pairs: Path, tmp_path: Path) -> None:
    def train(out: str, *overrides: str) -> Path:
        return train_refiner(
            "rfm/wyckoff",
            pairs=pairs,
            validation=pairs,
            out=tmp_path / out,
            overrides=[*TRAINING, *NETWORK, "training.max_steps=8", *overrides],
            device="cpu",
        )

    kept = Refiner.from_pretrained(train("keep"))
    assert kept.config.base.symmetry == "keep"
    train("free", "base.symmetry=free")
    assert weights(tmp_path / "keep") != weights(tmp_path / "free")


def test_noise_alone_has_no_symmetry_to_keep(pairs: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="rfm/wyckoff: the base uniform has no symmetry to keep"):
        train_refiner("rfm/wyckoff", pairs=pairs, out=tmp_path, overrides=["base.kind=uniform"])
