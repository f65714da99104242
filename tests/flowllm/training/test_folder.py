"""Run folders of trainings: what they accept, what they refuse, and what they hold."""

from __future__ import annotations

import json
import os
import shutil
from functools import partial
from pathlib import Path

import pytest
from huggingface_hub import ModelCard
from training_support import (
    ARCHITECTURE,
    NETWORK,
    TRAINING,
    contents,
    random_pair,
    random_structure,
    small_training,
    weights,
)

from flowllm.errors import UserError
from flowllm.hub.card import CARD_FILE, check_weights
from flowllm.system.files import sha256_file
from flowllm.training.folder import training_run
from flowllm.training.pairing.table import write_pairs
from rfm import Refiner


def test_changed_data_are_another_run(tmp_path: Path, files: Path) -> None:
    data = Path(shutil.copy(files / "train.jsonl", tmp_path))
    train = partial(small_training("rfm-uniform", files), data=[data], out=tmp_path / "run")
    train()
    shutil.copy(files / "validation.jsonl", data)
    with pytest.raises(UserError, match="holds another run .*data.1 is .*train.jsonl"):
        train(resume=True)


def test_a_missing_data_file_is_refused_by_name(tmp_path: Path, files: Path) -> None:
    out = tmp_path / "run"
    for name, argument, value in (
        ("llm", "data", [files / "train.jsonl", "nothing.csv"]),
        ("llm", "validation", "nothing.csv"),
        ("rfm-uniform", "data", ["nothing.csv"]),
        ("rfm-pairs", "pairs", "nothing.csv"),
        ("rfm-pairs", "init", "nothing.csv"),
    ):
        with pytest.raises(UserError, match="there is no file or folder nothing.csv"):
            small_training(name, files)(out=out, **{argument: value})
    assert not out.exists()


def test_a_stage_says_what_its_base_needs(tmp_path: Path, files: Path) -> None:
    with pytest.raises(UserError, match="rfm/uniform has base.kind llm: .*--pairs FILE"):
        small_training("rfm-pairs", files)(out=tmp_path / "run", pairs=None)
    with pytest.raises(UserError, match="rfm/uniform has base.kind uniform: .*--data FILE"):
        small_training("rfm-uniform", files)(out=tmp_path / "run", data=[])
    assert not (tmp_path / "run").exists()


def test_a_foreign_folder_is_left_alone(tmp_path: Path, files: Path) -> None:
    (tmp_path / "thesis.tex").write_text("my work")
    before = contents(tmp_path)
    for resume in (True, False):
        with pytest.raises(UserError, match=f"{tmp_path} is not empty .it holds thesis.tex"):
            small_training("llm", files)(out=tmp_path, resume=resume)
    with pytest.raises(UserError, match="thesis.tex is a file; choose a new folder"):
        small_training("llm", files)(out=tmp_path / "thesis.tex")
    assert contents(tmp_path) == before


def test_a_run_that_never_began_gives_its_folder_back(tmp_path: Path, files: Path) -> None:
    out, data = tmp_path / "run", tmp_path / "train.jsonl"
    lines = (files / "train.jsonl").read_text().splitlines()
    data.write_text("\n".join([*lines[:3], '{"lattice": 3}']))
    train = partial(small_training("llm", files), data=[data], out=out)
    with pytest.raises(UserError, match="train.jsonl: .*4"):
        train()
    assert [path.name for path in out.iterdir()] == [".lock"]
    data.write_text("\n".join(lines))
    train(overrides=[*TRAINING, *ARCHITECTURE, "training.max_steps=3"])
    assert (out / "model").is_dir()


def test_bad_rows_stop_a_training_unless_they_may_be_skipped(tmp_path: Path, files: Path) -> None:
    data = tmp_path / "train.jsonl"
    data.write_text((files / "train.jsonl").read_text() + '{"lattice": 3}\n')
    train = partial(
        small_training("rfm-uniform", files),
        data=[data],
        overrides=[*TRAINING, *NETWORK, "training.max_steps=3"],
    )
    with pytest.raises(UserError, match="train.jsonl: .*15"):
        train(out=tmp_path / "run")
    train(out=tmp_path / "run", skip_invalid=True)


def test_only_the_first_of_several_processes_writes(
    tmp_path: Path, files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {
        "stage": "train-llm",
        "recipe": {"training": {}},
        "data": [files / "train.jsonl"],
        "validation": None,
        "seed": 0,
        "resume": False,
    }

    def write(folder: Path) -> None:
        folder.mkdir()
        (folder / "model.safetensors").write_bytes(b"weights")

    with training_run(tmp_path / "run", **options) as first:
        monkeypatch.setenv("RANK", "1")
        with training_run(tmp_path / "run", **options) as second:
            assert second.publish(lambda path: path.mkdir()) == first.model
            assert not first.finished
        first.publish(write)
        assert second.finished
    assert sorted(os.listdir(first.model)) == ["README.md", "model.safetensors"]


def test_a_refiner_starts_from_another_with_the_same_network(files: Path, tmp_path: Path) -> None:
    first = small_training("rfm-uniform", files)(out=tmp_path / "first")
    train = small_training("rfm-pairs", files)
    overrides = train.keywords["overrides"]
    still = [*overrides, "training.learning_rate=1e-30", "training.max_steps=1"]
    second = train(out=tmp_path / "second", init=first, overrides=still)
    assert weights(second.parent) == weights(first.parent)
    one, two = (Refiner.from_pretrained(folder).config for folder in (first, second))
    assert one.max_atoms == two.max_atoms == max(len(random_structure(seed)) for seed in range(14))
    assert one.statistics == two.statistics and (one.base.kind, two.base.kind) == (
        "uniform",
        "llm",
    )

    # What the start knows of larger crystals is not lost on smaller ones.
    write_pairs([random_pair(1)], tmp_path / "two_atoms.parquet")
    small = {"pairs": tmp_path / "two_atoms.parquet", "validation": None}
    kept = train(out=tmp_path / "kept", init=first, overrides=still, **small)
    assert Refiner.from_pretrained(kept).config.max_atoms == one.max_atoms

    for change, message in (
        ("network.width=16", r"\(network.width is \d+ there, 16 here\); set network.width=\d+$"),
        ("chart=params", r"\(chart is logmetric there, params here\); set chart=logmetric$"),
    ):
        with pytest.raises(UserError, match=f"first/model has another .* than rfm/.* {message}"):
            train(out=tmp_path / "third", init=first, overrides=[*overrides, change])
    third = train(out=tmp_path / "third", init=first)
    assert weights(third.parent) != weights(first.parent)
    assert json.loads((third.parent / "run.json").read_text())["run"]["data"][1]["name"] == "model"


def test_a_training_leaves_a_card_with_its_data_recipe_and_last_loss(
    files: Path, tmp_path: Path
) -> None:
    overrides = [*NETWORK, "training.max_steps=4", "training.eval_steps=2", "training.batch_size=2"]
    train = small_training("rfm-uniform", files)
    model = train(out=tmp_path / "run", overrides=overrides, seed=5)
    card = ModelCard.load(model / CARD_FILE)
    check_weights(model)
    file = "model.safetensors"
    assert card.data.weights_sha256 == {file: sha256_file(model / file)}
    assert f"- `train.jsonl`, sha256 `{sha256_file(files / 'train.jsonl')}`" in card.text
    assert "width: 8" in card.text and "seed 5" in card.text
    (checkpoint,) = (tmp_path / "run").glob("checkpoint-*")
    state = json.loads((checkpoint / "trainer_state.json").read_text())
    last = [line["eval_loss"] for line in state["log_history"] if "eval_loss" in line][-1]
    assert f"Loss {last:.4f} at step 4" in card.text
