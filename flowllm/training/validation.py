"""What is measured of a refiner while it trains: losses by t, and how many targets are met.

Everything is drawn alike at each evaluation and in every run, so that only the weights differ.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from transformers import TrainerState

from flowllm.metrics.csp import match_metrics, rms_distance
from flowllm.system.files import write_atomic
from flowllm.training.config import RefinerTrainingConfig
from rfm import PATH_LOSSES, PairDataset, PairedCrystal, Refiner, path_losses, refine

VALIDATION_FILE = "validation.csv"
_COLUMNS = ("step", *PATH_LOSSES, "match_rate", "rmsd")


class RefinerValidation:
    """An `Evaluation` of a refiner on pairs, kept in `validation.csv` as a row a time.

    At every evaluation `rfm.path_losses`; at the first one at or after each `match_steps`, and at
    the end of the training, also `match_rate` and `rmsd` (`flowllm.metrics.csp`): the share of
    `match_crystals` bases that, refined by the refiner's own settings, match their targets, and the
    mean normalised RMSD of those that do (none, no number).
    """

    def __init__(
        self,
        pairs: Sequence[PairedCrystal],
        data: PairDataset,
        *,
        config: RefinerTrainingConfig,
        file: Path | None,
    ) -> None:
        """Take the validation set.

        Args:
            pairs: at least one.
            data: the same pairs, as they are drawn for the losses.
            config: how often, and of how many crystals.
            file: the table; None in a process that does not write.
        """
        self.data = data
        self.config = config
        self.file = file
        # Files of pairs are sorted by size, so the first ones would all be small.
        count = min(config.match_crystals, len(pairs))
        chosen = [pairs[k] for k in np.random.default_rng(0).permutation(len(pairs))[:count]]
        self.targets = [pair.target for pair in chosen]
        # The base `uniform` takes from a crystal only which atoms it has.
        self.bases = [pair.base or pair.target for pair in chosen]

    def __call__(self, refiner: Refiner, state: TrainerState) -> dict[str, float]:
        """The figures of the refiner at this state of the training."""
        step = state.global_step
        found = path_losses(refiner, self.data, batch_size=self.config.batch_size)
        every = self.config.match_steps
        if step // every > (step - self.config.eval_steps) // every or step == state.max_steps:
            found |= self._matching(refiner)
        if self.file is not None:
            _add_row(self.file, {"step": step, **found})
        return found

    def _matching(self, refiner: Refiner) -> dict[str, float]:
        results = refine(refiner, self.bases)
        distances = [
            None if result.structure is None else rms_distance(result.structure, target)
            for result, target in zip(results, self.targets, strict=True)
        ]
        found = match_metrics(np.array(distances, dtype=float))  # None becomes NaN
        values = {"match_rate": found["match_rate"].value, "rmsd": found["rmse"].value}
        return {name: value for name, value in values.items() if value is not None}


def _add_row(file: Path, row: dict[str, Any]) -> None:
    """Add a row; those of the same step or later ones, of a run that was cut off, give way."""
    rows = []
    if file.exists():
        with file.open(newline="", encoding="utf-8") as table:
            rows = [old for old in csv.DictReader(table) if int(old["step"]) < row["step"]]
    text = io.StringIO()
    writer = csv.DictWriter(text, _COLUMNS, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows([*rows, row])
    write_atomic(file, text.getvalue())
