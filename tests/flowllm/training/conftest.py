"""Fixtures that the tests of training share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from training_support import (
    Train,
    random_pair,
    random_structure,
    small_training,
    write_judged,
)

from flowllm.crystals.io import Crystal, write
from flowllm.training.pairing.table import write_pairs


@pytest.fixture(scope="session", autouse=True)
def processes_of_one_thread() -> Iterator[None]:
    """Processes that the tests start get one thread, as the tests themselves do."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        yield


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with crystals, pairs and judged samples for training and validation."""
    folder = tmp_path_factory.mktemp("data")
    crystals = [
        Crystal(
            id=f"c{seed}", structure=random_structure(seed), properties={"band_gap": 0.1 * seed}
        )
        for seed in range(14)
    ]
    write(crystals, folder / "train.jsonl")
    write(crystals[:5], folder / "validation.jsonl")
    write_pairs([random_pair(seed) for seed in range(14)], folder / "train.parquet")
    write_pairs([random_pair(seed) for seed in range(5)], folder / "validation.parquet")
    write_judged(folder)
    return folder


@pytest.fixture(scope="module", params=["llm", "tune", "rfm-uniform", "rfm-pairs"])
def finished(
    request: pytest.FixtureRequest, files: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Train, Path]:
    """A training and the folder of its uninterrupted run."""
    train = small_training(request.param, files)
    out = tmp_path_factory.mktemp(request.param) / "run"
    assert train(out=out) == out / "model"
    return train, out
