"""Numbers begin as neighbours of near numbers, coordinates on a circle."""

from __future__ import annotations

import torch

from llm_prior import Architecture, BaseModel, Prior, TextFormat

SMALL = Architecture(
    hidden_size=64, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2
)


def _cosine(prior: Prior, one: str, other: str) -> float:
    rows = prior.model.get_input_embeddings().weight.detach()[:, :32]  # the half that is not random
    vocabulary = prior.tokenizer.get_vocab()
    return float(torch.cosine_similarity(rows[vocabulary[one]], rows[vocabulary[other]], dim=0))


def test_near_numbers_begin_alike_and_coordinates_are_periodic() -> None:
    prior = Prior.build(BaseModel(architecture=SMALL), TextFormat(), seed=0)
    assert _cosine(prior, " 0.99", " 0.00") > 0.8
    assert _cosine(prior, " 0.99", " 0.00") > _cosine(prior, " 0.95", " 0.00")
    assert _cosine(prior, " 0.50", " 0.00") < 0.6
    assert _cosine(prior, " 5.6", " 5.7") > 0.7 > _cosine(prior, " 5.6", " 9.9")
    assert _cosine(prior, " 90", " 91") > 0.7 > _cosine(prior, " 90", " 120")


def test_the_scale_of_the_embeddings_stays() -> None:
    prior = Prior.build(BaseModel(architecture=SMALL), TextFormat(), seed=0)
    weight = prior.model.get_input_embeddings().weight.detach()
    rows = [prior.tokenizer.get_vocab()[f" 0.{tick:02d}"] for tick in range(100)]
    assert abs(float(weight[rows].std() / weight.std()) - 1) < 0.2
