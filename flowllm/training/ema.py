"""An exponential moving average of the weights, which is kept in every checkpoint."""

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
    """Follows the trainable weights: average <- d average + (1 - d) weights after each step.

    The decay d warms up as (1 + step) / (10 + step), up to `decay`, so that the random start is
    soon forgotten.
    """

    def __init__(self, model: torch.nn.Module, decay: float) -> None:
        self.decay = decay
        self.weights = {
            name: parameter.detach().clone()
            for name, parameter in model.named_parameters()
            if parameter.requires_grad
        }

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Go where the model has gone: a copy to another device at each step would cost time."""
        for name, parameter in kwargs["model"].named_parameters():
            if name in self.weights:
                self.weights[name] = self.weights[name].to(parameter.device)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Take one optimiser step in."""
        decay = min(self.decay, (1 + state.global_step) / (10 + state.global_step))
        for name, parameter in kwargs["model"].named_parameters():
            if name in self.weights:
                self.weights[name].lerp_(parameter.detach(), 1 - decay)

    def save(self, checkpoint: Path) -> None:
        """Put the average into a checkpoint folder."""
        save_file(self.weights, checkpoint / EMA_FILE)

    def load(self, checkpoint: Path) -> None:
        """Go on from the average in a checkpoint folder."""
        stored = load_file(checkpoint / EMA_FILE)
        self.weights = {name: stored[name] for name in self.weights}

    def copy_to(self, model: torch.nn.Module) -> None:
        """Give a model the averaged weights."""
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if name in self.weights:
                    parameter.copy_(self.weights[name])

    @contextlib.contextmanager
    def applied(self, model: torch.nn.Module) -> Iterator[None]:
        """Let a model have the averaged weights for a while, for its evaluation."""
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
