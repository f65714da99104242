"""Validation of a refiner while it trains: losses by t, and the share of targets that it matches.

All evaluations in all runs draw the same random numbers, so that only the weights differ.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
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
    """Evaluator of a refiner on pairs that adds a row to `validation.csv` at each call.

    Every row has the losses of `rfm.path_losses`. At the first evaluation at or after each multiple
    of `match_steps`, and at the end of the training, it also has `match_rate` and `rmsd`
    (`flowllm.metrics.csp`): `match_crystals` bases are refined with the refiner's own settings, and
    `match_rate` is the share of them that match their targets, `rmsd` the mean normalised RMSD of
    the matches (absent without a match).
    """

    def __init__(
        self,
        pairs: Sequence[PairedCrystal],
        data: PairDataset,
        *,
        config: RefinerTrainingConfig,
        file: Path | None,
    ) -> None:
        """Choose the pairs that are refined.

        Args:
            pairs: the validation pairs, at least one.
            data: the same pairs, from which the losses are drawn. With `base.symmetry` `keep` it
                leaves out those without a symmetric path; `match_rate` is of all.
            config: intervals and numbers of crystals.
            file: the table; None in a process that does not write.
        """
        self.data = data
        self.config = config
        self.file = file
        # Files of pairs are sorted by size, so the first ones would all be small.
        count = min(config.match_crystals, len(pairs))
        chosen = [pairs[k] for k in np.random.default_rng(0).permutation(len(pairs))[:count]]
        self.targets = [pair.target for pair in chosen]
        # The base `uniform` takes only the atoms from a crystal.
        self.bases = [pair.base or pair.target for pair in chosen]

    def __call__(self, refiner: Refiner, state: TrainerState) -> dict[str, float]:
        """Return the figures of the refiner at this state of the training."""
        step = state.global_step
        found = path_losses(refiner, self.data, batch_size=self.config.batch_size)
        every = self.config.match_steps
        if step // every > (step - self.config.eval_steps) // every or step == state.max_steps:
            found |= self._matching(refiner)
        if self.file is not None:
            add_row(self.file, _COLUMNS, {"step": step, **found})
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


def add_row(file: Path, columns: Sequence[str], row: Mapping[str, Any]) -> None:
    """Add a row to a CSV file, in place of rows of the same or later steps from a run cut off.

    Args:
        file: the table; made if it is absent.
        columns: its columns, of which `step` is one.
        row: values by column; missing ones are left empty.
    """
    rows = []
    if file.exists():
        with file.open(newline="", encoding="utf-8") as table:
            rows = [old for old in csv.DictReader(table) if int(old["step"]) < row["step"]]
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows([*rows, row])
    write_atomic(file, text.getvalue())
