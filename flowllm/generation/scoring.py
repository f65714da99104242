"""Log-likelihood of crystals under the prior, and its sensitivity to translations."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import llm_prior
from flowllm.crystals.crystal import ignore_missing_electronegativity
from flowllm.crystals.io import Crystal
from flowllm.errors import UserError
from flowllm.generation.prior_input import read_with_prior
from flowllm.system.options import Options, as_tuple, from_arguments, option
from flowllm.system.progress import progress_bar
from flowllm.system.tables import check_absent, write_rows
from llm_prior.prompts import BY_NAME, known_conditions

_CHUNK = 512  # crystals between two steps of the progress bar


def _parse_conditions(names: Any) -> tuple[str, ...]:
    """Return the names of conditions from a tuple, or from a string such as `formula,num_atoms`.

    Args:
        names: of conditions of the prior.

    Returns:
        The names, in the given order.

    Raises:
        UserError: if a condition is unknown.
    """
    words = names.split(",") if isinstance(names, str) else as_tuple(names)
    found = tuple(str(word).strip() for word in words)
    for name in found:
        if name not in BY_NAME:
            raise UserError(f"unknown condition {name!r}; known are {', '.join(BY_NAME)}")
    return found


@dataclass(frozen=True, kw_only=True)
class ScoringConfig(Options):
    """Settings of scoring."""

    conditions: tuple[str, ...] = option(
        (),
        "Conditions in the prompt, each with the value of the crystal, such as formula,num_atoms.",
        parse=_parse_conditions,
    )
    constrain: bool = option(False, "Normalise over the tokens that constrained decoding allows.")
    batch_size: int = option(32, "Texts in a batch, as memory allows.", minimum=1)


@dataclass(frozen=True, kw_only=True)
class TranslationConfig(Options):
    """Settings of the increase in perplexity under translation."""

    num_translations: int = option(20, "Random translations of each crystal.", minimum=1)
    seed: int = option(0, "Seed of the translations.", minimum=0)
    batch_size: int = option(32, "Texts in a batch, as memory allows.", minimum=1)


@dataclass(frozen=True)
class ScoreSummary:
    """A row for each crystal, and the mean of one column.

    Attributes:
        rows: plain values by column.
        column: the column to average, over its finite values.
    """

    rows: list[dict[str, Any]]
    column: str

    @property
    def values(self) -> NDArray[np.float64]:
        """The finite values of the column."""
        values = np.array([row[self.column] for row in self.rows], dtype=float)
        return values[np.isfinite(values)]

    @property
    def mean(self) -> float:
        """Mean over the crystals; NaN if no value is finite."""
        return float(self.values.mean()) if self.values.size else math.nan

    @property
    def standard_error(self) -> float:
        """Standard error of the mean; NaN for fewer than two values."""
        n = self.values.size
        return float(self.values.std(ddof=1) / math.sqrt(n)) if n > 1 else math.nan


@ignore_missing_electronegativity()
def score(
    file: str | Path,
    config: ScoringConfig | None = None,
    *,
    prior: str | Path | None = None,
    out: str | Path | None = None,
    limit: int | None = None,
    skip_invalid: bool = False,
    device: str = "auto",
    progress: bool = True,
    **options: Any,
) -> ScoreSummary:
    """Return the log-likelihood of the crystals of a file under the prior, in nats per crystal.

    A crystal is scored in its Niggli cell with the coordinates of the file. Translated as a whole
    it is another text with another value; `ipt` measures the difference.

    With `constrain` the probabilities are normalised over the tokens that constrained decoding
    allows. A crystal that it cannot write (such as two atoms at the same rounded position) has
    -inf and is left out of the mean.

    Args:
        file: any input of `flowllm.crystals.io.read`.
        config: the settings; None: the defaults.
        prior: folder or hub id; None takes the bundled prior.
        out: CSV file to write, with a row for each crystal.
        limit: read at most this many rows.
        skip_invalid: leave out bad rows and crystals with too many atoms.
        device: `cpu`, `cuda`, `cuda:NUMBER` or `auto`.
        progress: show a progress bar on a terminal.
        **options: fields of `ScoringConfig`; they replace those of `config`.

    Returns:
        `log_likelihood` (nats) and `num_tokens` of each crystal.

    Raises:
        UserError: if the file, an option or the model is bad, a crystal lacks the value of a
            condition, or `out` exists.
        PriorError: if the folder holds no prior, or a crystal cannot be scored.
    """
    config = from_arguments(ScoringConfig, options, base=config)
    table = check_absent(out)
    model, crystals = read_with_prior(
        file, prior=prior, limit=limit, skip_invalid=skip_invalid, device=device
    )
    llm_prior.warn_of_untrained(model, config.conditions)
    grammar = model.grammar if config.constrain else None
    for crystal in crystals:
        known = known_conditions(crystal.structure, crystal.properties)
        if absent := [name for name in config.conditions if name not in known]:
            problem = crystal.ignored.get(absent[0])
            why = f" ({problem})" if problem else ""
            raise UserError(
                f"{file}: crystal {crystal.id} has no {absent[0]}{why}; add it to the file, or "
                "leave the condition out"
            )
    rows = []
    for part in _chunks(crystals, "scoring", progress):
        scores = llm_prior.log_likelihood(
            model,
            [crystal.structure for crystal in part],
            conditions=config.conditions,
            properties=[crystal.properties for crystal in part],
            grammar=grammar,
            batch_size=config.batch_size,
        )
        for crystal, found in zip(part, scores, strict=True):
            rows.append(
                {
                    **_description(crystal),
                    "log_likelihood": found.log_likelihood,
                    "num_tokens": found.num_tokens,
                }
            )
    if table is not None:
        write_rows(rows, table)
    return ScoreSummary(rows, "log_likelihood")


@ignore_missing_electronegativity()
def ipt(
    file: str | Path,
    config: TranslationConfig | None = None,
    *,
    prior: str | Path | None = None,
    out: str | Path | None = None,
    limit: int | None = None,
    skip_invalid: bool = False,
    device: str = "auto",
    progress: bool = True,
    **options: Any,
) -> ScoreSummary:
    """Return the increase in perplexity under translation (IPT) of the crystals of a file.

    It is divided by the mean perplexity; `llm_prior.increase_in_perplexity` has the definition and
    its source.

    Args:
        file: any input of `flowllm.crystals.io.read`.
        config: the settings; None: the defaults.
        prior: folder or hub id; None takes the bundled prior.
        out: CSV file to write, with a row for each crystal.
        limit: read at most this many rows.
        skip_invalid: leave out bad rows and crystals with too many atoms.
        device: `cpu`, `cuda`, `cuda:NUMBER` or `auto`.
        progress: show a progress bar on a terminal.
        **options: fields of `TranslationConfig`; they replace those of `config`. Crystal k draws
            its translations from (seed, k).

    Returns:
        `ipt`, `mean_perplexity` and `min_perplexity` of each crystal.

    Raises:
        UserError: if the file, an option or the model is bad, or `out` exists.
        PriorError: if the folder holds no prior, or a crystal cannot be scored.
    """
    config = from_arguments(TranslationConfig, options, base=config)
    table = check_absent(out)
    model, crystals = read_with_prior(
        file, prior=prior, limit=limit, skip_invalid=skip_invalid, device=device
    )
    llm_prior.warn_of_untrained(model)
    rows: list[dict[str, Any]] = []
    size = max(1, _CHUNK // config.num_translations)
    for part in _chunks(crystals, "translating", progress, size):
        found = llm_prior.increase_in_perplexity(
            model,
            [crystal.structure for crystal in part],
            num_translations=config.num_translations,
            seed=config.seed,
            first_index=len(rows),
            batch_size=config.batch_size,
        )
        rows += [{**_description(c), **vars(f)} for c, f in zip(part, found, strict=True)]
    if table is not None:
        write_rows(rows, table)
    return ScoreSummary(rows, "ipt")


def _description(crystal: Crystal) -> dict[str, Any]:
    structure = crystal.structure
    return {
        "id": crystal.id,
        "formula": structure.composition.reduced_formula,
        "num_atoms": len(structure),
    }


def _chunks(
    crystals: Sequence[Crystal], description: str, progress: bool, size: int = _CHUNK
) -> Iterator[Sequence[Crystal]]:
    with progress_bar(
        total=len(crystals), description=description, unit="crystals", show=progress
    ) as bar:
        for start in range(0, len(crystals), size):
            part = crystals[start : start + size]
            yield part
            bar.update(len(part))
