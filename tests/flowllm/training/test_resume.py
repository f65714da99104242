"""Every kind of training, tiny: interrupted by real signals, it ends bit for bit alike."""

from __future__ import annotations

import fcntl
import random
import shutil
import signal
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import transformers
from training_support import (
    ARCHITECTURE,
    TRAINING,
    Train,
    contents,
    processes,
    small_training,
    weights,
)

from flowllm.errors import UserError
from flowllm.training.checkpoints import MARKER, complete_checkpoints, newest_complete
from flowllm.training.tuning import tune_prior
from llm_prior import Prior
from rfm import Refiner
from support import BUNDLED_PRIOR


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
    assert started["one"] == started["two"]
    from_a_model = train.func is tune_prior
    assert (started["two"] == started["three"]) is from_a_model
    assert started["one"] != weights(whole)


def test_what_does_not_change_the_weights_may_change_upon_resume(
    finished: tuple[Train, Path],
) -> None:
    train, whole = finished
    overrides = [*train.keywords["overrides"], "training.logging_steps=7", "training.num_workers=1"]
    assert train(out=whole, resume=True, overrides=overrides) == whole / "model"


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
    ]
    if "validation" in train.keywords:
        changes.append(({"validation": None}, "validation is .*validation.* there, not given here"))
    else:
        changes.append(({"prior": BUNDLED_PRIOR}, 'start is "prior" '))
    for change, message in changes:
        for resume in (True, False):
            with pytest.raises(UserError, match=message):
                train(out=whole, resume=resume, **change)
    assert contents(whole) == before


def test_a_folder_in_use_is_refused(finished: tuple[Train, Path]) -> None:
    train, whole = finished
    with open(whole / ".lock", "ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(UserError, match="run is in use by another process"):
            train(out=whole, resume=True)


def test_a_resumed_prior_is_not_said_to_lack_its_tied_output_layer(
    files: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    train = partial(small_training("llm", files), overrides=[*TRAINING, *ARCHITECTURE])
    train = partial(train, out=tmp_path / "run")
    train()
    shutil.rmtree(tmp_path / "run" / "model")
    transformers.logging.enable_propagation()
    try:
        train(resume=True)
    finally:
        transformers.logging.disable_propagation()
    assert "missing keys" not in caplog.text
