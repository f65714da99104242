"""Whether the models can do what is asked of them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from flowllm.errors import UserError
from flowllm.generation.config import Settings
from flowllm.generation.selection import RankingPotential
from llm_prior import Prior, check_conditions, warn_of_untrained
from llm_prior.text import SYMBOLS
from rfm import Refiner


def check_models(
    settings: Settings,
    composition: str | None,
    prior: Prior | None,
    refiner: Refiner | None,
    potential: RankingPotential | None = None,
) -> None:
    """See that the models can do what is asked, before anything is drawn or written.

    Args:
        settings: what is asked.
        composition: as the user wrote it, which the conditions no longer tell.
        prior: writes the crystals.
        refiner: moves them, where that is asked.
        potential: ranks them, where that is asked.

    Raises:
        UserError, PriorError, RefinerError: a model is missing, or cannot do it.
    """
    if prior is None:
        raise UserError("sampling needs a prior; load one with FlowLLM.from_pretrained")
    if composition is not None and int(settings.conditions["num_atoms"]) > prior.fmt.max_atoms:
        raise UserError(
            f"composition {composition} has {settings.conditions['num_atoms']} atoms, this model "
            f"writes at most {prior.fmt.max_atoms}; give fewer atoms or another model"
        )
    check_conditions(settings.conditions, prior.fmt, exclude_elements=settings.exclude_elements)
    if settings.refine:
        if refiner is None:
            raise UserError("refine needs a refiner; load one, or sample with refine=False")
        if refiner.config.base.kind == "file":
            raise UserError(
                "the refiner was trained on crystals of a file, not on a prior's samples; use "
                "`flowllm refine FILE`, or take another refiner"
            )
        refiner.config.integration.but(**settings.integration)  # refuses what cannot be
        unknown_elements(refiner, settings.conditions)
    if potential is not None and potential.elements is not None:
        for symbol in asked_elements(settings.conditions):
            if symbol not in potential.elements:
                raise UserError(
                    f"the potential {potential.name} has not learnt {symbol}; rank by the "
                    "prior, or with another potential"
                )
    warn_of_untrained(prior, settings.asked)


def unknown_elements(refiner: Refiner, conditions: Mapping[str, Any]) -> list[str]:
    """The elements that the refiner does not know.

    Raises:
        UserError: the conditions ask for one of them.
    """
    heaviest = refiner.config.network.max_atomic_number
    unknown = SYMBOLS[heaviest:]
    for symbol in asked_elements(conditions):
        if symbol in unknown:
            raise UserError(
                f"the refiner does not know {symbol}, only elements up to {SYMBOLS[heaviest - 1]}; "
                "leave refine out, or take another refiner"
            )
    return list(unknown)


def asked_elements(conditions: Mapping[str, Any]) -> list[str]:
    """The elements that the conditions name."""
    return re.findall(
        "[A-Z][a-z]?", f"{conditions.get('formula', '')} {conditions.get('elements', '')}"
    )
