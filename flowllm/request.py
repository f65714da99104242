"""What is asked of the models: conditions and settings of a sampling run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from flowllm.errors import UserError
from llm_prior import (
    ATTRIBUTES,
    DEFAULT_ATTEMPTS,
    DEFAULT_TEMPERATURE,
    DEFAULT_TOP_P,
    TextFormat,
    check_settings,
    composition_conditions,
    generation_prompt,
)
from llm_prior.prompts import render_elements


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What a sampling run asks for, apart from the models: plain JSON, part of its identity.

    Attributes:
        conditions: see `llm_prior.prompts.ATTRIBUTES`.
        refine: move the prior's crystals with the refiner.
        seed: decides every draw.
        temperature, top_p, max_attempts: see `llm_prior.propose`.
        constrain, exclude_elements: see `llm_prior.propose`.
        steps: integration steps of the refiner; None takes the model's own.

    Raises:
        UserError, PriorError: steps for a refiner that is not used, or impossible settings.
    """

    conditions: dict[str, str] = field(default_factory=dict)
    refine: bool = True
    seed: int = 0
    temperature: float = DEFAULT_TEMPERATURE
    top_p: float = DEFAULT_TOP_P
    max_attempts: int = DEFAULT_ATTEMPTS
    constrain: bool = True
    exclude_elements: list[str] = field(default_factory=list)
    steps: int | None = None

    def __post_init__(self) -> None:
        check_settings(self.temperature, self.top_p, self.max_attempts)
        if self.steps is not None and not self.refine:
            raise UserError("steps are the refiner's; ask for refine as well, or leave them out")


def merge_conditions(
    formula: str | None, composition: str | None, conditions: Mapping[str, Any]
) -> dict[str, Any]:
    """All conditions of a request in one dict, as the prompt writes them, without those that are
    None: requests that mean the same are the same.

    Raises:
        UserError: both formula and composition, or composition and num_atoms.
        PriorError: an unknown condition, or a value that is none.
    """
    merged = {name: value for name, value in conditions.items() if value is not None}
    if formula is not None and composition is not None:
        raise UserError("formula and composition exclude each other; give one of them")
    if formula is not None:
        merged["formula"] = formula
    if composition is not None:
        if "num_atoms" in merged:
            raise UserError("composition fixes the number of atoms; leave num_atoms out")
        merged |= composition_conditions(composition)
    generation_prompt(merged)  # refuses unknown names
    return {a.name: a.render(merged[a.name]) for a in ATTRIBUTES if a.name in merged}


def check_size(composition: str | None, conditions: Mapping[str, Any], fmt: TextFormat) -> None:
    """See that a composition is no larger than the crystals that the prior writes.

    Raises:
        UserError: it is; named as the user wrote it, which the conditions no longer tell.
    """
    if composition is not None and int(conditions["num_atoms"]) > fmt.max_atoms:
        raise UserError(
            f"composition {composition} has {conditions['num_atoms']} atoms, this model writes at "
            f"most {fmt.max_atoms}; give fewer atoms or another model"
        )


def symbols(elements: str | Sequence[str] | None) -> list[str]:
    """`Na,Cl` or a list of symbols as a sorted list without repeats; empty for None.

    Raises:
        PriorError: not elements.
    """
    return render_elements(elements).split(", ") if elements else []
