"""The compact tokenizer and the initial embeddings of its numbers.

An element line, a coordinate, a length or an angle is one token together with the white space
before it, and so is each fixed sentence of the prompts. The rest of a prompt is spelled character
by character. In the layout `sites` a crystal of n atoms takes 6 + 4 n tokens, a third of the
LLaMA-2 tokens. Every text is reproduced exactly.

With one token per number, random embeddings do not tell which numbers are near, and that 0.99 is a
neighbour of 0.00 would have to be learnt from examples. So half of the dimensions of such a token
start as sines and cosines of its value (the features of Vaswani et al. 2017, section 3.5, with
whole frequencies for periodic values); the other half starts random. The model is a plain LLaMA
decoder, and these embeddings are trained like all others.
"""

from __future__ import annotations

import math
import re
import string
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor

from llm_prior.layouts import layout_of
from llm_prior.prompts import (
    ATTRIBUTES,
    GENERATION_HEAD,
    GENERATION_TAILS,
    INFILL_HEAD,
    INFILL_TAIL,
    SENTENCE_END,
)
from llm_prior.text import MASK, TextFormat

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

SPECIAL_TOKENS = ("<pad>", "<s>", "</s>", "<unk>")
# Periods of the unit cell; all but the last two tell neighbours of 0.01 apart only together.
_COORD_FREQUENCIES = (1, 2, 3, 4, 6, 8, 12, 24)
# Of log length, so that they count in ratios, and of an angle in radians.
_LENGTH_FREQUENCIES = (0.5, 1, 2, 4, 8, 16, 32, 64)
_ANGLE_FREQUENCIES = (0.5, 1, 2, 3, 4, 6, 12, 24)
# A length below 1 Angstrom, which no crystal has, reads as a coordinate.
_COORD_TOKEN = re.compile(r"[\n ](0\.[0-9]+)")
_LENGTH_TOKEN = re.compile(r"[\n ]?([0-9]+\.[0-9])")
_ANGLE_TOKEN = re.compile(r"[\n ]([1-9][0-9]+)")


def compact_tokenizer(fmt: TextFormat) -> PreTrainedTokenizerFast:
    """Return the tokenizer of a text format.

    Args:
        fmt: the text format.

    Raises:
        PriorError: if the precision would need too many tokens.
    """
    from transformers import PreTrainedTokenizerFast  # slow to import

    fields = layout_of(fmt).vocabulary()
    sentences = [
        GENERATION_HEAD,
        GENERATION_TAILS[fmt.layout],
        INFILL_HEAD,
        INFILL_TAIL,
        *(attribute.sentence for attribute in ATTRIBUTES),
    ]
    tokens = [
        *SPECIAL_TOKENS,
        *sentences,
        SENTENCE_END,
        "\n" + MASK,
        *fields.words,
        *(char for char in string.printable if char not in "\r\x0b\x0c"),
    ]
    vocabulary = {token: index for index, token in enumerate(dict.fromkeys(tokens))}

    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(
        Regex(_pattern(sentences, fields.patterns)), "isolated"
    )
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )


def embed_numbers(embedding: Tensor, vocabulary: Mapping[str, int]) -> None:
    """Initialise the embeddings of number tokens, in place.

    Args:
        embedding: (V, W) random initial embeddings; their standard deviation is kept.
        vocabulary: token -> row, of the compact tokenizer.
    """
    pairs = embedding.shape[1] // 4
    amplitude = math.sqrt(2) * float(embedding.detach().std())
    with torch.no_grad():
        for token, row in vocabulary.items():
            phases = _phases(token)
            if phases is None:
                continue
            phase = phases[torch.arange(pairs) % len(phases)]
            embedding[row, :pairs] = amplitude * phase.sin()
            embedding[row, pairs : 2 * pairs] = amplitude * phase.cos()


def _phases(token: str) -> Tensor | None:
    """Return the phase at each frequency of a token that is a number, else None."""
    if match := _COORD_TOKEN.fullmatch(token):
        return 2 * math.pi * float(match[1]) * torch.tensor(_COORD_FREQUENCIES)
    if match := _LENGTH_TOKEN.fullmatch(token):
        return math.log(max(float(match[1]), 0.1)) * torch.tensor(_LENGTH_FREQUENCIES)
    if match := _ANGLE_TOKEN.fullmatch(token):
        return math.radians(float(match[1])) * torch.tensor(_ANGLE_FREQUENCIES)
    return None


def _pattern(sentences: Iterable[str], fields: Iterable[str]) -> str:
    """Return a regular expression whose matches are exactly the tokens, longest meaning first."""
    return "|".join(
        [
            *(_escape(sentence) for sentence in sentences),
            r"\. ",
            r"\n" + _escape(MASK),
            *fields,
            r"[\s\S]",
        ]
    )


def _escape(text: str) -> str:
    escaped = "".join("\\" + char if char in r"\.[]()*+?^$|{}" else char for char in text)
    return escaped.replace("\n", r"\n")
