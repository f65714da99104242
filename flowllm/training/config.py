"""Hyperparameters of training: the common ones, and the additional ones of the refiner and of
preference tuning."""

from __future__ import annotations

from dataclasses import dataclass

from flowllm.errors import UserError
from flowllm.system.options import Options, option

# A resumed run may change these keys. They do not change the weights, except that `compile` rounds
# in another order.
WITHOUT_EFFECT = (
    *("save_steps", "eval_steps", "eval_crystals", "logging_steps"),
    *("match_steps", "match_crystals", "num_workers", "report_to", "compile"),
)


@dataclass(frozen=True, kw_only=True)
class TrainingConfig(Options):
    """Hyperparameters of every training: the section `training` of a recipe.

    Raises:
        UserError: if a value is out of range, with the key as `training.KEY`.
    """

    epochs: float = option(1, "Passes over the data.", above=0)
    batch_size: int = option(64, "Crystals per device and forward pass.", minimum=1)
    gradient_accumulation: int = option(1, "Forward passes per optimiser step.", minimum=1)
    learning_rate: float = option(
        1e-3, "Peak of the cosine schedule, after a linear warm-up.", above=0
    )
    warmup_steps: float = option(
        0.02, "Optimiser steps of the warm-up; a value below 1 is a share of all steps.", minimum=0
    )
    weight_decay: float = option(0.01, "Weight decay of AdamW.", minimum=0)
    beta2: float = option(0.99, "Decay of the second moment estimate of AdamW.", minimum=0, below=1)
    max_grad_norm: float = option(1.0, "Norm to which gradients are clipped.", minimum=0)
    bf16: bool = option(
        True, "Compute matrix products in bfloat16 (autocast); weights stay in float32."
    )
    gradient_checkpointing: bool = option(
        False, "Compute activations again in the backward pass, to save memory."
    )
    ema_decay: float = option(
        0.0, "Decay of the moving average of the weights; 0 keeps no average.", minimum=0, below=1
    )
    save_steps: int = option(500, "Optimiser steps between checkpoints.", minimum=1)
    eval_steps: int = option(
        500, "Optimiser steps between evaluations on the validation set.", minimum=1
    )
    eval_crystals: int = option(1000, "Crystals of the validation set in an evaluation.", minimum=1)
    logging_steps: int = option(50, "Optimiser steps between log lines.", minimum=1)
    max_steps: int = option(
        -1, "Optimiser steps after which to stop before the last epoch; -1 sets no limit.",
        minimum=-1,
    )  # fmt: skip
    num_workers: int = option(0, "Processes that prepare batches.", minimum=0)
    report_to: str = option("none", "Experiment tracker.", choices=("none", "tensorboard", "wandb"))

    def __post_init__(self) -> None:
        try:
            super().__post_init__()
            if self.max_steps == 0:
                raise UserError("max_steps is 0; give 1 or more, or -1 for no limit")
        except UserError as error:
            raise UserError(f"training.{error}") from error


@dataclass(frozen=True, kw_only=True)
class RefinerTrainingConfig(TrainingConfig):
    """Hyperparameters of a refiner, which also refines validation crystals while it trains."""

    match_steps: int = option(
        2000,
        "Optimiser steps between measurements of the match rate, each at the next evaluation.",
        minimum=1,
    )
    match_crystals: int = option(
        128, "Validation crystals that are refined to measure the match rate.", minimum=1
    )
    # It takes half a minute and gained nothing on the CPU (1.0 times). Not yet tried on a GPU.
    compile: bool = option(
        False, "Compile the messages of the network (torch.compile); needs a C++ compiler."
    )


@dataclass(frozen=True, kw_only=True)
class PreferenceConfig(Options):
    """Which samples are preferred over which: the section `preference` of a recipe.

    Raises:
        UserError: if a value is out of range, with the key as `preference.KEY`.
    """

    stable_below: float = option(
        0.1, "A crystal with less energy above the hull counts as stable.", unit="eV/atom"
    )
    length_tolerance: float = option(
        0.2, "Largest difference in length of two texts of a pair, as a share of the longer.",
        minimum=0, below=1,
    )  # fmt: skip
    held_out: float = option(
        0.1, "Share of the samples of each class whose pairs only measure.", minimum=0, below=1
    )

    def __post_init__(self) -> None:
        try:
            super().__post_init__()
        except UserError as error:
            raise UserError(f"preference.{error}") from error


@dataclass(frozen=True, kw_only=True)
class PreferenceLossConfig(Options):
    """Loss of direct preference optimisation: the section `loss` of a recipe.

    Raises:
        UserError: if a value is out of range, with the key as `loss.KEY`.
    """

    beta: float = option(0.1, "The smaller, the further the model moves from its start.", above=0)

    def __post_init__(self) -> None:
        try:
            super().__post_init__()
        except UserError as error:
            raise UserError(f"loss.{error}") from error
