"""What the prior makes of given crystals: their log-likelihood, and how it bears translations."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from flowllm.crystals.io import Crystal, read
from flowllm.errors import UserError
from flowllm.hub.locate import BUNDLED_PRIOR, resolve
from flowllm.system.device import pick_device
from flowllm.system.tables import check_absent, write_rows
from llm_prior import Prior, warn_of_untrained
from llm_prior.prompts import BY_NAME, known_conditions
from llm_prior.scoring import SCORE_BATCH_SIZE, log_likelihood
from llm_prior.translation import NUM_TRANSLATIONS, increase_in_perplexity

_CHUNK = 512  # crystals between two steps of the progress bar


@dataclass(frozen=True)
class Measured:
    """A row for each crystal, and the mean of one of its columns.

    Attributes:
        rows: of plain values.
        column: the column that is averaged, over its finite values.
    """

    rows: list[dict[str, Any]]
    column: str

    @property
    def values(self) -> np.ndarray:
        """The finite values of the column."""
        values = np.array([row[self.column] for row in self.rows], dtype=float)
        return values[np.isfinite(values)]

    @property
    def mean(self) -> float:
        """Mean over the crystals; NaN where no value is finite."""
        return float(self.values.mean()) if self.values.size else math.nan

    @property
    def standard_error(self) -> float:
        """Standard error of the mean; NaN for fewer than two values."""
        n = self.values.size
        return float(self.values.std(ddof=1) / math.sqrt(n)) if n > 1 else math.nan


def score(
    file: str | Path,
    *,
    prior: str | Path | None = None,
    conditions: Sequence[str] = (),
    constrain: bool = False,
    out: str | Path | None = None,
    batch_size: int = SCORE_BATCH_SIZE,
    limit: int | None = None,
    skip_invalid: bool = False,
    device: str = "auto",
    progress: bool = True,
) -> Measured:
    """Log-likelihood of the crystals of a file, in nats for each.

    A crystal is scored in its Niggli cell with the coordinates of the file; shifted as a whole it
    is another text and has another value (`ipt` says how much).

    Args:
        file: anything that `flowllm.crystals.io.read` reads.
        prior: folder or hub id; None takes the bundled one.
        conditions: names of conditions that the prompt gives, each with the crystal's own value.
        constrain: score as constrained decoding draws, among the tokens that it allows; a crystal
            that it cannot write (two atoms at the same rounded place, say) has -inf and is left out
            of the mean.
        out: CSV to write, with a row for each crystal.
        batch_size: texts at a time, as memory allows.
        limit: the first so many crystals only.
        skip_invalid: leave bad rows of `file` and too large crystals out.
        device: `cpu`, `cuda` or `auto`.
        progress: show a bar on a terminal.

    Raises:
        UserError, PriorError: bad file, model, condition, or an `out` that exists.
    """
    table = check_absent(out)
    for name in conditions:
        if name not in BY_NAME:
            raise UserError(f"unknown condition {name!r}; known are {', '.join(BY_NAME)}")
    model = Prior.from_pretrained(resolve(prior, BUNDLED_PRIOR), device=pick_device(device))
    warn_of_untrained(model, conditions)
    grammar = model.grammar if constrain else None
    crystals = read(file, limit=limit, skip_invalid=skip_invalid, max_atoms=model.fmt.max_atoms)
    for crystal in crystals:
        known = known_conditions(crystal.structure, crystal.properties)
        if absent := [name for name in conditions if name not in known]:
            raise UserError(
                f"{file}: crystal {crystal.id} has no {absent[0]}; add it to the file, or leave "
                "the condition out"
            )
    rows = []
    for part in _chunks(crystals, "scoring", progress):
        scores = log_likelihood(
            model,
            [crystal.structure for crystal in part],
            conditions=conditions,
            properties=[crystal.properties for crystal in part],
            grammar=grammar,
            batch_size=batch_size,
        )
        for crystal, found in zip(part, scores, strict=True):
            rows.append(
                {
                    **_named(crystal),
                    "log_likelihood": found.log_likelihood,
                    "num_tokens": found.num_tokens,
                }
            )
    if table is not None:
        write_rows(rows, table)
    return Measured(rows, "log_likelihood")


def ipt(
    file: str | Path,
    *,
    prior: str | Path | None = None,
    num_translations: int = NUM_TRANSLATIONS,
    out: str | Path | None = None,
    seed: int = 0,
    batch_size: int = SCORE_BATCH_SIZE,
    limit: int | None = None,
    skip_invalid: bool = False,
    device: str = "auto",
    progress: bool = True,
) -> Measured:
    """Increase in perplexity under random translations, normalised by the mean perplexity; see
    `llm_prior.translation` for the definition and its source.

    Args:
        file: anything that `flowllm.crystals.io.read` reads.
        prior: folder or hub id; None takes the bundled one.
        num_translations: random translations of each crystal.
        out: CSV to write, with a row for each crystal.
        seed: crystal k draws its translations from (seed, k).
        batch_size, limit, skip_invalid, device, progress: as for `score`.

    Raises:
        UserError, PriorError: bad file or model, or an `out` that exists.
    """
    table = check_absent(out)
    model = Prior.from_pretrained(resolve(prior, BUNDLED_PRIOR), device=pick_device(device))
    warn_of_untrained(model)
    crystals = read(file, limit=limit, skip_invalid=skip_invalid, max_atoms=model.fmt.max_atoms)
    rows: list[dict[str, Any]] = []
    for part in _chunks(crystals, "shifting", progress, max(1, _CHUNK // num_translations)):
        found = increase_in_perplexity(
            model,
            [crystal.structure for crystal in part],
            num_translations=num_translations,
            seed=seed,
            first_index=len(rows),
            batch_size=batch_size,
        )
        rows += [{**_named(c), **vars(f)} for c, f in zip(part, found, strict=True)]
    if table is not None:
        write_rows(rows, table)
    return Measured(rows, "ipt")


def _named(crystal: Crystal) -> dict[str, Any]:
    structure = crystal.structure
    return {
        "id": crystal.id,
        "formula": structure.composition.reduced_formula,
        "num_atoms": len(structure),
    }


def _chunks(
    crystals: Sequence[Crystal], description: str, progress: bool, size: int = _CHUNK
) -> Iterator[Sequence[Crystal]]:
    with tqdm(
        total=len(crystals),
        desc=description,
        unit=" crystals",
        disable=None if progress else True,
    ) as bar:
        for start in range(0, len(crystals), size):
            part = crystals[start : start + size]
            yield part
            bar.update(len(part))
