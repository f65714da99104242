"""The text prior of FlowLLM: a language model that proposes crystals as text.

A crystal passes through the modules in this order:

- `prompts` turns conditions into a prompt; its table `ATTRIBUTES` declares every condition,
  `spacegroups` reads the symbols of space groups;
- `text` and `wyckoff` write and read the crystal in two layouts, which the other modules use
  through `layouts`; `tokenizer` makes one token of each number and element;
- `dataset` draws training examples, `model` holds the language model and its tokenizer, `loading`
  reads pretrained weights, `config` has the settings of all of them, `settings` reads those of a
  saved prior; `llama` and `stored_tokenizer` run small models without transformers;
- `composition`, `fields`, `tries` and `grammar` say which tokens may follow, so that only crystals
  that meet the conditions are written;
- `decoding` with its `cache` writes many texts at a time, `drawing` draws their tokens, and
  `proposals` accepts or rejects them as crystals;
- `serving` lets vLLM write them in a process of another environment;
- `preference` tunes a trained model on pairs of texts, of which one is preferred;
- `scoring`, `infilling` and `translation` compute likelihoods of given crystals, of an element in
  a masked crystal, and under translations.

Names are imported when they are first used. Settings, prompts, the text format and the checks of
conditions need neither torch nor transformers.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llm_prior.composition import check_conditions, composition_conditions
    from llm_prior.config import (
        DEFAULT_ATTEMPTS,
        DEFAULT_GUIDANCE,
        DEFAULT_TEMPERATURE,
        DEFAULT_TOP_P,
        Architecture,
        BaseModel,
        Lora,
        TaskMix,
        check_settings,
        check_unconditional,
    )
    from llm_prior.dataset import Collator, CrystalTextDataset
    from llm_prior.errors import PriorError
    from llm_prior.infilling import allowed_swaps, element_probabilities
    from llm_prior.layouts import decode, encode
    from llm_prior.model import Prior, warn_of_untrained
    from llm_prior.preference import (
        Preference,
        PreferenceCollator,
        PreferenceDataset,
        draw_texts,
        preference_objective,
    )
    from llm_prior.prompts import ATTRIBUTES, generation_prompt, stated_conditions
    from llm_prior.proposals import Proposal, propose
    from llm_prior.scoring import Score, log_likelihood, score_texts
    from llm_prior.text import ParseError, RejectReason, TextFormat
    from llm_prior.translation import increase_in_perplexity

__all__ = [
    "ATTRIBUTES",
    "Architecture",
    "BaseModel",
    "Collator",
    "CrystalTextDataset",
    "DEFAULT_ATTEMPTS",
    "DEFAULT_GUIDANCE",
    "DEFAULT_TEMPERATURE",
    "DEFAULT_TOP_P",
    "Lora",
    "ParseError",
    "Preference",
    "PreferenceCollator",
    "PreferenceDataset",
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
    "check_unconditional",
    "composition_conditions",
    "decode",
    "draw_texts",
    "element_probabilities",
    "encode",
    "generation_prompt",
    "increase_in_perplexity",
    "log_likelihood",
    "preference_objective",
    "propose",
    "score_texts",
    "stated_conditions",
    "warn_of_untrained",
]

_NAMES = {
    "composition": ("check_conditions", "composition_conditions"),
    "config": (
        *("DEFAULT_ATTEMPTS", "DEFAULT_GUIDANCE", "DEFAULT_TEMPERATURE", "DEFAULT_TOP_P"),
        *("Architecture", "BaseModel", "Lora", "TaskMix"),
        *("check_settings", "check_unconditional"),
    ),
    "dataset": ("Collator", "CrystalTextDataset"),
    "errors": ("PriorError",),
    "infilling": ("allowed_swaps", "element_probabilities"),
    "layouts": ("decode", "encode"),
    "model": ("Prior", "warn_of_untrained"),
    "preference": (
        *("Preference", "PreferenceCollator", "PreferenceDataset"),
        *("draw_texts", "preference_objective"),
    ),
    "prompts": ("ATTRIBUTES", "generation_prompt", "stated_conditions"),
    "proposals": ("Proposal", "propose"),
    "scoring": ("Score", "log_likelihood", "score_texts"),
    "text": ("ParseError", "RejectReason", "TextFormat"),
    "translation": ("increase_in_perplexity",),
}
_HOME = {name: f"llm_prior.{module}" for module, names in _NAMES.items() for name in names}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used."""
    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name]), name)
    raise AttributeError(f"module 'llm_prior' has no attribute {name!r}")
