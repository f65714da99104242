"""The one training engine of both stages: `transformers.Trainer` on accelerate, and what it lacks.

1. A draw is a function of (seed, absolute sample position): `VirtualEpochs`.
2. A checkpoint counts only when its COMPLETE marker with file hashes exists: `checkpoints.py`.
3. A loss that is not finite is shown, its gradient is dropped, and a few in a row stop the run
   with the ids of the batch.
4. An exponential moving average of the weights, kept in the checkpoint.
"""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from flowllm.checkpoints import mark_complete, newest_complete, remove_incomplete, verify
from flowllm.errors import UserError
from flowllm.files import publish, sha256_file, sha256_folder
from flowllm.folders import claimed
from flowllm.versions import versions

log = logging.getLogger(__name__)

RUN_FILE = "run.json"
EMA_FILE = "ema.safetensors"
_WINDOW = 50  # batches within which crystals are sorted by size
_NON_FINITE_LIMIT = 5  # losses in a row that stop a run
# Kept checkpoints. More than one, because an old one is deleted before the newest is marked.
_KEPT = 3


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """Hyperparameters that both stages share.

    Attributes:
        epochs: passes over the data.
        batch_size: crystals per device and forward pass.
        gradient_accumulation: forward passes per optimiser step.
        learning_rate: peak of a cosine schedule after a linear warm-up.
        warmup_steps: optimiser steps of the warm-up; below 1 it is a share of all steps.
        weight_decay: of AdamW.
        beta2: of AdamW.
        max_grad_norm: gradients are clipped to this norm.
        bf16: matrix products in bfloat16 (autocast), weights in float32.
        gradient_checkpointing: recompute activations in the backward pass to save memory.
        ema_decay: decay of the moving average of the weights; 0 keeps none.
        save_steps: optimiser steps between checkpoints.
        eval_steps: optimiser steps between evaluations on the validation set.
        eval_crystals: how many crystals of the validation set that looks at.
        logging_steps: optimiser steps between log lines.
        max_steps: stop after this many optimiser steps; -1 runs all epochs.
        num_workers: processes that prepare batches.
        report_to: `tensorboard`, `wandb` or `none`.
    """

    epochs: float = 1
    batch_size: int = 64
    gradient_accumulation: int = 1
    learning_rate: float = 1e-3
    warmup_steps: float = 0.02
    weight_decay: float = 0.01
    beta2: float = 0.99
    max_grad_norm: float = 1.0
    bf16: bool = True
    gradient_checkpointing: bool = False
    ema_decay: float = 0.0
    save_steps: int = 500
    eval_steps: int = 500
    eval_crystals: int = 1000
    logging_steps: int = 50
    max_steps: int = -1
    num_workers: int = 0
    report_to: str = "none"

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "gradient_accumulation", "learning_rate"):
            if getattr(self, name) <= 0:
                raise UserError(f"training.{name} must be above 0, not {getattr(self, name)}")
        if not 0 <= self.ema_decay < 1:
            raise UserError(f"training.ema_decay must be in [0, 1), not {self.ema_decay}")


class Drawable(Protocol):
    """A data set whose every draw is a function of an index and a random generator."""

    def __len__(self) -> int: ...

    def size(self, index: int) -> int: ...

    def draw(self, index: int, rng: np.random.Generator) -> Mapping[str, Any]: ...


class VirtualEpochs(torch.utils.data.Dataset):
    """`epochs` passes over a data set as one long map-style data set.

    The item at an absolute position is drawn with a generator seeded from (seed, position), so it
    does not depend on what was drawn before, by which worker, or in which run. Each pass is a
    fresh permutation in which the crystals of a batch are of like size; the remainder that fills
    no batch is another random one in each pass.
    """

    def __init__(self, data: Drawable, *, epochs: float, batch_size: int, seed: int) -> None:
        self.data = data
        self.batch_size = batch_size
        self.seed = seed
        whole = len(data) - len(data) % batch_size
        self.epoch_length = whole or len(data)
        self.length = math.ceil(self.epoch_length * epochs)
        self._sizes = np.array([data.size(index) for index in range(len(data))])
        self._epoch = -1
        self._order = np.empty(0, dtype=np.int64)

    def __len__(self) -> int:
        return self.length

    def index(self, position: int) -> int:
        """Which crystal stands at an absolute position."""
        epoch, place = divmod(position, self.epoch_length)
        if epoch != self._epoch:
            self._order = self._permutation(epoch)
            self._epoch = epoch
        return int(self._order[place])

    def __getitem__(self, position: int) -> Mapping[str, Any]:
        rng = np.random.default_rng([self.seed, 1, position])
        return self.data.draw(self.index(position), rng)

    def _permutation(self, epoch: int) -> np.ndarray:
        rng = np.random.default_rng([self.seed, 0, epoch])
        order = rng.permutation(len(self.data))[: self.epoch_length]
        window = _WINDOW * self.batch_size
        batches = []
        for start in range(0, len(order), window):
            part = order[start : start + window]
            part = part[np.argsort(self._sizes[part], kind="stable")]
            batches.extend(
                part[at : at + self.batch_size] for at in range(0, len(part), self.batch_size)
            )
        return np.concatenate([batches[i] for i in rng.permutation(len(batches))])


class NonFiniteLoss(UserError):
    """Several losses in a row were NaN or infinite."""


class _EngineTrainer(Trainer):
    """`Trainer` with complete-marked checkpoints, a guard against NaN, and an EMA."""

    def __init__(self, *args: Any, ema: dict[str, torch.Tensor] | None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.ema = ema
        self._non_finite_in_a_row = 0

    def training_step(
        self, model: torch.nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None
    ) -> torch.Tensor:
        ids = inputs.pop("ids")
        loss = super().training_step(model, inputs, num_items_in_batch)
        # Every process must agree, or one would step on gradients that another has dropped.
        finite = bool(self.accelerator.gather(torch.isfinite(loss).reshape(1)).all())
        if finite:
            self._non_finite_in_a_row = 0
            return loss
        self._non_finite_in_a_row += 1
        log.warning(
            "step %d: the loss is %s; its gradient is dropped (batch: %s)",
            self.state.global_step, loss.item(), ", ".join(ids[:8]),
        )  # fmt: skip
        if self._non_finite_in_a_row >= _NON_FINITE_LIMIT:
            raise NonFiniteLoss(
                f"{_NON_FINITE_LIMIT} losses in a row were not finite, the last at step "
                f"{self.state.global_step} on {', '.join(ids)}; lower training.learning_rate or "
                "look at these crystals, then resume"
            )
        model.zero_grad(set_to_none=True)
        return torch.zeros_like(loss)

    def prediction_step(
        self, model: torch.nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any
    ) -> Any:
        inputs.pop("ids", None)
        return super().prediction_step(model, inputs, *args, **kwargs)

    def _save_checkpoint(self, model: torch.nn.Module, trial: Any) -> None:
        super()._save_checkpoint(model, trial)
        if self.args.should_save:
            name = f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
            folder = Path(self._get_output_dir(trial=trial)) / name
            if self.ema is not None:
                save_file(self.ema, folder / EMA_FILE)
            mark_complete(folder)


class _Average(TrainerCallback):
    """Keeps the exponential moving average after each optimiser step.

    The decay warms up as (1 + step) / (10 + step), so the random start is soon forgotten.
    """

    def __init__(self, ema: dict[str, torch.Tensor], decay: float) -> None:
        self.ema = ema
        self.decay = decay

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        decay = min(self.decay, (1 + state.global_step) / (10 + state.global_step))
        with torch.no_grad():
            for name, parameter in kwargs["model"].named_parameters():
                if name in self.ema:
                    self.ema[name].lerp_(parameter.detach().to(self.ema[name].device), 1 - decay)


class _LogFile(TrainerCallback):
    """Appends every log line of the Trainer to the log of the run."""

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        if state.is_world_process_zero and logs:
            shown = {
                key: f"{value:.4g}" if isinstance(value, float) else value
                for key, value in logs.items()
            }
            log.info("step %d/%d %s", state.global_step, state.max_steps, shown)


def train(
    model: torch.nn.Module,
    data: Drawable,
    *,
    collate: Callable[[Sequence[Any]], Mapping[str, Any]],
    config: TrainingConfig,
    folder: Path,
    seed: int,
    resume: bool = False,
    validation: Drawable | None = None,
    device: str = "auto",
) -> dict[str, float]:
    """Train `model` in place; with an EMA it ends with the averaged weights.

    Args:
        model: its forward takes the collated batch and returns a loss.
        data: training crystals.
        collate: items -> batch; keeps the crystals' ids under `ids`.
        config: hyperparameters.
        folder: checkpoints go to `folder/checkpoint-STEP`.
        seed: of the draws, the order and the dropout.
        resume: go on from the newest complete checkpoint in `folder`, if there is one.
        validation: crystals whose mean loss is logged every `eval_steps`; always drawn alike.
        device: `cpu`, `cuda` or `auto`.

    Returns:
        Losses, steps and rates of the run, as the Trainer reports them.

    Raises:
        UserError: a damaged checkpoint (named), or losses that stay non-finite.
    """
    checkpoint = newest_complete(folder) if resume else None
    if checkpoint is not None:
        verify(checkpoint)
        log.info("resuming from %s", checkpoint)

    ema = None
    callbacks: list[TrainerCallback] = [_LogFile()]
    if config.ema_decay:
        ema = {
            name: parameter.detach().clone()
            for name, parameter in model.named_parameters()
            if parameter.requires_grad
        }
        if checkpoint is not None:
            stored = load_file(checkpoint / EMA_FILE)
            for name, value in ema.items():
                value.copy_(stored[name])
        callbacks.append(_Average(ema, config.ema_decay))

    trainer = _EngineTrainer(
        model=model,
        args=_arguments(config, folder, seed, device, evaluates=validation is not None),
        train_dataset=VirtualEpochs(
            data, epochs=config.epochs, batch_size=config.batch_size, seed=seed
        ),
        eval_dataset=None
        if validation is None
        else VirtualEpochs(validation, epochs=1, batch_size=config.batch_size, seed=seed),
        data_collator=collate,
        callbacks=callbacks,
        ema=ema,
    )
    result = trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    if ema is not None:
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if name in ema:
                    parameter.copy_(ema[name])
    return result.metrics


@dataclass(frozen=True)
class TrainingRun:
    """A run folder of a training: its identity in `run.json`, checkpoints, at the end `model/`."""

    folder: Path

    @property
    def model(self) -> Path:
        """Where the finished model goes."""
        return self.folder / "model"

    @property
    def finished(self) -> bool:
        """Whether the finished model is there."""
        return self.model.is_dir()

    def publish(self, save: Callable[[Path], object]) -> Path:
        """Write the finished model, whole or not at all."""
        return publish(self.model, save)


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

    Raises:
        UserError: the folder holds another run, or this one and `resume` is not given.
    """
    run = {
        "stage": stage,
        "recipe": recipe,
        "data": [_fingerprint(path) for path in data],
        "validation": None if validation is None else _fingerprint(validation),
        "seed": seed,
    }
    out = Path(out)
    there = (out / RUN_FILE).exists()
    with claimed(out, RUN_FILE, run, info=versions()):
        if there and not resume:
            raise UserError(f"{out} holds this run already; add --resume to go on with it")
        if there:
            remove_incomplete(out)
        yield TrainingRun(out)


def _fingerprint(path: str | Path) -> dict[str, str]:
    path = Path(path)
    if not path.exists():
        raise UserError(f"there is no file or folder {path}")
    digest = sha256_folder(path) if path.is_dir() else sha256_file(path)
    return {"name": path.name, "sha256": digest}


def _arguments(
    config: TrainingConfig, folder: Path, seed: int, device: str, *, evaluates: bool
) -> TrainingArguments:
    return TrainingArguments(
        output_dir=str(folder),
        num_train_epochs=1,  # VirtualEpochs holds all of them
        max_steps=config.max_steps,
        per_device_train_batch_size=config.batch_size,
        per_device_eval_batch_size=config.batch_size,
        gradient_accumulation_steps=config.gradient_accumulation,
        learning_rate=config.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=config.warmup_steps,
        weight_decay=config.weight_decay,
        adam_beta2=config.beta2,
        max_grad_norm=config.max_grad_norm,
        bf16=config.bf16,
        activation_checkpointing=config.gradient_checkpointing,
        use_cpu=device == "cpu",
        seed=seed,
        train_sampling_strategy="sequential",
        remove_unused_columns=False,
        logging_steps=config.logging_steps,
        logging_nan_inf_filter=False,
        save_steps=config.save_steps,
        save_total_limit=_KEPT,
        eval_strategy="steps" if evaluates else "no",
        eval_steps=config.eval_steps,
        prediction_loss_only=True,
        dataloader_num_workers=config.num_workers,
        dataloader_pin_memory=False,
        report_to=config.report_to,
    )
