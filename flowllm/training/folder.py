"""Run folder of a training: `run.json`, `checkpoint-STEP/`, and at the end `model/`."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from flowllm.crystals.run_folders import input_hash
from flowllm.errors import UserError
from flowllm.hub.card import write_card
from flowllm.runs.identity import claimed, read_identity
from flowllm.system.files import publish, write_atomic, write_failure
from flowllm.system.versions import versions
from flowllm.training.checkpoints import newest_complete, remove_incomplete
from flowllm.training.config import WITHOUT_EFFECT

RUN_FILE = "run.json"


@dataclass(frozen=True)
class TrainingRun:
    """Run folder of a training.

    Attributes:
        folder: holds `run.json`, `checkpoint-STEP/` and at the end `model/`.
        run: stage, recipe, hashes of the data and seed, as in `run.json`.
        first: True in the process that writes, if several train together (torchrun).
    """

    folder: Path
    run: Mapping[str, Any]
    first: bool = True

    @property
    def model(self) -> Path:
        """Folder of the finished model."""
        return self.folder / "model"

    @property
    def finished(self) -> bool:
        """True if the finished model is there."""
        return self.model.is_dir()

    def publish(
        self, save: Callable[[Path], object], *, sections: Mapping[str, str] | None = None
    ) -> Path:
        """Write the finished model and its model card, whole or not at all.

        Args:
            save: writes the model to a folder.
            sections: additional text of the card by heading.

        Returns:
            The folder of the model. Only the first process writes it.
        """

        def save_with_card(path: Path) -> None:
            save(path)
            self._write_card(path, sections or {})

        return publish(self.model, save_with_card) if self.first else self.model

    def record(self, name: str, content: Any) -> None:
        """Add an entry to the section `info` of `run.json`, which a resumed run does not compare.

        Args:
            name: of the entry.
            content: plain JSON; an entry of this name is replaced.
        """
        if not self.first:
            return
        run, info = read_identity(self.folder, RUN_FILE)
        text = json.dumps({"run": run, "info": {**info, name: content}}, indent=2, allow_nan=False)
        write_atomic(self.folder / RUN_FILE, text + "\n")

    def _write_card(self, model: Path, more: Mapping[str, str]) -> None:
        data = "\n".join(f"- `{d['name']}`, sha256 `{d['sha256']}`" for d in self.run["data"])
        stage, seed, validation = (self.run[key] for key in ("stage", "seed", "validation"))
        sections = {
            "": f"Trained by `flowllm {stage}`, seed {seed}.",
            "Data": f"{data}\n\nThe licence of the data was not recorded.",
            "Recipe": f"```yaml\n{yaml.safe_dump(self.run['recipe'], sort_keys=False)}```",
            "Limits": "The crystals that this model generates have not been evaluated "
            "(`flowllm evaluate`).",
        }
        sections |= more
        if validation is not None and (loss := self._last_validation_loss()) is not None:
            step, value = loss
            sections["Validation"] = (
                f"Loss {value:.4f} at step {step}, on `{validation['name']}`, sha256 "
                f"`{validation['sha256']}`."
            )
        write_card(model, name=f"{stage} model", sections=sections, tags=["crystals", "materials"])

    def _last_validation_loss(self) -> tuple[int, float] | None:
        """Return step and loss of the last evaluation in the newest checkpoint, or None."""
        checkpoint = newest_complete(self.folder)
        if checkpoint is None:
            return None
        history = json.loads((checkpoint / "trainer_state.json").read_bytes())["log_history"]
        losses = [(line["step"], line["eval_loss"]) for line in history if "eval_loss" in line]
        return losses[-1] if losses else None


@contextlib.contextmanager
def training_run(
    out: str | Path,
    *,
    stage: str,
    recipe: Mapping[str, Any],
    data: Sequence[str | Path],
    validation: str | Path | None = None,
    start: Mapping[str, Any] | None = None,
    seed: int,
    resume: bool,
) -> Iterator[TrainingRun]:
    """Open a new or an existing run folder and hold it against other processes.

    A run that ends before its first checkpoint, for instance on bad data, leaves the folder free.

    Args:
        out: the run folder.
        stage: name of the command, such as `train-llm`.
        recipe: all settings, as plain JSON.
        data: files, folders and runs that the training reads.
        validation: file or folder of the validation set.
        start: identity of the trained model that the training starts from, if it is not in `data`.
        seed: seed of the run.
        resume: accept a folder that holds this run already.

    Yields:
        The run.

    Raises:
        UserError: if a data file is missing, or if the folder holds another run, foreign files, or
            this run without `resume`; or if the disk is full in the middle of the body.
    """
    out = Path(out)
    if int(os.environ.get("RANK", "0")):
        yield TrainingRun(out, {}, first=False)
        return
    for path in [*data, *([] if validation is None else [validation])]:
        if not Path(path).exists():
            raise UserError(f"there is no file or folder {path}; check the path")
    compared = {
        key: value for key, value in recipe["training"].items() if key not in WITHOUT_EFFECT
    }
    run = {
        "stage": stage,
        "recipe": {**recipe, "training": compared},
        "data": [_fingerprint(path) for path in data],
        "validation": None if validation is None else _fingerprint(validation),
        "seed": seed,
    }
    if start is not None:
        run["start"] = dict(start)
    existed = (out / RUN_FILE).exists()
    with claimed(out, RUN_FILE, run, info={"recipe": recipe, **versions()}):
        if existed and not resume:
            raise UserError(
                f"{out} holds this run already; go on with it by resume=True (--resume)"
            )
        remove_incomplete(out)
        try:
            yield TrainingRun(out, run)
        except Exception as error:
            if (reason := write_failure(error)) is None:
                raise
            raise UserError(
                f"{out}: {reason}; make room, and go on with resume=True (--resume)"
            ) from error


def _fingerprint(path: str | Path) -> dict[str, str]:
    return {"name": Path(path).name, "sha256": input_hash(Path(path))}
