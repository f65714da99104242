"""Checks that the models can do what a request needs."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from flowllm.errors import UserError
from flowllm.generation.engines import engine_of
from llm_prior import check_conditions, check_unconditional, stated_conditions
from llm_prior.layouts import layout_of
from llm_prior.text import SYMBOLS

if TYPE_CHECKING:
    from flowllm.generation.config import SamplingConfig
    from flowllm.generation.selection import RankingPotential
    from llm_prior import Prior, TextFormat
    from rfm import Refiner


def check_request(config: SamplingConfig, fmt: TextFormat, info: Mapping[str, Any]) -> None:
    """Check that a prior's texts can meet the conditions of a request; needs no weights.

    Args:
        config: the request.
        fmt: the text format of the prior.
        info: what is recorded of its training (`Prior.info`).

    Raises:
        UserError: if the composition has more atoms than the prior writes, or the prompt has no
            condition that could be guided.
        PriorError: if no crystal that the prior writes can meet the conditions, or the prior cannot
            be guided.
    """
    conditions = config.conditions
    if config.composition is not None and int(conditions["num_atoms"]) > fmt.max_atoms:
        raise UserError(
            f"composition {config.composition} has {conditions['num_atoms']} atoms, this model "
            f"writes at most {fmt.max_atoms} in the primitive cell; give fewer atoms or another "
            "model"
        )
    check_conditions(conditions, fmt, exclude_elements=config.exclude_elements)
    if config.guidance != 1:
        check_unconditional(info)
        if not _prompted(config, fmt):
            raise UserError(
                f"guidance {config.guidance:g} weighs the conditions of the prompt, which has no "
                f"ranges and sets ({', '.join(config.given_conditions)}); give single values, or "
                "leave guidance out"
            )


def _prompted(config: SamplingConfig, fmt: TextFormat) -> set[str]:
    """Return the names of the conditions in the prompt of a first candidate."""
    rng = np.random.default_rng(config.seed)
    settled = layout_of(fmt).settle(config.conditions, rng, config.exclude_elements)
    return set(stated_conditions(settled))


def check_models(
    config: SamplingConfig,
    prior: Prior | None,
    refiner: Refiner | None,
    potential: RankingPotential | None = None,
) -> None:
    """Check that the models can do what is requested, before anything is drawn or written.

    Args:
        config: the request.
        prior: writes the crystals; not needed with `config.like`.
        refiner: refines them; needed if `config.refine`.
        potential: ranks them; needed if `config.rank` is `energy`.

    Raises:
        UserError: if a model is missing, does not know an element, or is of another kind.
        PriorError: if the prior cannot meet the conditions.
        RefinerError: if the refiner cannot integrate with these settings.
    """
    conditions = config.conditions
    if config.like is None:
        if prior is None:
            raise UserError("sampling needs a prior; load one with FlowLLM.from_pretrained")
        check_request(config, prior.fmt, prior.info)
    if config.refine:
        if refiner is None:
            raise UserError("refine needs a refiner; load one, or sample with refine=False")
        if refiner.config.base.kind == "file" and config.like is None:
            raise UserError(
                "the refiner was trained on crystals of a file, not on a prior's samples; use "
                "`flowllm refine FILE`, or take another refiner"
            )
        refiner.config.integration.but(**config.integration)  # raises for impossible settings
        unknown_elements(refiner, conditions)
    if potential is not None and potential.elements is not None:
        for symbol in _elements_in(conditions):
            if symbol not in potential.elements:
                raise UserError(
                    f"the potential {potential.name} has not learnt {symbol}; rank by the "
                    "prior, or with another potential"
                )
    if config.like is not None:
        return
    from llm_prior import warn_of_untrained  # imports torch

    assert prior is not None
    loaded = engine_of(prior)
    if loaded != config.engine:
        raise UserError(
            f"the prior was loaded for engine {loaded}, and the request names engine "
            f"{config.engine}; give the same one to FlowLLM.from_pretrained and to the request"
        )
    if config.guidance == 0:
        warn_of_untrained(prior)
    else:
        names = config.prompt_conditions | _prompted(config, prior.fmt)
        warn_of_untrained(prior, sorted(names))


def check_predicts(prior: Prior | None) -> None:
    """Check that predictions can use a prior.

    Args:
        prior: proposes candidates; None for none.

    Raises:
        UserError: if it was loaded for another engine than `plain`.
    """
    if prior is not None and (engine := engine_of(prior)) != "plain":
        raise UserError(
            f"predict scores with the prior, which engine {engine} does not; load the models with "
            "engine plain"
        )


def unknown_elements(refiner: Refiner, conditions: Mapping[str, Any]) -> list[str]:
    """Return the symbols of the elements that the refiner does not know.

    Args:
        refiner: the model.
        conditions: the conditions of a request by name.

    Raises:
        UserError: if the conditions name one of them.
    """
    heaviest = refiner.config.network.max_atomic_number
    unknown = SYMBOLS[heaviest:]
    for symbol in _elements_in(conditions):
        if symbol in unknown:
            raise UserError(
                f"the refiner does not know {symbol}, only elements up to {SYMBOLS[heaviest - 1]}; "
                "leave refine out (--no-refine), or take another refiner"
            )
    return list(unknown)


def _elements_in(conditions: Mapping[str, Any]) -> list[str]:
    return re.findall(
        "[A-Z][a-z]?", f"{conditions.get('formula', '')} {conditions.get('elements', '')}"
    )
