"""Progress of a training: the bar, the log lines, and the rates in both."""

from __future__ import annotations

import logging
import time
from typing import Any

import torch
from tqdm import tqdm
from transformers import ProgressCallback, TrainerCallback

log = logging.getLogger(__name__)

_ON_THE_BAR = ("loss", "crystals_per_second", "tokens_per_second")


class TrainingBar(ProgressCallback):
    """The Trainer's progress bar with loss and rate, on a terminal only.

    The original also prints the log lines to stdout, which is reserved for results.
    """

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Begin the bar."""
        if state.is_world_process_zero:
            self.training_bar = tqdm(total=state.max_steps, dynamic_ncols=True, disable=None)
        self.current_step = 0

    def close(self) -> None:
        """End the bar with its line, also where the training was interrupted."""
        if self.training_bar is not None:
            self.training_bar.close()

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        """Show the newest figures on the bar."""
        if state.is_world_process_zero and self.training_bar is not None and logs:
            shown = {key: f"{logs[key]:.4g}" for key in _ON_THE_BAR if key in logs}
            if shown:
                self.training_bar.set_postfix(shown)


class TrainingRate(TrainerCallback):
    """Rates of a training, added to its log lines.

    `crystals_per_second` and `tokens_per_second` are averages since the last log line;
    `minutes_left` follows from the rate since the start.
    """

    def __init__(self) -> None:
        self._crystals = self._tokens = 0
        self._start = self._last = time.monotonic()
        self._first_step = 0

    def add(self, crystals: int, attention_mask: torch.Tensor | None) -> None:
        """Count one batch of this process; a batch without a mask has no tokens."""
        self._crystals += crystals
        self._tokens += 0 if attention_mask is None else int(attention_mask.sum())

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._start = self._last = time.monotonic()
        self._first_step = state.global_step

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        """Add the rates to a log line; this must come before the callbacks that show it."""
        if logs is None or "loss" not in logs:
            return
        now = time.monotonic()
        elapsed = max(now - self._last, 1e-9)
        logs["crystals_per_second"] = self._crystals * args.world_size / elapsed
        if self._tokens:
            logs["tokens_per_second"] = self._tokens * args.world_size / elapsed
        done = state.global_step - self._first_step
        logs["minutes_left"] = (
            (now - self._start) / 60 * (state.max_steps - state.global_step) / max(done, 1)
        )
        self._crystals = self._tokens = 0
        self._last = now


class TrainingLog(TrainerCallback):
    """Log lines of the Trainer, written to the log of `flowllm`."""

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        if state.is_world_process_zero and logs:
            shown = {
                key: f"{value:.4g}" if isinstance(value, float) else value
                for key, value in logs.items()
                if key != "epoch"  # the Trainer's, which counts all passes of VirtualEpochs as one
            }
            log.info("step %d/%d %s", state.global_step, state.max_steps, shown)
