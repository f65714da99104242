"""The compact tokenizer: the text of `llm_prior.text`, one token for each thing that it says.

An element line, a coordinate, a length or an angle is one token together with the white space
before it, and so is each fixed sentence of the prompts; whatever else a prompt holds is spelled
character by character. A crystal of n atoms takes 6 + 4 n tokens, a third of what a LLaMA-2
tokenizer needs, and every text is still reproduced exactly.
"""

from __future__ import annotations

import string
from collections.abc import Iterable

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from llm_prior.errors import PriorError
from llm_prior.prompts import (
    ATTRIBUTES,
    GENERATION_HEAD,
    GENERATION_TAIL,
    INFILL_HEAD,
    INFILL_TAIL,
    SENTENCE_END,
)
from llm_prior.text import MASK, SYMBOLS, TextFormat

SPECIAL_TOKENS = ("<pad>", "<s>", "</s>", "<unk>")
_LARGEST_LENGTH = 40  # Angstrom; a longer edge is spelled in characters
_ANGLES = range(10, 180)


def compact_tokenizer(fmt: TextFormat) -> PreTrainedTokenizerFast:
    """Build the tokenizer for one text format.

    Raises:
        PriorError: a precision for which one token per number makes no sense.
    """
    if fmt.coord_decimals not in (1, 2, 3) or (fmt.length_decimals, fmt.angle_decimals) != (1, 0):
        raise PriorError(
            "the compact tokenizer writes coordinates with 1 to 3 decimals, lengths with 1 and "
            f"angles with 0; {fmt.to_dict()} needs a pretrained tokenizer"
        )
    sentences = [
        GENERATION_HEAD,
        GENERATION_TAIL,
        INFILL_HEAD,
        INFILL_TAIL,
        *(attribute.sentence for attribute in ATTRIBUTES),
    ]
    scale = 10**fmt.coord_decimals
    coords = [f"{tick / scale:.{fmt.coord_decimals}f}" for tick in range(scale)]
    lengths = [f"{tick / 10:.1f}" for tick in range(10 * _LARGEST_LENGTH)]
    angles = [str(angle) for angle in _ANGLES]
    tokens = [
        *SPECIAL_TOKENS,
        *sentences,
        SENTENCE_END,
        "\n" + MASK,
        *_prefixed(("\n", ""), SYMBOLS),
        *_prefixed(("\n", " "), angles),
        *_prefixed(("\n", " "), coords),
        *_prefixed(("", " "), lengths),
        *(char for char in string.printable if char not in "\r\x0b\x0c"),
    ]
    vocabulary = {token: index for index, token in enumerate(dict.fromkeys(tokens))}

    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(_pattern(fmt, sentences)), "isolated")
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


def _pattern(fmt: TextFormat, sentences: list[str]) -> str:
    """One regular expression whose matches are exactly the tokens, longest meaning first."""
    elements = "|".join(sorted(SYMBOLS, key=len, reverse=True))
    no_number_before = r"(?<![0-9.])"
    no_number_after = r"(?![0-9]|\.[0-9])"
    return "|".join(
        [
            *(_escape(sentence) for sentence in sentences),
            r"\. ",
            r"\n" + _escape(MASK),
            rf"[\n ]0\.[0-9]{{{fmt.coord_decimals}}}{no_number_after}",
            rf"(?:{no_number_before}| )(?:[0-9]|[1-3][0-9])\.[0-9]{no_number_after}",
            rf"[\n ](?:1[0-7][0-9]|[1-9][0-9]){no_number_after}",
            rf"\n(?:{elements})(?=\n|$)",
            rf"(?:{elements})",
            r"[\s\S]",
        ]
    )


def _escape(text: str) -> str:
    escaped = "".join("\\" + char if char in r"\.[]()*+?^$|{}" else char for char in text)
    return escaped.replace("\n", r"\n")


def _prefixed(prefixes: Iterable[str], words: Iterable[str]) -> list[str]:
    words = list(words)
    return [prefix + word for prefix in prefixes for word in words]
