"""A saved fast tokenizer without transformers, for sampling."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

_CLASSES = {"TokenizersBackend", "PreTrainedTokenizerFast"}  # those that add nothing of their own


class StoredTokenizer:
    """What sampling needs of a `transformers.PreTrainedTokenizerFast`, by the same names.

    Args:
        backend: the tokenizer.
        bos_token_id: begins a text, or None.
        eos_token_id: ends a text.
    """

    def __init__(self, backend: Tokenizer, bos_token_id: int | None, eos_token_id: int) -> None:
        self.backend = backend
        self.bos_token_id = bos_token_id
        self.eos_token_id = eos_token_id

    def __call__(
        self, text: str | Sequence[str], *, add_special_tokens: bool = False
    ) -> dict[str, Any]:
        """Return `input_ids`: the token ids of a text, or of each of several.

        Args:
            text: one or several.
            add_special_tokens: let the tokenizer add its own first and last tokens.
        """
        if isinstance(text, str):
            return {
                "input_ids": self.backend.encode(text, add_special_tokens=add_special_tokens).ids
            }
        rows = self.backend.encode_batch(list(text), add_special_tokens=add_special_tokens)
        return {"input_ids": [row.ids for row in rows]}

    def __len__(self) -> int:
        return int(self.backend.get_vocab_size())

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = False) -> str:
        """Return the text of token ids.

        Args:
            ids: tokens.
            skip_special_tokens: leave out those that are no text.
        """
        return str(self.backend.decode(list(ids), skip_special_tokens=skip_special_tokens))

    def batch_decode(self, rows: Sequence[Sequence[int]]) -> list[str]:
        """Return the texts of rows of token ids.

        Args:
            rows: tokens of each text.
        """
        texts: list[str] = self.backend.decode_batch([*rows], skip_special_tokens=False)
        return texts


def stored_tokenizer(folder: str | Path) -> StoredTokenizer | None:
    """Return the tokenizer of a saved prior; None if transformers would add something to it, or its
    files are damaged.

    Args:
        folder: with tokenizer.json and tokenizer_config.json.
    """
    folder = Path(folder)
    try:
        settings = json.loads((folder / "tokenizer_config.json").read_bytes())
        if settings["tokenizer_class"] not in _CLASSES or settings.get("added_tokens_decoder"):
            return None
        backend = Tokenizer.from_file(str(folder / "tokenizer.json"))
        ids = {
            name: None if settings.get(name) is None else backend.token_to_id(settings[name])
            for name in ("bos_token", "eos_token", "pad_token")
        }
    except Exception:  # what tokenizers raises
        return None
    eos, pad = ids["eos_token"], ids["pad_token"]
    tidy = settings.get("clean_up_tokenization_spaces")
    if tidy or eos is None or pad is None or eos == pad:
        return None
    if settings.get("bos_token") is not None and ids["bos_token"] is None:
        return None
    backend.no_padding()
    backend.no_truncation()
    return StoredTokenizer(backend, ids["bos_token"], eos)
