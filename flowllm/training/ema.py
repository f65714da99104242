"""Exponential moving average of the weights, stored in every checkpoint."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import TrainerCallback

EMA_FILE = "ema.safetensors"


class WeightAverage(TrainerCallback):
    """Average of the trainable weights: average <- d average + (1 - d) weights after each step.

    The decay d grows as (1 + step) / (10 + step) up to `decay`, so that the random start is
    forgotten soon.
    """

    def __init__(self, model: torch.nn.Module, decay: float) -> None:
        """Start from the present weights.

        Args:
            model: the model that is trained.
            decay: largest decay, in (0, 1).
        """
        self.decay = decay
        self.weights = {
            name: parameter.detach().clone()
            for name, parameter in model.named_parameters()
            if parameter.requires_grad
        }

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Move to the device of the model: a copy to another device at each step costs time."""
        for name, parameter in kwargs["model"].named_parameters():
            if name in self.weights:
                self.weights[name] = self.weights[name].to(parameter.device)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Add the weights after an optimiser step to the average."""
        decay = min(self.decay, (1 + state.global_step) / (10 + state.global_step))
        for name, parameter in kwargs["model"].named_parameters():
            if name in self.weights:
                self.weights[name].lerp_(parameter.detach(), 1 - decay)

    def save(self, checkpoint: Path) -> None:
        """Write the average to a checkpoint folder."""
        save_file(self.weights, checkpoint / EMA_FILE)

    def load(self, checkpoint: Path) -> None:
        """Read the average from a checkpoint folder."""
        stored = load_file(checkpoint / EMA_FILE)
        self.weights = {name: stored[name] for name in self.weights}

    def copy_to(self, model: torch.nn.Module) -> None:
        """Set the weights of a model to the average."""
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if name in self.weights:
                    parameter.copy_(self.weights[name])

    @contextlib.contextmanager
    def applied(self, model: torch.nn.Module) -> Iterator[None]:
        """Set the weights of a model to the average, and set them back at the end of the block."""
        own = {
            name: parameter.detach().clone()
            for name, parameter in model.named_parameters()
            if name in self.weights
        }
        self.copy_to(model)
        try:
            yield
        finally:
            with torch.no_grad():
                for name, parameter in model.named_parameters():
                    if name in own:
                        parameter.copy_(own[name])
