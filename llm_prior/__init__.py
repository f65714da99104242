"""The text prior of FlowLLM: crystals as text, prompts, and the language model that speaks it."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llm_prior.dataset import Collator, CrystalTextDataset, TaskMix
    from llm_prior.errors import PriorError
    from llm_prior.generate import (
        DEFAULT_ATTEMPTS,
        DEFAULT_TEMPERATURE,
        DEFAULT_TOP_P,
        Proposal,
        check_conditions,
        check_settings,
        composition_conditions,
        propose,
        warn_of_untrained,
    )
    from llm_prior.infill import element_probabilities
    from llm_prior.model import Architecture, BaseModel, Lora, Prior
    from llm_prior.prompts import ATTRIBUTES, generation_prompt
    from llm_prior.scoring import Score, log_likelihood
    from llm_prior.swaps import allowed_swaps
    from llm_prior.symmetry import increase_in_perplexity
    from llm_prior.text import ParseError, RejectReason, TextFormat, decode, encode

__all__ = [
    "ATTRIBUTES",
    "Architecture",
    "BaseModel",
    "Collator",
    "CrystalTextDataset",
    "DEFAULT_ATTEMPTS",
    "DEFAULT_TEMPERATURE",
    "DEFAULT_TOP_P",
    "Lora",
    "ParseError",
    "Prior",
    "PriorError",
    "Proposal",
    "RejectReason",
    "Score",
    "TaskMix",
    "TextFormat",
    "allowed_swaps",
    "check_conditions",
    "check_settings",
    "composition_conditions",
    "decode",
    "element_probabilities",
    "encode",
    "generation_prompt",
    "increase_in_perplexity",
    "log_likelihood",
    "propose",
    "warn_of_untrained",
]

_NAMES = {
    "dataset": ("Collator", "CrystalTextDataset", "TaskMix"),
    "errors": ("PriorError",),
    "generate": (
        *("DEFAULT_ATTEMPTS", "DEFAULT_TEMPERATURE", "DEFAULT_TOP_P", "Proposal"),
        *("check_conditions", "check_settings", "composition_conditions", "propose"),
        "warn_of_untrained",
    ),
    "infill": ("element_probabilities",),
    "model": ("Architecture", "BaseModel", "Lora", "Prior"),
    "prompts": ("ATTRIBUTES", "generation_prompt"),
    "scoring": ("Score", "log_likelihood"),
    "swaps": ("allowed_swaps",),
    "symmetry": ("increase_in_perplexity",),
    "text": ("ParseError", "RejectReason", "TextFormat", "decode", "encode"),
}
_HOME = {name: f"llm_prior.{module}" for module, names in _NAMES.items() for name in names}


def __getattr__(name: str) -> Any:
    """Import the public names when they are first used: prompts need no language model."""
    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name]), name)
    raise AttributeError(f"module 'llm_prior' has no attribute {name!r}")
