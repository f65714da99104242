"""What is asked of the models: conditions and settings of a sampling run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from flowllm.energy.calculators import POTENTIAL
from flowllm.errors import UserError
from llm_prior import (
    ATTRIBUTES,
    DEFAULT_ATTEMPTS,
    DEFAULT_TEMPERATURE,
    DEFAULT_TOP_P,
    check_settings,
    composition_conditions,
    generation_prompt,
)
from llm_prior.prompts import render_elements

Rank = Literal["prior", "flow", "energy"]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What a sampling run asks for, apart from the models: plain JSON, part of its identity.

    Attributes:
        conditions: see `llm_prior.prompts.ATTRIBUTES`.
        refine: move the prior's crystals with the refiner.
        seed: decides every draw.
        temperature, top_p, max_attempts: see `llm_prior.propose`.
        constrain, exclude_elements: see `llm_prior.propose`.
        novel_to: name and hash of each file whose formulas are refused.
        best_of, rank: candidates for each crystal and what chooses among them; see
            `flowllm.generation.selection`.
        potential: whose energies rank; None for the default one, or where none is needed.
        steps, method, position_slope, cell_slope: of the refiner's integration, see
            `rfm.integrate`; None takes the model's own.
        trajectory, score: what a refined crystal keeps, see `rfm.refine`.

    Raises:
        UserError, PriorError: settings of what is not used, or impossible ones.
    """

    conditions: dict[str, str] = field(default_factory=dict)
    refine: bool = True
    seed: int = 0
    temperature: float = DEFAULT_TEMPERATURE
    top_p: float = DEFAULT_TOP_P
    max_attempts: int = DEFAULT_ATTEMPTS
    constrain: bool = True
    exclude_elements: list[str] = field(default_factory=list)
    novel_to: list[dict[str, str]] = field(default_factory=list)
    best_of: int = 1
    rank: Rank = "prior"
    potential: str | None = None
    steps: int | None = None
    method: str | None = None
    position_slope: float | None = None
    cell_slope: float | None = None
    trajectory: bool = False
    score: bool = False

    def __post_init__(self) -> None:
        check_settings(self.temperature, self.top_p, self.max_attempts)
        given = [name for name, value in self.integration.items() if value is not None]
        given += [name for name in ("trajectory", "score") if getattr(self, name)]
        if given and not self.refine:
            raise UserError(
                f"{given[0]} is a setting of the refiner; ask for refine as well, or leave it out"
            )
        if self.best_of < 1:
            raise UserError(f"best_of {self.best_of} must be at least 1")
        if self.best_of > 1 and self.temperature == 0:
            raise UserError(
                f"best_of {self.best_of} at temperature 0 draws one crystal {self.best_of} times; "
                "give a temperature above 0"
            )
        if self.rank not in get_args(Rank):
            raise UserError(f"rank {self.rank!r} is none of {', '.join(get_args(Rank))}")
        if self.rank == "flow" and not self.refine:
            raise UserError("rank flow ranks refined crystals; ask for refine as well")
        if self.rank != "prior" and self.best_of == 1:
            raise UserError(f"rank {self.rank} chooses among candidates; give best_of 2 or more")
        if self.potential is not None and self.rank != "energy":
            raise UserError("potential is for rank energy; ask for that, or leave it out")

    @property
    def integration(self) -> dict[str, Any]:
        """What `rfm.refine` takes of the integration."""
        names = ("steps", "method", "position_slope", "cell_slope")
        return {name: getattr(self, name) for name in names}

    @property
    def ranking_potential(self) -> str | None:
        """The potential that ranks the candidates, or None where energies do not."""
        if self.rank != "energy":
            return None
        return POTENTIAL if self.potential is None else self.potential

    @property
    def asked(self) -> set[str]:
        """The conditions that prompts name."""
        return {*self.conditions, *(("formula", "num_atoms") if self.best_of > 1 else ())}


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


def symbols(elements: str | Sequence[str] | None) -> list[str]:
    """`Na,Cl` or a list of symbols as a sorted list without repeats; empty for None.

    Raises:
        PriorError: not elements.
    """
    return render_elements(elements).split(", ") if elements else []
