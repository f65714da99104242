"""Commands that make crystals: sample, refine, mutate."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from flowllm.cli.options import (
    CIF,
    COUNT,
    DEVICE,
    EXECUTOR,
    FILE,
    LIMIT,
    OUT,
    PART,
    PRIOR,
    REFINER,
    SKIP,
    WORKERS,
    Command,
    given,
    report,
)

_CONFIG = "flowllm.generation.config"


@click.command("sample", cls=Command, config=f"{_CONFIG}:SamplingConfig", conditions=True)
@COUNT
@PRIOR
@REFINER
@OUT
@CIF
@WORKERS
@EXECUTOR
@PART
@DEVICE
def sample_command(n: int, out: Path, **arguments: Any) -> None:
    """Generate crystals into a run folder.

    The same command goes on with a killed run.
    """
    from flowllm.generation.sampling_run import run_sampling

    report(run_sampling(n, out=out, **given(arguments)), n)


@click.command("refine", cls=Command, config=f"{_CONFIG}:RefinementConfig")
@FILE
@REFINER
@OUT
@CIF
@LIMIT
@SKIP
@WORKERS
@EXECUTOR
@PART
@DEVICE
def refine_command(file: Path, out: Path, **arguments: Any) -> None:
    """Refine the crystals of FILE.

    Meant for rough crystals such as the samples of a prior. A relaxed crystal usually comes out
    worse.
    """
    from flowllm.generation.sampling_run import run_refinement

    outcome = run_refinement(file, out=out, **given(arguments))
    report(outcome, len(outcome.crystals) + outcome.failures.total())


@click.command("mutate", cls=Command, config="flowllm.generation.mutation:MutationConfig")
@FILE
@COUNT
@PRIOR
@OUT
@CIF
@SKIP
@WORKERS
@EXECUTOR
@PART
@DEVICE
def mutate_command(file: Path, n: int, out: Path, **arguments: Any) -> None:
    """Propose crystals by swapping an element of those in FILE."""
    from flowllm.generation.mutation import mutate

    report(mutate(file, n, out=out, **given(arguments)), n)
