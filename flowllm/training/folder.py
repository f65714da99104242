"""The run folder of a training: what was asked in `run.json`, checkpoints, at the end `model/`."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flowllm.crystals.run_folders import input_hash
from flowllm.errors import UserError
from flowllm.hub.card import write_training_card
from flowllm.runs.checkpoints import remove_incomplete
from flowllm.runs.identity import claimed
from flowllm.system.files import publish
from flowllm.system.versions import versions
from flowllm.training.config import WITHOUT_EFFECT

RUN_FILE = "run.json"


@dataclass(frozen=True)
class TrainingRun:
    """A run folder of a training.

    Attributes:
        folder: holds `run.json`, `checkpoint-STEP/` and at the end `model/`.
        run: what was asked, as in `run.json`.
        first: whether this process is the one of several (torchrun) that writes.
    """

    folder: Path
    run: Mapping[str, Any]
    first: bool = True

    @property
    def model(self) -> Path:
        """Where the finished model goes."""
        return self.folder / "model"

    @property
    def finished(self) -> bool:
        """Whether the finished model is there."""
        return self.model.is_dir()

    def publish(self, save: Callable[[Path], object]) -> Path:
        """Write the finished model and its card, whole or not at all."""

        def save_with_card(path: Path) -> None:
            save(path)
            write_training_card(path, self.run, self.folder)

        return publish(self.model, save_with_card) if self.first else self.model


@contextlib.contextmanager
def training_run(
    out: str | Path,
    *,
    stage: str,
    recipe: Mapping[str, Any],
    data: Sequence[str | Path],
    validation: str | Path | None,
    seed: int,
    resume: bool,
) -> Iterator[TrainingRun]:
    """Open or go on with the run folder of a training, held against other processes.

    A run that ends before its first checkpoint, on bad data for instance, gives the folder back.

    Raises:
        UserError: a data file is missing, or the folder holds another run, foreign files, or this
            run and `resume` is not given.
    """
    out = Path(out)
    if int(os.environ.get("RANK", "0")):
        yield TrainingRun(out, {}, first=False)
        return
    run = {
        "stage": stage,
        "recipe": {
            **recipe,
            "training": {k: v for k, v in recipe["training"].items() if k not in WITHOUT_EFFECT},
        },
        "data": [_fingerprint(path) for path in data],
        "validation": None if validation is None else _fingerprint(validation),
        "seed": seed,
    }
    there = (out / RUN_FILE).exists()
    with claimed(out, RUN_FILE, run, info={"recipe": recipe, **versions()}):
        if there and not resume:
            raise UserError(
                f"{out} holds this run already; go on with it by resume=True (--resume)"
            )
        remove_incomplete(out)
        yield TrainingRun(out, run)


def _fingerprint(path: str | Path) -> dict[str, str]:
    path = Path(path)
    if not path.exists():
        raise UserError(f"there is no file or folder {path}")
    return {"name": path.name, "sha256": input_hash(path)}
