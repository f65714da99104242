"""The decoder for sampling against transformers, and when it is used."""

from __future__ import annotations

from collections import deque
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from flowllm.hub.locate import BUNDLED_PRIOR
from llm_prior import Prior
from llm_prior.cache import SlotCache
from llm_prior.decoding import Answer, decode_answers
from llm_prior.llama import LlamaDecoder, LlamaSizes, decoder_of, stored_decoder
from llm_prior.stored_tokenizer import stored_tokenizer


def model(heads_of_keys: int = 2, tied: bool = True, **settings: object) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=50,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=heads_of_keys,
        initializer_range=0.3,
        tie_word_embeddings=tied,
        **settings,
    )
    return LlamaForCausalLM(config).eval()


@pytest.mark.parametrize(("heads", "tied"), [(4, True), (2, True), (1, False)])
def test_logits_are_those_of_transformers(heads: int, tied: bool) -> None:
    theirs = model(heads, tied)
    ours = decoder_of(theirs)
    assert isinstance(ours, LlamaDecoder)
    ids = torch.randint(50, (3, 9))
    places = torch.arange(9).expand(3, 9)
    mask = torch.full((9, 9), torch.finfo(torch.float32).min).triu(1).expand(3, 1, 9, 9)
    last = torch.tensor([[8], [3], [0]])
    for keep in (1, last):
        cache = SlotCache(2, 3, 16)
        cache.look_at(places, 9)
        with torch.inference_mode():
            found = ours(
                input_ids=ids,
                cache=cache,
                attention_mask=mask,
                position_ids=places,
                logits_to_keep=keep,
            ).logits[:, 0]
            every = theirs(ids).logits
        at = last[:, 0] if keep is last else torch.tensor([8, 8, 8])
        assert torch.allclose(found, every[torch.arange(3), at], atol=1e-5)


def test_answers_are_those_of_transformers(monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = model()

    def write(network: torch.nn.Module) -> list[list[int]]:
        rng = np.random.default_rng(1)
        answers = [Answer(prompt=(1, *range(2, 3 + k)), uniforms=rng.random(20)) for k in range(7)]
        options = {"eos_token_id": 2, "slots": 3, "temperature": 1.0, "top_p": 0.9}
        list(decode_answers(network, deque(answers), **options))
        return [answer.tokens for answer in answers]

    assert write(decoder_of(theirs)) == write(theirs)


def test_weights_are_those_of_the_moment() -> None:
    network = model()
    before = decoder_of(network).head[0, 0].item()
    with torch.no_grad():
        network.model.embed_tokens.weight += 1
    assert decoder_of(network).head[0, 0].item() == pytest.approx(before + 1)


@pytest.mark.parametrize(
    "settings",
    [
        {"attention_bias": True},
        {"mlp_bias": True},
        {"hidden_act": "gelu"},
        {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}},
    ],
)
def test_other_models_are_left_to_transformers(settings: dict[str, object]) -> None:
    network = model(**settings)
    assert decoder_of(network) is network
    assert decoder_of(model().bfloat16()).__class__ is LlamaForCausalLM
    assert decoder_of(torch.nn.Identity()).__class__ is torch.nn.Identity


def test_sizes_that_are_missing_are_left_to_transformers() -> None:
    config = model().config.to_dict()
    assert LlamaSizes.of(config) is not None
    assert LlamaSizes.of({**config, "head_dim": None}) is None
    assert LlamaSizes.of({**config, "hidden_size": 4096}) is None
    assert LlamaSizes.of({**config, "quantization_config": {"bits": 4}}) is None


def test_the_stored_decoder_is_the_stored_model(tmp_path: Path) -> None:
    network = model(tied=False)
    network.save_pretrained(tmp_path)
    found = stored_decoder(tmp_path)
    assert found is not None
    assert torch.equal(found.head, network.lm_head.weight)
    assert found.num_parameters == sum(w.numel() for w in network.parameters())
    (tmp_path / "model.safetensors").write_bytes(b"")
    assert stored_decoder(tmp_path) is None  # transformers says what is wrong
    assert stored_decoder(tmp_path / "nowhere") is None


def test_the_stored_tokenizer_is_the_saved_one() -> None:
    ours = stored_tokenizer(BUNDLED_PRIOR)
    assert ours is not None
    prior = Prior.from_pretrained(BUNDLED_PRIOR)
    theirs = prior.tokenizer
    assert (ours.eos_token_id, ours.bos_token_id) == (theirs.eos_token_id, theirs.bos_token_id)
    assert len(ours) == len(theirs)
    text = prior.layout.longest_text()
    ids = ours(text, add_special_tokens=False)["input_ids"]
    assert ids == theirs(text, add_special_tokens=False)["input_ids"]
    assert ours.decode(ids, skip_special_tokens=True) == text
    assert ours.batch_decode([[1, 9], [8]]) == theirs.batch_decode([[1, 9], [8]])


def test_a_prior_loads_its_model_when_it_is_asked_for() -> None:
    prior = Prior.from_pretrained(BUNDLED_PRIOR)
    assert "model" not in vars(prior)
    size = prior.num_parameters
    assert isinstance(prior.model, LlamaForCausalLM)
    assert size == sum(w.numel() for w in prior.model.parameters())
    assert prior.context_length == prior.model.config.max_position_embeddings
    with pytest.raises(AttributeError, match="no attribute 'modell'"):
        _ = prior.modell  # type: ignore[attr-defined]
