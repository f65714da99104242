"""Evaluation of generated crystals: arguments are checked here, before anything heavy loads."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flowllm.energy.calculators import check_installed
from flowllm.evaluation.config import IDENTITY, EvaluationConfig
from flowllm.runs.identity import check_folder
from flowllm.runs.parts import check_placement
from flowllm.system.options import as_tuple, from_arguments

if TYPE_CHECKING:
    from flowllm.evaluation.results import Evaluation


def evaluate(
    samples: str | Path | Sequence[str | Path],
    *,
    out: str | Path,
    config: EvaluationConfig | None = None,
    workers: int = 1,
    executor: str = "local",
    progress: bool = True,
    **options: Any,
) -> Evaluation:
    """Measure sets of generated crystals: `metrics.json`, `structures.parquet`, `report.html`.

    With a potential every crystal is relaxed as well, in one run folder per set under `relaxed/`;
    `relaxed.parquet` is `structures.parquet` with the relaxed crystals. A killed call goes on when
    it is repeated. A finished evaluation can be extended: the same call with a potential that it
    lacked, or with another hull or other references, writes its files anew and keeps the relaxed
    crystals.

    The docstrings in `flowllm.metrics` give every definition with its source. Features are cached
    on disk: those of MP-20's test set take some minutes on one core, once.

        evaluate("run", out="evaluation", train="train.csv", reference="test.csv")

    Args:
        samples: one or more sets of any generator, to be compared: a run folder of `flowllm`
            (failed crystals included), a folder or `.zip` of CIFs, CSV, parquet, extxyz, JSON.
        out: folder to write; the same call again writes the same.
        config: options; None takes the defaults.
        workers: number of processes, and of batches that are relaxed at a time.
        executor: where the crystals are relaxed: `local`, `slurm` or `MODULE:FACTORY`; see
            `flowllm.system.pools.check_executor`.
        progress: show bars on a terminal.
        **options: fields of `EvaluationConfig`; they replace those of `config`.

    Returns:
        The folder and the result of each set.

    Raises:
        UserError: if an option is bad, a file does not exist or cannot be read, a package of the
            extra `[eval]` is missing, the potential is wrong or does not fit the hull, or `out`
            holds something else.
    """
    config = from_arguments(EvaluationConfig, options, base=config)
    paths = [Path(path) for path in as_tuple(samples)]
    config.check_files(paths)
    check_folder(out, IDENTITY)
    check_placement(workers, executor, None)
    if config.potential is not None:
        check_installed(config.potential)
    from flowllm.evaluation.pipeline import run_evaluation

    return run_evaluation(
        paths, config, Path(out), workers=workers, executor=executor, progress=progress
    )
