"""Training of a prior in the layout `wyckoff`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from training_support import ARCHITECTURE

from flowllm.errors import FlowLLMError
from flowllm.training.prior import train_prior
from flowllm.training.recipes import PriorRecipe, load_recipe, named_recipes
from llm_prior import Prior, propose
from support import MP20_SAMPLE

SHORT = (
    *ARCHITECTURE,
    *("training.max_steps=4", "training.batch_size=8", "training.warmup_steps=1"),
    *("training.save_steps=2", "training.eval_steps=4", "training.logging_steps=2"),
)


PRIORS = [name for name in named_recipes() if name.startswith("llm/") and name != "llm/tune"]


@pytest.mark.parametrize("name", PRIORS)
def test_any_recipe_can_be_switched(name: str) -> None:
    assert load_recipe(PriorRecipe, name, ["text.layout=wyckoff"]).text.layout == "wyckoff"
    expected = "wyckoff" if name == "llm/wyckoff" else "sites"
    assert load_recipe(PriorRecipe, name).text.layout == expected


def test_a_run_trains_resumes_and_keeps_its_layout(tmp_path: Path) -> None:
    out = tmp_path / "run"
    common = {"data": [MP20_SAMPLE], "validation": MP20_SAMPLE, "out": out, "device": "cpu"}
    settings = (*SHORT, "text.layout=wyckoff", "tasks.augmented=0.5")
    model = train_prior("llm/small", overrides=settings, **common)
    recorded = json.loads((model / "prior.json").read_text())
    assert recorded["text"]["layout"] == "wyckoff"
    assert "spacegroup" in recorded["info"]["conditions"]
    assert "layout: wyckoff" in (model / "README.md").read_text()

    prior = Prior.from_pretrained(model)
    (found,) = propose(prior, [{"formula": "NaCl", "num_atoms": 2, "spacegroup": 225}], seed=0)
    assert found.text.startswith("225\nNa ")

    assert train_prior("llm/small", overrides=settings, resume=True, **common) == model
    with pytest.raises(FlowLLMError, match="holds another run .*text.layout") as caught:
        train_prior("llm/small", overrides=SHORT, resume=True, **common)
    assert len(str(caught.value).splitlines()) == 1
    # A model of the other layout is no base to go on from.
    continued = [f"model={{name: {model}}}", *SHORT[len(ARCHITECTURE) :]]
    with pytest.raises(FlowLLMError, match="was trained with text.layout=wyckoff, the recipe has"):
        train_prior("llm/small", overrides=continued, **{**common, "out": tmp_path / "other"})
