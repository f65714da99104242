"""Both stages, tiny: interrupted by real signals in real processes, they end bit for bit alike."""

from __future__ import annotations

import fcntl
import json
import multiprocessing
import os
import random
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from pymatgen.core import Lattice, Structure
from safetensors.torch import load_file

from flowllm.crystals.io import Crystal, write
from flowllm.errors import UserError
from flowllm.training.checkpoints import MARKER, complete_checkpoints, newest_complete
from flowllm.training.folder import training_run
from flowllm.training.pairing.table import write_pairs
from flowllm.training.prior import train_prior
from flowllm.training.refiner import train_refiner
from llm_prior import Prior
from rfm import PairedCrystal, Refiner

TRAINING = (
    *("training.epochs=16", "training.batch_size=4", "training.warmup_steps=2"),
    *("training.save_steps=3", "training.eval_steps=10", "training.logging_steps=5"),
)  # 48 steps
NETWORK = ("network.width=8", "network.layers=1", "network.num_frequencies=2")
ARCHITECTURE = tuple(
    f"model.architecture.{setting}"
    for setting in (
        *("hidden_size=16", "intermediate_size=16"),
        *("num_hidden_layers=1", "num_attention_heads=2", "max_position_embeddings=256"),
    )
)
Train = Callable[..., Path]


def structure(seed: int) -> Structure:
    rng = np.random.default_rng(seed)
    lattice = Lattice.from_parameters(*rng.uniform(4, 6, 3), *rng.uniform(80, 100, 3))
    species = rng.choice(["Na", "Mg", "O", "Cl"], rng.integers(1, 6))
    return Structure(lattice, list(species), rng.random((len(species), 3)))


def pair(seed: int) -> PairedCrystal:
    rng = np.random.default_rng(seed)
    target = structure(seed)
    return PairedCrystal(
        id=f"pair-{seed}",
        atomic_numbers=np.array(target.atomic_numbers),
        base_frac_coords=target.frac_coords + 0.05 * rng.standard_normal((len(target), 3)),
        base_lattice=target.lattice.matrix * rng.uniform(0.9, 1.1),
        target_frac_coords=target.frac_coords,
        target_lattice=target.lattice.matrix,
    )


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Another number of threads adds floats in another order. Processes get one as well."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        processes.set_forkserver_preload([train_prior.__module__, train_refiner.__module__])
        yield
    torch.set_num_threads(threads)


processes = multiprocessing.get_context("forkserver")  # imports once, and forks without threads


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    crystals = [
        Crystal(id=f"c{seed}", structure=structure(seed), properties={"band_gap": 0.1 * seed})
        for seed in range(14)
    ]
    write(crystals, folder / "train.jsonl")
    write(crystals[:5], folder / "validation.jsonl")
    write_pairs([pair(seed) for seed in range(14)], folder / "train.parquet")
    write_pairs([pair(seed) for seed in range(5)], folder / "validation.parquet")
    return folder


def stage(name: str, files: Path) -> Train:
    """A stage with all its arguments but `out` and `resume`."""
    crystals = {"data": [files / "train.jsonl"], "validation": files / "validation.jsonl"}
    pairs = {"pairs": files / "train.parquet", "validation": files / "validation.parquet"}
    ema = "training.ema_decay=0.9"
    options: dict[str, Any] = {"seed": 3, "device": "cpu"}
    if name == "llm":
        return partial(train_prior, overrides=[*TRAINING, *ARCHITECTURE], **crystals, **options)
    if name == "rfm-uniform":
        overrides = [*TRAINING, *NETWORK, ema]
        return partial(train_refiner, "rfm/uniform", overrides=overrides, **crystals, **options)
    base = ("base.kind=llm", "base.position_sigma=0.05", "base.cell_sigma=0.1")
    overrides = [*TRAINING, *NETWORK, *base, ema]
    return partial(train_refiner, "rfm/uniform", overrides=overrides, **pairs, **options)


@pytest.fixture(scope="module", params=["llm", "rfm-uniform", "rfm-pairs"])
def finished(
    request: pytest.FixtureRequest, files: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Train, Path]:
    """A stage and the folder of its uninterrupted run."""
    train = stage(request.param, files)
    out = tmp_path_factory.mktemp(request.param) / "run"
    assert train(out=out) == out / "model"
    return train, out


def weights(out: Path) -> bytes:
    return (out / "model" / "model.safetensors").read_bytes()


def wait_for(condition: Callable[[], object], process: Any) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert process.is_alive() and time.monotonic() < deadline
        time.sleep(0.002)


def newest_step(out: Path) -> int:
    newest = newest_complete(out)
    return int(newest.name.split("-")[1]) if newest else 0


def newer_than(step: int, out: Path) -> bool:
    return newest_step(out) > step


def test_killed_at_random_points_it_ends_with_the_same_bytes(
    finished: tuple[Train, Path], tmp_path: Path
) -> None:
    train, whole = finished
    out = tmp_path / "run"
    rng = random.Random(whole.parent.name)
    for kill in range(4):
        done = newest_step(out)
        process = processes.Process(target=train, kwargs={"out": out, "resume": True})
        process.start()
        # The first before any checkpoint, the others a moment after they have written one.
        begun = (out / "run.json").exists if not kill else partial(newer_than, done, out)
        wait_for(begun, process)
        time.sleep(rng.uniform(0, 0.04))
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL
        assert not (out / "model").exists()
    assert 9 <= newest_step(out) < 48

    train(out=out, resume=True)
    assert weights(out) == weights(whole)


def test_one_cut_off_while_it_wrote_a_checkpoint_removes_it_and_ends_with_the_same_bytes(
    finished: tuple[Train, Path], tmp_path: Path
) -> None:
    train, whole = finished
    out = shutil.copytree(whole, tmp_path / "run")
    shutil.rmtree(out / "model")
    shutil.rmtree(out / "checkpoint-48")
    cut = out / "checkpoint-45"
    (cut / MARKER).unlink()
    (cut / "rng_state.pth").unlink()
    (cut / "left-over").touch()
    (cut / "optimizer.pt").write_bytes((cut / "optimizer.pt").read_bytes()[:100])
    train(out=out, resume=True)
    assert weights(out) == weights(whole)
    assert not (cut / "left-over").exists()
    assert [path.name for path in complete_checkpoints(out)] == [
        f"checkpoint-{step}" for step in (42, 45, 48)
    ]


def test_one_killed_before_it_published_its_model_publishes_it(
    finished: tuple[Train, Path], tmp_path: Path
) -> None:
    train, whole = finished
    out = shutil.copytree(whole, tmp_path / "run")
    shutil.rmtree(out / "model")
    (out / ".model.abc.flowllm-tmp").mkdir()
    (out / ".model.abc.flowllm-tmp" / "model.safetensors").write_bytes(b"half")
    train(out=out, resume=True)
    assert weights(out) == weights(whole)
    assert not list(out.glob("*.flowllm-tmp"))


def test_the_model_loads_and_the_seed_decides_where_it_started(
    finished: tuple[Train, Path], tmp_path: Path
) -> None:
    train, whole = finished
    kind = Prior if (whole / "model" / "prior.json").exists() else Refiner
    kind.from_pretrained(whole / "model")
    overrides = [*train.keywords["overrides"], "training.learning_rate=1e-30"]
    overrides.append("training.max_steps=1")
    started = {}
    for run, seed in (("one", 3), ("two", 3), ("three", 4)):
        train(out=tmp_path / run, seed=seed, overrides=overrides)
        started[run] = weights(tmp_path / run)
    assert started["one"] == started["two"] != started["three"]
    assert started["one"] != weights(whole)


def contents(folder: Path) -> dict[str, tuple[bytes, int]]:
    return {
        str(path.relative_to(folder)): (path.read_bytes(), path.stat().st_mtime_ns)
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_a_finished_run_gives_its_model_at_once_and_only_when_asked_to_resume(
    finished: tuple[Train, Path],
) -> None:
    train, whole = finished
    before = contents(whole)
    assert train(out=whole, resume=True) == whole / "model"
    with pytest.raises(UserError, match=f"{whole} holds this run already; go on .*--resume"):
        train(out=whole)
    assert contents(whole) == before


def test_another_run_is_refused_with_what_differs(
    finished: tuple[Train, Path], tmp_path: Path
) -> None:
    train, whole = finished
    before = contents(whole)
    overrides = [*train.keywords["overrides"], "training.learning_rate=0.5"]
    changes: list[tuple[dict[str, Any], str]] = [
        ({"seed": 4}, r"holds another run \(seed is 3 there, 4 here\)"),
        ({"overrides": overrides}, r"recipe.training.learning_rate is 0.00[12] there, 0.5 here"),
        ({"validation": None}, "validation is .*validation.* there, null here"),
    ]
    for change, message in changes:
        for resume in (True, False):
            with pytest.raises(UserError, match=message):
                train(out=whole, resume=resume, **change)
    assert contents(whole) == before


def test_what_does_not_change_the_weights_may_change_upon_resume(
    finished: tuple[Train, Path],
) -> None:
    train, whole = finished
    overrides = [*train.keywords["overrides"], "training.logging_steps=7", "training.num_workers=1"]
    assert train(out=whole, resume=True, overrides=overrides) == whole / "model"


def test_changed_data_are_another_run(tmp_path: Path, files: Path) -> None:
    data = Path(shutil.copy(files / "train.jsonl", tmp_path))
    train = partial(stage("rfm-uniform", files), data=[data], out=tmp_path / "run")
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
            stage(name, files)(out=out, **{argument: value})
    assert not out.exists()


def test_a_stage_says_what_its_base_needs(tmp_path: Path, files: Path) -> None:
    with pytest.raises(UserError, match="rfm/uniform has base.kind llm: .*--pairs FILE"):
        stage("rfm-pairs", files)(out=tmp_path / "run", pairs=None)
    with pytest.raises(UserError, match="rfm/uniform has base.kind uniform: .*--data FILE"):
        stage("rfm-uniform", files)(out=tmp_path / "run", data=[])
    assert not (tmp_path / "run").exists()


def test_a_foreign_folder_is_left_alone(tmp_path: Path, files: Path) -> None:
    (tmp_path / "thesis.tex").write_text("my work")
    before = contents(tmp_path)
    for resume in (True, False):
        with pytest.raises(UserError, match=f"{tmp_path} is not empty .it holds thesis.tex"):
            stage("llm", files)(out=tmp_path, resume=resume)
    with pytest.raises(UserError, match="thesis.tex is a file; choose a new folder"):
        stage("llm", files)(out=tmp_path / "thesis.tex")
    assert contents(tmp_path) == before


def test_a_folder_in_use_is_refused(finished: tuple[Train, Path]) -> None:
    train, whole = finished
    with open(whole / ".lock", "ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(UserError, match="run is in use by another process"):
            train(out=whole, resume=True)


def test_a_run_that_never_began_gives_its_folder_back(tmp_path: Path, files: Path) -> None:
    out, data = tmp_path / "run", tmp_path / "train.jsonl"
    lines = (files / "train.jsonl").read_text().splitlines()
    data.write_text("\n".join([*lines[:3], '{"lattice": 3}']))
    train = partial(stage("llm", files), data=[data], out=out)
    with pytest.raises(UserError, match="train.jsonl: .*4"):
        train()
    assert [path.name for path in out.iterdir()] == [".lock"]
    data.write_text("\n".join(lines))
    train(overrides=[*TRAINING, *ARCHITECTURE, "training.max_steps=3"])
    assert (out / "model").is_dir()


def test_a_refiner_starts_from_another_with_the_same_network(files: Path, tmp_path: Path) -> None:
    first = stage("rfm-uniform", files)(out=tmp_path / "first")
    train = stage("rfm-pairs", files)
    overrides = train.keywords["overrides"]
    still = [*overrides, "training.learning_rate=1e-30", "training.max_steps=1"]
    second = train(out=tmp_path / "second", init=first, overrides=still)
    assert weights(second.parent) == weights(first.parent)
    one, two = (Refiner.from_pretrained(folder).config for folder in (first, second))
    assert one.max_atoms == two.max_atoms == max(len(structure(seed)) for seed in range(14))
    assert one.statistics == two.statistics and (one.base.kind, two.base.kind) == (
        "uniform",
        "llm",
    )

    # What the start knows of larger crystals is not lost on smaller ones.
    write_pairs([pair(1)], tmp_path / "two_atoms.parquet")
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


def test_bad_rows_stop_a_training_unless_they_may_be_skipped(tmp_path: Path, files: Path) -> None:
    data = tmp_path / "train.jsonl"
    data.write_text((files / "train.jsonl").read_text() + '{"lattice": 3}\n')
    train = partial(
        stage("rfm-uniform", files),
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


def test_an_adapter_on_a_pretrained_model_resumes_bit_for_bit(files: Path, tmp_path: Path) -> None:
    limit = "training.max_steps=12"
    few = [*TRAINING, *ARCHITECTURE, limit]
    base = stage("llm", files)(out=tmp_path / "base", overrides=few)
    model = ("model.architecture=null", f"model.name={base}", "model.lora.r=2")
    train = partial(stage("llm", files), overrides=[*TRAINING, limit, *model])
    adapter = train(out=tmp_path / "run") / "adapter_model.safetensors"
    first = adapter.read_bytes()
    assert not (adapter.parent / "model.safetensors").exists()

    shutil.rmtree(adapter.parent)
    for step in (12, 9):
        shutil.rmtree(tmp_path / "run" / f"checkpoint-{step}")
    merged = train(out=tmp_path / "run", resume=True, merge=True)
    assert adapter.read_bytes() == first
    assert merged == tmp_path / "run" / "merged"
    one, two = (Prior.from_pretrained(folder) for folder in (merged, adapter.parent))
    assert one.info == two.info
    # The crystals have a band gap and no energies.
    assert one.info["conditions"] == ["formula", "elements", "num_atoms", "band_gap"]
    ids = torch.arange(5, 60)[None]
    torch.testing.assert_close(one.model(ids).logits, two.model(ids).logits)
    assert train(out=tmp_path / "run", resume=True, merge=True) == merged

    with pytest.raises(UserError, match="llm/small has no model.lora, so there is no adapter"):
        stage("llm", files)(out=tmp_path / "whole", merge=True)


def test_an_adapter_trains_with_recomputed_activations(files: Path, tmp_path: Path) -> None:
    few = [*TRAINING, "training.max_steps=3", "training.bf16=false"]
    base = stage("llm", files)(out=tmp_path / "base", overrides=[*few, *ARCHITECTURE])
    model = ("model.architecture=null", f"model.name={base}", "model.lora.r=2")
    found = []
    for recompute in ("false", "true"):
        setting = f"training.gradient_checkpointing={recompute}"
        out = tmp_path / recompute
        folder = stage("llm", files)(out=out, overrides=[*few, *model, setting])
        found.append(load_file(folder / "adapter_model.safetensors"))
    for name, weight in found[0].items():
        torch.testing.assert_close(found[1][name], weight)
        assert weight.abs().max() > 0  # lora_B starts at zero


def test_a_resumed_prior_is_not_said_to_lack_its_tied_output_layer(
    files: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    train = partial(stage("llm", files), overrides=[*TRAINING, *ARCHITECTURE])
    train = partial(train, out=tmp_path / "run")
    train()
    shutil.rmtree(tmp_path / "run" / "model")
    transformers.logging.enable_propagation()
    try:
        train(resume=True)
    finally:
        transformers.logging.disable_propagation()
    assert "missing keys" not in caplog.text
