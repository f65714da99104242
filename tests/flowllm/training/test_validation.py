"""Validation of a refiner in training: the table survives a kill, and matching means matching."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from pymatgen.core import Lattice, Structure

from flowllm.crystals.io import Crystal, write
from flowllm.errors import UserError
from flowllm.training import validation
from flowllm.training.config import RefinerTrainingConfig
from flowllm.training.pairing.table import write_pairs
from flowllm.training.refiner import train_refiner
from flowllm.training.validation import RefinerValidation
from rfm import PATH_LOSSES, PairDataset, PairedCrystal, Refinement

OVERRIDES = (
    *("network.width=8", "network.layers=1", "network.num_frequencies=2", "integration.steps=2"),
    *("training.epochs=100", "training.max_steps=10", "training.batch_size=4"),
    *("training.eval_steps=2", "training.match_steps=4", "training.save_steps=3"),
    *("training.match_crystals=3", "training.ema_decay=0.9", "training.warmup_steps=2"),
)


def paired(seed: int) -> PairedCrystal:
    rng = np.random.default_rng(seed)
    numbers = rng.choice([11, 17, 8], 1 + seed % 3)
    coords = np.arange(len(numbers))[:, None] / len(numbers) + 0.02 * rng.random((1, 3))
    lattice = np.diag(rng.uniform(4, 6, 3))
    return PairedCrystal(
        id=str(seed),
        atomic_numbers=numbers,
        base_frac_coords=coords + 0.02 * rng.standard_normal(coords.shape),
        base_lattice=lattice * 1.05,
        target_frac_coords=coords,
        target_lattice=lattice,
    )


PAIRS = [paired(seed) for seed in range(8)]


def rows(out: Path) -> list[dict[str, str]]:
    with (out / "validation.csv").open(newline="") as table:
        return list(csv.DictReader(table))


@pytest.mark.parametrize("kind", ["llm", "uniform"])
def test_a_run_that_was_cut_off_ends_with_the_same_table(kind: str, tmp_path: Path) -> None:
    if kind == "llm":
        write_pairs(PAIRS, tmp_path / "pairs.parquet")
        files = {"pairs": tmp_path / "pairs.parquet", "validation": tmp_path / "pairs.parquet"}
    else:
        crystals = [
            Crystal(
                id=p.id,
                structure=Structure(
                    Lattice(p.target_lattice), p.atomic_numbers, p.target_frac_coords
                ),
            )
            for p in PAIRS
        ]
        data = write(crystals, tmp_path / "data.jsonl")
        files = {"data": [data], "validation": data}
    out = tmp_path / "run"

    def train(**more: bool) -> None:
        config = "rfm/small" if kind == "llm" else "rfm/uniform"
        train_refiner(config, out=out, overrides=OVERRIDES, device="cpu", **files, **more)

    train()
    table = (out / "validation.csv").read_bytes()
    found = rows(out)
    assert [row["step"] for row in found] == ["2", "4", "6", "8", "10"]
    # At multiples of match_steps, and at the end.
    assert [row["step"] for row in found if row["match_rate"]] == ["4", "8", "10"]
    assert set(found[0]) == {"step", *PATH_LOSSES, "match_rate", "rmsd"}
    assert found[0]["loss"] != found[-1]["loss"]

    # Killed after step 8 of which the checkpoint of step 6 is left: 8 is there and comes again.
    shutil.rmtree(out / "model")
    for step in (9, 10):
        shutil.rmtree(out / f"checkpoint-{step}")
    train(resume=True)
    assert (out / "validation.csv").read_bytes() == table


def test_a_run_folder_of_pairs_stands_for_its_file(tmp_path: Path) -> None:
    run, other = tmp_path / "pairs", tmp_path / "unfinished"
    run.mkdir()
    other.mkdir()
    write_pairs(PAIRS, run / "pairs.parquet")

    def train(name: str, pairs: Path, validation: Path) -> dict[str, str]:
        out = tmp_path / name
        train_refiner(
            pairs=[pairs], validation=validation, out=out, overrides=OVERRIDES, device="cpu"
        )
        return {**json.loads((out / "run.json").read_text()), "table": rows(out)}

    assert train("folders", run, run) == train("files", *[run / "pairs.parquet"] * 2)
    with pytest.raises(UserError, match="unfinished is a folder without pairs.parquet; give a fin"):
        train("none", run, other)
    assert not (tmp_path / "none").exists()


def test_targets_themselves_match_and_lost_crystals_do_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = RefinerTrainingConfig(match_crystals=4, match_steps=100, eval_steps=30)
    judge = RefinerValidation(PAIRS, PairDataset(PAIRS), config=config, file=None)
    monkeypatch.setattr(validation, "path_losses", lambda *_, **__: {"loss": 1.0})

    def perfect(refiner: object, bases: list[Structure]) -> list[Refinement]:
        return [Refinement(structure=target) for target in judge.targets[:3]] + [Refinement()]

    monkeypatch.setattr(validation, "refine", perfect)

    def at(step: int) -> dict[str, float]:
        return judge(None, SimpleNamespace(global_step=step, max_steps=1000))

    assert at(90) == {"loss": 1.0}
    assert at(120) == {"loss": 1.0, "match_rate": 0.75, "rmsd": pytest.approx(0, abs=1e-6)}
    assert at(150) == {"loss": 1.0}
    assert "match_rate" in at(1000)
