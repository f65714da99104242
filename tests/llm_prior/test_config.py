"""Settings without torch, and the checks of them."""

from __future__ import annotations

import subprocess
import sys

import pytest

from llm_prior import PriorError, check_settings
from support import ROOT

LIGHT = """
import sys
import llm_prior
for name in (
    "ATTRIBUTES Architecture BaseModel DEFAULT_ATTEMPTS DEFAULT_TEMPERATURE DEFAULT_TOP_P Lora "
    "ParseError PriorError RejectReason TaskMix TextFormat check_conditions check_settings "
    "composition_conditions decode encode generation_prompt stated_conditions"
).split():
    getattr(llm_prior, name)
llm_prior.check_conditions({"formula": "NaCl", "spacegroup": "Fm-3m"}, llm_prior.TextFormat())
heavy = {"torch", "transformers", "tokenizers", "scipy", "pandas"} & sys.modules.keys()
assert not heavy, heavy
"""


def test_settings_prompts_and_checks_import_nothing_heavy() -> None:
    subprocess.run([sys.executable, "-c", LIGHT], check=True, cwd=ROOT)


def test_every_public_name_can_be_imported() -> None:
    import llm_prior

    for name in llm_prior.__all__:
        assert getattr(llm_prior, name) is not None
    with pytest.raises(AttributeError, match="has no attribute 'colour'"):
        llm_prior.colour  # noqa: B018


@pytest.mark.parametrize("temperature", [0, 1e-6, 1.0, 100.0])
def test_possible_settings_pass(temperature: float) -> None:
    check_settings(temperature, 1.0, 1)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ((-0.1, 0.9, 1), "temperature -0.1 is no number from 0"),
        ((float("nan"), 0.9, 1), "temperature nan is no number from 0"),
        ((1e-40, 0.9, 1), "temperature 1e-40 is too small"),
        ((1.0, 0.0, 1), "top_p 0.0 is not in"),
        ((1.0, 0.9, 0), "max_attempts 0 must be at least 1"),
    ],
)
def test_impossible_settings_are_refused(settings: tuple[float, float, int], message: str) -> None:
    with pytest.raises(PriorError, match=message):
        check_settings(*settings)
