"""The text prior of FlowLLM: crystals as text, prompts, and the language model that speaks it."""

from llm_prior.dataset import Collator, CrystalTextDataset, TaskMix
from llm_prior.errors import PriorError
from llm_prior.generate import (
    DEFAULT_ATTEMPTS,
    DEFAULT_TEMPERATURE,
    DEFAULT_TOP_P,
    Proposal,
    check_conditions,
    composition_conditions,
    propose,
)
from llm_prior.model import Architecture, BaseModel, Lora, Prior
from llm_prior.prompts import ATTRIBUTES, generation_prompt
from llm_prior.text import ParseError, RejectReason, TextFormat, decode, encode

__all__ = [
    "ATTRIBUTES",
    "Architecture",
    "BaseModel",
    "DEFAULT_ATTEMPTS",
    "DEFAULT_TEMPERATURE",
    "DEFAULT_TOP_P",
    "Collator",
    "CrystalTextDataset",
    "Lora",
    "ParseError",
    "Prior",
    "PriorError",
    "Proposal",
    "RejectReason",
    "TaskMix",
    "TextFormat",
    "check_conditions",
    "composition_conditions",
    "decode",
    "encode",
    "generation_prompt",
    "propose",
]
