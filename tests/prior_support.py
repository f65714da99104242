"""Models, tokenizers and crystals that the tests of `llm_prior` share."""

from __future__ import annotations

import warnings
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from pymatgen.core import Structure
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from llm_prior import Architecture, BaseModel, Lora, Prior, PriorError, TextFormat, proposals
from llm_prior.prompts import generation_prompt
from llm_prior.proposals import Proposal, Question, propose
from llm_prior.settings import read_settings
from support import MP20_SAMPLE, SHARED

FMT = TextFormat()
LLAMA = SHARED / "tokenizers" / "llama_tokenizer.json"
TINY = Architecture(
    hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2
)
NACL = "5.6 5.6 5.6\n90 90 90\nNa\n0.00 0.00 0.00\nCl\n0.50 0.50 0.50"
WHOLE = generation_prompt({"formula": "NaCl"}) + "5.6 5.6 5.6\n90 90 90\nNa\n0.00 0.00 0.00"


# --- tokenizers ----------------------------------------------------------------------------------


def llama_tokenizer(**special: str) -> PreTrainedTokenizerFast:
    """The LLaMA-2 vocabulary; skips the test if it is not at hand."""
    if not LLAMA.exists():
        pytest.skip("the LLaMA-2 vocabulary is not at ../shared/tokenizers")
    special = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"} | special
    return PreTrainedTokenizerFast(tokenizer_file=str(LLAMA), **special)


def byte_tokenizer(**special: str | None) -> PreTrainedTokenizerFast:
    """One token a byte, as a base model's own tokenizer; it has no pad token unless told."""
    symbols = ["<s>", "</s>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokenizer = Tokenizer(models.BPE(vocab={s: i for i, s in enumerate(symbols)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, **({"bos_token": "<s>", "eos_token": "</s>"} | special)
    )


# --- models --------------------------------------------------------------------------------------


@cache
def one_layer_prior(context: int, **fmt: Any) -> Prior:
    """A prior of one narrow layer with random weights."""
    architecture = Architecture(
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=context,
    )
    return Prior.build(BaseModel(architecture=architecture), TextFormat(**fmt))


def small_prior(seed: int = 0) -> Prior:
    """A prior of two narrow layers with random weights."""
    return Prior.build(BaseModel(architecture=TINY), FMT, seed=seed)


def make_base(
    folder: Path,
    *,
    rows: int = 258,
    tied: bool = False,
    sizes: dict[str, int] | None = None,
    seed: int = 1,
    **special: str,
) -> str:
    """Write a small pretrained LLaMA as someone else would publish it; returns its folder."""
    torch.manual_seed(seed)
    usual = {"hidden_size": 16, "intermediate_size": 24, "max_position_embeddings": 256}
    LlamaForCausalLM(
        LlamaConfig(
            vocab_size=rows,
            num_hidden_layers=2,
            num_attention_heads=2,
            tie_word_embeddings=tied,
            bos_token_id=0,
            eos_token_id=1,
            **(usual | (sizes or {})),
        )
    ).save_pretrained(folder)
    byte_tokenizer(**special).save_pretrained(folder)
    return str(folder)


def with_trained_adapter(base: str) -> Prior:
    """An adapter that changes the base: a fresh one is the identity."""
    return _adapted(base, FMT, scale=1.0)


def adapter_on(folder: Path) -> Prior:
    """An adapter that changes a trained prior a little."""
    fmt = TextFormat(**read_settings(str(folder))["text"])
    return _adapted(str(folder), fmt, scale=0.1)


def _adapted(base: str, fmt: TextFormat, *, scale: float) -> Prior:
    prior = Prior.build(BaseModel(name=base, lora=Lora(r=2)), fmt)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, weight in prior.model.named_parameters():
            if "lora_B" in name:
                weight.copy_(scale * torch.randn(weight.shape, generator=generator))
    prior.model.eval()
    return prior


@torch.no_grad()
def logits(prior: Prior, text: str = WHOLE) -> torch.Tensor:
    ids = prior.tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
    return prior.model(ids).logits


def refused(call: Callable[[], object], *words: str) -> str:
    """The one line with which the call is refused, after seeing that it holds these words."""
    with pytest.raises(PriorError) as caught:
        call()
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    for word in words:
        assert word in message
    return message


class Script:
    """Texts in the order in which questions come, in place of a language model."""

    def __init__(self, *rounds: Sequence[str | tuple[str, bool]]) -> None:
        self.answers = [a if isinstance(a, tuple) else (a, True) for r in rounds for a in r]
        self.questions: list[Question] = []

    def __call__(
        self, prior: Prior, queue: deque[Question], **options: Any
    ) -> Iterator[tuple[int, str, bool]]:
        while queue:
            question = queue.popleft()
            text, complete = self.answers[len(self.questions)]
            self.questions.append(question)
            yield question.place, text, complete


def ask(
    script: Script, requests: list[dict[str, Any]], *, prior: Prior | None = None, **options: Any
) -> list[Proposal]:
    """Propose crystals with the texts of a script, by default without constraint."""
    prior = one_layer_prior(512) if prior is None else prior
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(proposals, "generate_texts", script)
        return propose(prior, requests, seed=0, **({"constrain": False} | options))


# --- crystals ------------------------------------------------------------------------------------


@cache
def real_crystals() -> list[tuple[Structure, dict[str, Any]]]:
    """The 72 crystals of the MP-20 sample and their properties."""
    table = pd.read_parquet(MP20_SAMPLE)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the CIF reader tells of rounded coordinates
        structures = [Structure.from_str(cif, fmt="cif") for cif in table["cif"]]
    rows = table.rename(columns={"spacegroup.number": "spacegroup"}).to_dict("records")
    return list(zip(structures, rows, strict=True))
