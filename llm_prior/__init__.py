"""The text prior of FlowLLM: crystals as text, prompts, and the language model that speaks it."""

from llm_prior.dataset import Collator, CrystalTextDataset, TaskMix
from llm_prior.errors import PriorError
from llm_prior.model import Architecture, BaseModel, Lora, Prior
from llm_prior.prompts import ATTRIBUTES, generation_prompt
from llm_prior.text import ParseError, RejectReason, TextFormat, decode, encode

__all__ = [
    "ATTRIBUTES",
    "Architecture",
    "BaseModel",
    "Collator",
    "CrystalTextDataset",
    "Lora",
    "ParseError",
    "Prior",
    "PriorError",
    "RejectReason",
    "TaskMix",
    "TextFormat",
    "decode",
    "encode",
    "generation_prompt",
]
