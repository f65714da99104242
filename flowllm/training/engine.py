"""Training engine of both stages: `transformers.Trainer` on accelerate with six additions.

1. A draw is a function of the seed and the absolute position in the run (`epochs`).
2. A checkpoint counts only with its COMPLETE marker, which holds the hashes (`checkpoints`).
3. The gradient of a loss that is not finite is dropped, with a log line. Several such losses in a
   row stop the run with the ids of the batch.
4. Every checkpoint holds an exponential moving average of the weights, if one is kept (`ema`).
5. All labels of a run have the same weight, in whatever batch they are (`labels_per_draw`).
6. The loss may be a function of the model and the batch (`objective`).
"""

from __future__ import annotations

import contextlib
import logging
import os
import pickle
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import DistributedType
from tqdm.contrib.logging import logging_redirect_tqdm
from transformers import (
    PrinterCallback,
    ProgressCallback,
    Trainer,
    TrainerCallback,
    TrainerState,
    TrainingArguments,
)
from transformers.trainer import TRAINING_ARGS_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from flowllm.errors import UserError
from flowllm.system.device import pick_device
from flowllm.training.checkpoints import mark_complete, newest_complete, verify_checkpoint
from flowllm.training.config import TrainingConfig
from flowllm.training.ema import WeightAverage
from flowllm.training.epochs import Drawable, VirtualEpochs
from flowllm.training.fsdp import check_sharding, gather_weights, shard_on_cpu
from flowllm.training.progress import TrainingBar, TrainingLog, TrainingRate

log = logging.getLogger(__name__)

# Takes the model in eval mode and the state of the run, and returns figures by name. Every process
# calls it.
Evaluator = Callable[[Any, TrainerState], Mapping[str, float]]
# Takes the model and a batch, and returns the loss, a mean over the batch.
Objective = Callable[[Any, Mapping[str, Any]], torch.Tensor]

_NON_FINITE_LIMIT = 5  # losses in a row that stop a run
# Checkpoints that are kept. More than one, because an old one is deleted before the newest is
# marked.
_KEPT = 3


class NonFiniteLoss(UserError):
    """Several losses in a row were NaN or infinite."""


class _EngineTrainer(Trainer):
    """`Trainer` with marked checkpoints, a guard against NaN, and an average of the weights."""

    def __init__(
        self,
        model: torch.nn.Module,
        *,
        average: WeightAverage | None,
        evaluator: Evaluator | None,
        objective: Objective | None,
        rate: TrainingRate,
        labels_per_draw: float | None,
        validation_labels_per_draw: float | None,
        **kwargs: Any,
    ) -> None:
        super().__init__(model, **kwargs)
        self.module = model
        self.average = average
        self.evaluator = evaluator
        self.objective: Objective | None = objective
        self.rate = rate
        self.labels_per_draw = labels_per_draw
        self.validation_labels_per_draw = validation_labels_per_draw
        self._validates = False
        self._non_finite_in_a_row = 0

    def create_accelerator_and_postprocess(self) -> None:
        super().create_accelerator_and_postprocess()
        shard_on_cpu(self.accelerator)
        self.is_fsdp_enabled = self.accelerator.distributed_type is DistributedType.FSDP

    def training_step(
        self, model: torch.nn.Module, inputs: dict[str, Any], num_items_in_batch: Any = None
    ) -> torch.Tensor:
        ids = inputs.pop("ids")
        self.rate.add(len(ids), inputs.get("attention_mask"))
        loss = super().training_step(model, inputs, num_items_in_batch)
        # Every process must agree, or one would step on gradients that another has dropped.
        finite = bool(self.accelerator.gather(torch.isfinite(loss).reshape(1)).all())
        if finite:
            self._non_finite_in_a_row = 0
            return loss
        self._non_finite_in_a_row += 1
        log.warning(
            "step %d: the loss is %s; its gradient is dropped (batch: %s)",
            self.state.global_step + 1, loss.item(), ", ".join(ids[:8]),
        )  # fmt: skip
        if self._non_finite_in_a_row >= _NON_FINITE_LIMIT:
            raise NonFiniteLoss(
                f"{_NON_FINITE_LIMIT} losses in a row were not finite, the last at step "
                f"{self.state.global_step + 1} on {', '.join(ids)}; look at these crystals, or "
                "train in another folder with a lower training.learning_rate"
            )
        model.zero_grad(set_to_none=True)
        return torch.zeros_like(loss)

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        if self.objective is None:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        loss = self.objective(model, inputs)
        return (loss, {"loss": loss}) if return_outputs else loss

    def _get_num_items_in_batch(
        self, batch_samples: list[Any], device: torch.device
    ) -> torch.Tensor | int | None:
        """Return what the sum of the losses of the labels in these batches is divided by.

        A batch holds draws of similar size. Divided by its own number of labels, a label in a long
        text would weigh less than one in a short text, and the model would learn to write texts
        that are too short.
        """
        labels_per_draw = (
            self.validation_labels_per_draw if self._validates else self.labels_per_draw
        )
        if labels_per_draw is None:
            return super()._get_num_items_in_batch(batch_samples, device)
        draws = sum(len(batch["input_ids"]) for batch in batch_samples)
        draws *= self.accelerator.num_processes
        return torch.tensor(labels_per_draw * draws, device=device)

    def prediction_step(
        self, model: torch.nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any
    ) -> Any:
        inputs.pop("ids", None)
        return super().prediction_step(model, inputs, *args, **kwargs)

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Evaluate the averaged weights, with which the run ends, if an average is kept."""
        averaged = (
            contextlib.nullcontext() if self.average is None else self.average.applied(self.module)
        )
        with averaged:
            if self.evaluator is None:
                self._validates = True
                try:
                    return super().evaluate(*args, **kwargs)
                finally:
                    self._validates = False
            self.module.eval()  # the next training step sets it back
            found = self.evaluator(self.module, self.state)
        metrics = {f"eval_{name}": value for name, value in found.items()}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(
            self.args, self.state, self.control, metrics
        )
        return metrics

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        """Do not report tied weights as missing: they are stored once, under another name."""
        tied = getattr(self.module, "all_tied_weights_keys", {})
        load_result.missing_keys[:] = [key for key in load_result.missing_keys if key not in tied]
        super()._issue_warnings_after_load(load_result)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Write the weights to a checkpoint.

        Sharded weights are there already, in the file that FSDP reads. An adapter is written
        without its base, whose added embeddings are the same at every load.
        """
        if self.is_fsdp_enabled:
            return
        if not hasattr(self.module, "peft_config"):
            super().save_model(output_dir, _internal_call)
        elif self.args.should_save:
            adapter: Any = self.module  # a PeftModel; peft is imported only where it is used
            adapter.save_pretrained(output_dir, save_embedding_layers=False)

    def _save_checkpoint(self, model: torch.nn.Module, trial: Any) -> None:
        super()._save_checkpoint(model, trial)
        self.accelerator.wait_for_everyone()  # each process writes its own random state
        if self.args.should_save:
            name = f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
            folder = Path(self._get_output_dir(trial=trial)) / name
            # A pickle of objects, which nothing reads.
            (folder / TRAINING_ARGS_NAME).unlink(missing_ok=True)
            if self.average is not None:
                self.average.save(folder)
            mark_complete(folder)


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
    evaluator: Evaluator | None = None,
    objective: Objective | None = None,
    labels_per_draw: float | None = None,
    validation_labels_per_draw: float | None = None,
    device: str = "auto",
) -> dict[str, float]:
    """Train a model in place. If an average of the weights is kept, the model ends with it.

    With sharded weights (FSDP) the model of the first process ends with all weights, on the CPU,
    and the models of the other processes end without weights.

    Args:
        model: its forward takes the collated batch and returns a loss, unless there is an
            `objective`.
        data: training crystals.
        collate: makes a batch of items; the batch holds the crystals' ids under `ids`.
        config: hyperparameters.
        folder: run folder; checkpoints go to `folder/checkpoint-STEP`.
        seed: seed of the draws, the order and the dropout.
        resume: go on from the newest complete checkpoint in `folder`, if there is one.
        validation: crystals whose mean loss is logged every `eval_steps` and at the end; every
            evaluation makes the same draws.
        evaluator: called at the same times instead; its figures are logged.
        objective: the loss of the model on a batch, without the `ids`; None: what the model
            returns.
        labels_per_draw: mean number of labels of a draw. The loss of a step is then the sum over
            its labels, divided by this number and the draws of the step, so that all labels have
            the same weight in batches of texts of any length. None: the mean of the model's loss.
        validation_labels_per_draw: the same number of `validation`, so that its loss does not
            depend on the training crystals.
        device: `cpu`, `cuda` or `auto`.

    Returns:
        Losses, steps and rates of the run, as the Trainer reports them.

    Raises:
        UserError: if a checkpoint is damaged, the device or the experiment tracker is absent, the
            model has no gradient checkpointing, or sharded weights (FSDP) do not allow a setting.
        NonFiniteLoss: if five losses in a row are not finite.
    """
    device = training_device(device)
    _check(config, model)
    checkpoint = newest_complete(folder) if resume else None
    if checkpoint is not None:
        verify_checkpoint(checkpoint)
        log.info("resuming from %s", checkpoint)

    rate = TrainingRate()
    callbacks: list[TrainerCallback] = [TrainingLog()]
    average = None
    if config.ema_decay:
        average = WeightAverage(model, config.ema_decay)
        if checkpoint is not None:
            average.load(checkpoint)
        callbacks.append(average)

    arguments = _arguments(config, folder, seed, device, evaluates=bool(validation or evaluator))
    if arguments.n_gpu > 1:  # the Trainer would split each batch, and its loss, among them
        raise UserError(
            f"{arguments.n_gpu} GPUs and one process: start with `accelerate launch --multi_gpu -m "
            "flowllm ...`, or choose one GPU with CUDA_VISIBLE_DEVICES=0"
        )
    draws = None
    if config.max_steps > 0:
        # Not the Trainer's own limit: with it a run resumed at its last step takes one more.
        draws = config.max_steps * config.gradient_accumulation * config.batch_size
        draws *= arguments.world_size
    trainer = _EngineTrainer(
        model,
        args=arguments,
        train_dataset=VirtualEpochs(
            data, epochs=config.epochs, batch_size=config.batch_size, seed=seed, limit=draws
        ),
        # The Trainer requires a data set for evaluations, even if it is not used.
        eval_dataset=()
        if validation is None
        else VirtualEpochs(validation, epochs=1, batch_size=config.batch_size, seed=seed),
        data_collator=collate,
        callbacks=callbacks,
        average=average,
        evaluator=evaluator,
        objective=objective,
        rate=rate,
        labels_per_draw=labels_per_draw,
        validation_labels_per_draw=validation_labels_per_draw,
    )
    if trainer.is_fsdp_enabled:
        check_sharding(trainer.accelerator, ema_decay=config.ema_decay)
    trainer.callback_handler.callbacks.insert(0, rate)  # the other callbacks log what it adds
    for default in (ProgressCallback, PrinterCallback):
        trainer.remove_callback(default)
    bar = TrainingBar()
    trainer.add_callback(bar)
    with contextlib.closing(bar), logging_redirect_tqdm():  # log lines go above the bar
        try:
            result = trainer.train(
                resume_from_checkpoint=None if checkpoint is None else str(checkpoint)
            )
        except pickle.UnpicklingError as error:  # torch reads tensors and numbers, and no more
            raise UserError(
                f"{checkpoint} was not written by flowllm: a file holds more than plain data; "
                f"delete {checkpoint} to resume from an earlier one"
            ) from error
    if average is not None:
        average.copy_to(model)
    if trainer.is_fsdp_enabled:
        gather_weights(model, keep=trainer.args.should_save)
    return result.metrics


def training_device(device: str) -> str:
    """Return the kind of device of a training, and make the GPU of this process the current one.

    The launcher (LOCAL_RANK) and CUDA_VISIBLE_DEVICES choose among several GPUs. transformers loads
    quantised weights to the current GPU, so it must be the right one before they are loaded.

    Args:
        device: `cpu`, `cuda` or `auto`.

    Returns:
        `cpu` or `cuda`.

    Raises:
        UserError: if the name is another one, or if it is `cuda` and there is no GPU.
    """
    if ":" in device:
        raise UserError(
            f"device {device}: training takes cuda; choose the GPU with CUDA_VISIBLE_DEVICES"
        )
    device = pick_device(device)
    if device == "cuda" and "LOCAL_RANK" in os.environ:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    return device


def _check(config: TrainingConfig, model: torch.nn.Module) -> None:
    """Refuse settings that are impossible with this model or this installation."""
    if config.gradient_checkpointing and not hasattr(model, "activation_checkpointing_enable"):
        raise UserError(
            f"a {type(model).__name__} has no gradient checkpointing; "
            "set training.gradient_checkpointing to false"
        )
    if config.report_to != "none" and find_spec(config.report_to) is None:
        raise UserError(
            f"training.report_to is {config.report_to}, which is not installed: "
            f"pip install {config.report_to}"
        )


def _arguments(
    config: TrainingConfig, folder: Path, seed: int, device: str, *, evaluates: bool
) -> TrainingArguments:
    return TrainingArguments(
        output_dir=str(folder),
        num_train_epochs=1,  # VirtualEpochs holds all of them, up to training.max_steps
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
        # transformers seeds numpy with it, and numpy takes 32 bits.
        seed=int(np.random.SeedSequence(seed).generate_state(1)[0]),
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
        ddp_find_unused_parameters=False,
        report_to=config.report_to,
    )
