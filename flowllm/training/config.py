"""The hyperparameters of training: those that both stages share, and the refiner's own."""

from __future__ import annotations

import math
from dataclasses import dataclass

from flowllm.errors import UserError

_POSITIVE = (
    *("epochs", "batch_size", "gradient_accumulation", "learning_rate"),
    *("save_steps", "eval_steps", "eval_crystals", "logging_steps"),
)
_NOT_NEGATIVE = ("warmup_steps", "weight_decay", "max_grad_norm", "num_workers")
# What a resumed run may change: they decide what is written on the way, not the weights, or (only
# `compile`) how fast they are computed, which rounds otherwise.
WITHOUT_EFFECT = (
    *("save_steps", "eval_steps", "eval_crystals", "logging_steps"),
    *("match_steps", "match_crystals", "num_workers", "report_to", "compile"),
)
_TRACKERS = ("none", "tensorboard", "wandb")


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
        max_steps: stop after this many optimiser steps, if the epochs have not ended before: it
            caps them and never extends them; -1 runs all epochs.
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
        for name in _POSITIVE:
            if not 0 < getattr(self, name) < math.inf:
                raise UserError(f"training.{name} must be above 0, not {getattr(self, name)}")
        for name in _NOT_NEGATIVE:
            if not 0 <= getattr(self, name) < math.inf:
                raise UserError(f"training.{name} must be at least 0, not {getattr(self, name)}")
        for name in ("beta2", "ema_decay"):
            if not 0 <= getattr(self, name) < 1:
                raise UserError(f"training.{name} must be in [0, 1), not {getattr(self, name)}")
        if self.max_steps < 1 and self.max_steps != -1:
            raise UserError(f"training.max_steps must be above 0, or -1, not {self.max_steps}")
        if self.report_to not in _TRACKERS:
            raise UserError(
                f"training.report_to must be one of {', '.join(_TRACKERS)}, not {self.report_to!r}"
            )


@dataclass(frozen=True, kw_only=True)
class RefinerTrainingConfig(TrainingConfig):
    """Those of a refiner, whose crystals are matched with their targets while it trains.

    Attributes:
        match_steps: optimiser steps between such matchings; each comes with the next evaluation.
        match_crystals: how many crystals of the validation set are refined for it.
        compile: `torch.compile` the messages of the network, which needs a C++ compiler and half a
            minute. On the CPU it was as fast without (1.0 times); meant for GPUs, untried there.
    """

    match_steps: int = 2000
    match_crystals: int = 128
    compile: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("match_steps", "match_crystals"):
            if getattr(self, name) < 1:
                raise UserError(f"training.{name} must be above 0, not {getattr(self, name)}")
