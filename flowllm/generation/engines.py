"""Engines: what writes the texts of a prior.

`plain` is `llm_prior.decoding` in this process. `vllm` is a process of another environment, for
large priors; see `llm_prior.serving`.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from llm_prior import Prior

Engine = Literal["plain", "vllm"]
ENGINES: tuple[Engine, ...] = ("plain", "vllm")


def check_engine(engine: Engine, folder: Path) -> None:
    """Check that an engine can run a prior, without torch and before anything is loaded.

    Args:
        engine: its name.
        folder: of the prior.

    Raises:
        PriorError: if the environment of the engine is missing or incomplete, or cannot load such a
            prior.
    """
    if engine == "vllm":
        from llm_prior.serving.environment import check_served

        check_served(folder)


def load_prior(folder: Path, device: str, engine: Engine = "plain") -> Prior:
    """Load a prior, or describe it to the engine that does.

    Args:
        folder: of the prior.
        device: `cpu`, `cuda` or `cuda:NUMBER`.
        engine: its name.

    Raises:
        PriorError: if the prior is damaged, or the engine cannot run it.
    """
    if engine == "vllm":
        from llm_prior.serving.client import served_prior

        return served_prior(folder, device=device)
    from llm_prior import Prior

    return Prior.from_pretrained(folder, device=device)


def engine_of(prior: Prior) -> Engine:
    """Return the name of the engine that a prior was loaded for.

    Args:
        prior: the model.
    """
    from llm_prior.serving.client import ServedPrior

    return "vllm" if isinstance(prior, ServedPrior) else "plain"
