"""How far preference tuning has come: margins and accuracy of the pairs, and the divergence from
the start.

    KL(start || tuned) = mean of log q(text) - log p(text)   over texts drawn from the start q

in nats per crystal. The texts are drawn at temperature 1 without constraint, apart from the samples
that are learnt from (`llm_prior.draw_texts`).
"""

from __future__ import annotations

import csv
import functools
import math
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from transformers import TrainerState

from flowllm.errors import UserError
from flowllm.system.files import publish
from flowllm.system.parquet import read_parquet, write_parquet
from flowllm.training.config import TrainingConfig
from flowllm.training.preference.pairs import TextPair
from flowllm.training.validation import add_row
from llm_prior import Prior, score_texts

PROGRESS_FILE = "progress.csv"
START_FILE = "start_texts.parquet"
_FIGURES = ("margin", "accuracy", "chosen", "rejected")
_COLUMNS = (
    "step",
    *_FIGURES,
    *(f"held_out_{name}" for name in _FIGURES),
    *("kl", "kl_error"),
)


def log_likelihoods(
    prior: Prior, prompts: Sequence[str], texts: Sequence[str], config: TrainingConfig
) -> list[float]:
    """Return the log-likelihood of each text, in the precision of the training.

    Args:
        prior: the model.
        prompts: (P,).
        texts: (P,).
        config: its `bf16` and `batch_size` are used.

    Returns:
        (P,), nats.

    Raises:
        PriorError: if a text is longer than the context.
    """
    was_training = prior.model.training
    prior.model.eval()
    with _precision(prior, config):
        scores = score_texts(prior, prompts, texts, batch_size=2 * config.batch_size)
    prior.model.train(was_training)
    return [score.log_likelihood for score in scores]


def _precision(prior: Prior, config: TrainingConfig) -> AbstractContextManager[Any]:
    return torch.autocast(prior.device.type, dtype=torch.bfloat16, enabled=config.bf16)


class TuningProgress:
    """Evaluator of a prior that is tuned; adds a row to `progress.csv` at each call.

    The figures are, over pairs that train and over held-out ones (`held_out_...`): `margin`, the
    mean of b [log p(chosen) - log p(rejected)] less the same of the start; `accuracy`, the share of
    positive margins; `chosen` and `rejected`, the mean changes of the two log-likelihoods in nats.
    `kl` and its standard error `kl_error` are in nats per crystal. Figures over no pair are absent.
    """

    def __init__(
        self,
        prior: Prior,
        pairs: Sequence[TextPair],
        start_texts: Sequence[tuple[str, str, float]],
        *,
        beta: float,
        config: TrainingConfig,
        file: Path | None,
    ) -> None:
        """Compute what the start gives for the pairs that are measured.

        Args:
            prior: the model, with the weights of the start.
            pairs: all pairs; of each part `eval_crystals` at most are measured.
            start_texts: prompt, text and log-likelihood under the start of texts of the start.
            beta: scale of the margins.
            config: `eval_crystals`, `batch_size` and precision.
            file: the table; None in a process that does not write.
        """
        self.prior = prior
        self.beta = beta
        self.config = config
        self.file = file
        self.start_texts = start_texts
        self.parts: dict[str, list[TextPair]] = {}
        self.before: dict[str, np.ndarray] = {}
        for held_out, name in ((False, ""), (True, "held_out_")):
            part = [pair for pair in pairs if pair.held_out is held_out]
            chosen = np.random.default_rng(0).permutation(len(part))[: config.eval_crystals]
            if len(chosen):
                self.parts[name] = [part[k] for k in sorted(chosen)]
                self.before[name] = self._score(self.parts[name])

    def _score(self, pairs: Sequence[TextPair]) -> np.ndarray:
        """Return log-likelihoods (2, P) of the chosen and the rejected texts."""
        prompts = [pair.prompt for pair in pairs] * 2
        texts = [pair.chosen for pair in pairs] + [pair.rejected for pair in pairs]
        found = log_likelihoods(self.prior, prompts, texts, self.config)
        return np.array(found).reshape(2, -1)

    def __call__(self, model: Any, state: TrainerState) -> dict[str, float]:
        """Return the figures of the model at this state of the training, and add them to the table.

        Args:
            model: that of the prior.
            state: of the training.
        """
        found = self._measure()
        if self.file is not None:
            add_row(self.file, _COLUMNS, {"step": state.global_step, **found})
        return found

    def _measure(self) -> dict[str, float]:
        """Return the figures of the prior with its present weights."""
        found: dict[str, float] = {}
        for name, pairs in self.parts.items():
            chosen, rejected = self._score(pairs) - self.before[name]
            margins = self.beta * (chosen - rejected)
            values = (margins, margins > 0, chosen, rejected)
            found |= {
                f"{name}{figure}": float(np.mean(value))
                for figure, value in zip(_FIGURES, values, strict=True)
            }
        if self.start_texts:
            prompts, texts, before = zip(*self.start_texts, strict=True)
            now = log_likelihoods(self.prior, prompts, texts, self.config)
            found["kl"], found["kl_error"] = _mean_with_error(np.subtract(before, now))
        return {name: value for name, value in found.items() if math.isfinite(value)}

    def last(self) -> dict[str, float]:
        """Return the figures of the last row of the table, which are those of the trained model.

        They are not measured again: after a training with sharded weights (FSDP) the model can no
        longer compute. A process that does not write has none.
        """
        if self.file is None:
            return {}
        with self.file.open(newline="", encoding="utf-8") as table:
            *_, row = csv.DictReader(table)
        return {name: float(row[name]) for name in _COLUMNS[1:] if row[name]}


def _mean_with_error(values: np.ndarray) -> tuple[float, float]:
    """Return the mean of values (N,) and its standard error, NaN for a single value."""
    error = values.std(ddof=1) / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return float(values.mean()), float(error)


def write_start_texts(rows: Sequence[tuple[str, str, float]], file: Path) -> None:
    """Write texts of the start with their log-likelihoods.

    Args:
        rows: prompt, text and log-likelihood in nats of each.
        file: whole or absent, even after a kill.
    """
    columns: Mapping[str, Any] = {
        "prompt": [prompt for prompt, _, _ in rows],
        "text": [text for _, text, _ in rows],
        "log_likelihood": [value for _, _, value in rows],
    }
    publish(file, functools.partial(write_parquet, pa.table(dict(columns))))


def read_start_texts(file: Path) -> list[tuple[str, str, float]]:
    """Read what `write_start_texts` has written.

    Args:
        file: in the run folder.

    Returns:
        Prompt, text and log-likelihood of each.

    Raises:
        UserError: if the file is damaged.
    """
    try:
        rows = read_parquet(file).to_pylist()
        return [(row["prompt"], row["text"], float(row["log_likelihood"])) for row in rows]
    except (pa.ArrowException, OSError, LookupError, TypeError) as error:
        raise UserError(f"{file} is damaged; tune again in another folder") from error
