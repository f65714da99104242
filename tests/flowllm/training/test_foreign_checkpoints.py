"""Checkpoints of others, with pickles in place of their files: nothing of them runs."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from training_support import small_training, weights

from flowllm.errors import UserError
from flowllm.training.checkpoints import MARKER, mark_complete, newest_complete

SECRET = "sk-a-secret-that-nobody-may-see"


class Runs:
    """Leaves a file when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.mark,)


@pytest.mark.parametrize("name", ["llm", "rfm-pairs"])
def test_a_foreign_checkpoint_runs_nothing_and_no_secret_is_recorded(
    name: str, files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable in ("HF_TOKEN", "WANDB_API_KEY"):
        monkeypatch.setenv(variable, SECRET)
    mark, out = tmp_path / "it-ran", tmp_path / "run"
    train = small_training(name, files)
    train(out=out)
    assert not [p for p in out.rglob("*") if p.is_file() and SECRET.encode() in p.read_bytes()]
    whole = weights(out)
    shutil.rmtree(out / "model")
    checkpoint = newest_complete(out)
    assert checkpoint is not None
    pickles = [p for p in checkpoint.iterdir() if p.suffix in (".pt", ".pth", ".bin")]
    assert pickles
    for path in pickles:
        torch.save({"a": Runs(mark)}, path)
    (checkpoint / MARKER).unlink()
    mark_complete(checkpoint)
    with pytest.raises(UserError, match=f"{checkpoint}.*delete"):
        train(out=out, resume=True)
    assert not mark.exists()
    shutil.rmtree(checkpoint)
    train(out=out, resume=True)
    assert weights(out) == whole
