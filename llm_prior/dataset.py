"""Training examples of the text prior: task, conditions and text of each crystal.

Every draw is a function of a crystal and a random generator alone, so the owner of the generator
(one for each absolute sample position) can repeat any draw.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from pymatgen.core import Structure

from llm_prior.config import TaskMix
from llm_prior.errors import PriorError
from llm_prior.layouts import Description, layout_of
from llm_prior.prompts import ATTRIBUTES, BY_NAME, generation_prompt, infill_prompt
from llm_prior.text import LayoutName, TextFormat, mask_element

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

IGNORED = -100  # label of a token that does not enter the loss (torch's cross entropy)
_LENGTH_STEP = 8
_ANSWER_STEP = 256


@dataclass(frozen=True)
class Example:
    """A prompt and its answer."""

    prompt: str
    answer: str


def draw_example(
    structure: Structure,
    properties: Mapping[str, Any],
    fmt: TextFormat,
    mix: TaskMix,
    rng: np.random.Generator,
) -> Example:
    """Draw the task, its conditions and one of the texts of a crystal.

    Args:
        structure: the crystal.
        properties: values of conditions that the structure does not tell.
        fmt: text format of the model.
        mix: shares of tasks and conditions.
        rng: source of every draw.

    Raises:
        PriorError: if the crystal cannot be written, or a property is a bad value of a condition.
    """
    description = layout_of(fmt).describe(structure)
    return _draw(description, description.conditions(properties), fmt.layout, mix, rng)


def _draw(
    description: Description,
    known: Mapping[str, Any],
    layout: LayoutName,
    mix: TaskMix,
    rng: np.random.Generator,
) -> Example:
    conditions = _draw_conditions(known, mix, rng)
    text = description.draw(mix, rng, infill=conditions is None)
    if conditions is None:
        element = rng.choice(sorted(set(description.symbols)))
        return Example(infill_prompt(mask_element(text, element)), str(element))
    return Example(generation_prompt(conditions, layout), text)


def _draw_conditions(
    known: Mapping[str, Any], mix: TaskMix, rng: np.random.Generator
) -> dict[str, Any] | None:
    """Draw some of the known conditions, or None for infilling; precedes every other draw."""
    if rng.random() < mix.infill:
        return None
    kind = rng.random()
    limits = np.cumsum([mix.unconditional, mix.formula, mix.composition, mix.one_property])
    if kind < limits[0]:
        names: list[str] = []
    elif kind < limits[1]:
        names = ["formula"]
    elif kind < limits[2]:
        names = ["formula", "num_atoms"]
    elif kind < limits[3]:
        names = [name for name in known if BY_NAME[name].derive is None]
        names = [str(rng.choice(names))] if names else []
    else:
        names = [name for name in known if rng.random() < 0.5]
    if mix.near_hull is not None and known.get("e_above_hull", 0) > mix.near_hull:
        names = [name for name in known if name in names or name == "e_above_hull"]
    return {name: known[name] for name in names}


def tokenize(
    tokenizer: PreTrainedTokenizerBase, prompt: str, answer: str
) -> tuple[list[int], list[int]]:
    """Return the tokens and labels of a training example.

    Prompt and answer are tokenised as one string. A tokenizer may join characters across words, but
    not across the newline at the end of every prompt, so generation from the prompt alone continues
    with the same tokens.

    Args:
        tokenizer: a fast tokenizer with an end-of-sequence token.
        prompt: ends in a newline.
        answer: text that follows.

    Returns:
        (ids, labels) of prompt, answer and end of sequence, each (T,); the labels of the prompt are
        `IGNORED`.
    """
    encoded = tokenizer(
        prompt + answer, add_special_tokens=False, return_offsets_mapping=True, verbose=False
    )
    ids = list(encoded["input_ids"])
    labels = [
        token if start >= len(prompt) else IGNORED
        for token, (start, _) in zip(ids, encoded["offset_mapping"], strict=True)
    ]
    if tokenizer.bos_token_id is not None:
        ids.insert(0, tokenizer.bos_token_id)
        labels.insert(0, IGNORED)
    ids.append(tokenizer.eos_token_id)
    labels.append(tokenizer.eos_token_id)
    return ids, labels


class CrystalTextDataset:
    """Crystals as tokenised training examples, drawn anew every time.

    Args:
        crystals: (id, structure, properties) of each.
        tokenizer: a fast tokenizer with an end-of-sequence token.
        fmt: text format of the model.
        mix: shares of tasks and conditions.
        descriptions: the crystals as the layout writes them; None describes each when it is drawn.

    Raises:
        PriorError: if there is no crystal.
    """

    def __init__(
        self,
        crystals: Sequence[tuple[str, Structure, Mapping[str, Any]]],
        tokenizer: PreTrainedTokenizerBase,
        fmt: TextFormat,
        mix: TaskMix,
        descriptions: Sequence[Description] | None = None,
    ) -> None:
        if not crystals:
            raise PriorError("the training set has no crystal; check the data file")
        self.crystals = crystals
        self.tokenizer = tokenizer
        self.fmt = fmt
        self.mix = mix
        self._layout = layout_of(fmt)
        self._described = dict(enumerate(descriptions or ()))
        self._known: dict[int, dict[str, Any]] = {}
        self._num_tokens: dict[str, int] = {}
        self._condition_sizes: dict[tuple[int, str], int] = {}

    def conditions(self) -> list[str]:
        """Return the conditions that at least one crystal has, in the order of `ATTRIBUTES`."""
        had: set[str] = set()
        for index in range(len(self)):
            had |= self._known_of(index).keys()
        return [attribute.name for attribute in ATTRIBUTES if attribute.name in had]

    def labels_per_draw(self) -> float:
        """Return about the mean number of tokens of a draw that enter the loss."""
        texts = sum(
            sum(map(self._count, self._description_of(i).pieces())) for i in range(len(self))
        )
        symbols = {symbol for i in range(len(self)) for symbol in self._description_of(i).symbols}
        symbol = sum(map(self._count, symbols)) / len(symbols)
        share = self.mix.infill
        return (1 - share) * texts / len(self) + share * symbol + 1  # 1: end of sequence

    def __len__(self) -> int:
        return len(self.crystals)

    def size(self, index: int, rng: np.random.Generator) -> int:
        """Return about the number of tokens of `draw`, at a small part of its cost.

        Examples of like length go into one batch, so that little is padded.

        Args:
            index: of the crystal.
            rng: generator in the same state as for `draw`.

        Raises:
            PriorError: if a property of the crystal is a bad value of a condition.
        """
        conditions = _draw_conditions(self._known_of(index), self.mix, rng)
        if conditions is None:
            prompt = self._count(infill_prompt(""))
        else:
            prompt = self._count(self._layout.prompt({})) + sum(
                self._condition_size(index, name, value) for name, value in conditions.items()
            )
        return prompt + sum(map(self._count, self._description_of(index).pieces()))

    def _condition_size(self, index: int, name: str, value: Any) -> int:
        if (index, name) not in self._condition_sizes:
            try:
                clause = BY_NAME[name].clause(value)
            except PriorError as error:
                raise PriorError(f"crystal {self.crystals[index][0]}: {error}") from error
            self._condition_sizes[index, name] = self._count(clause)
        return self._condition_sizes[index, name]

    def _known_of(self, index: int) -> dict[str, Any]:
        if index not in self._known:
            _, _, properties = self.crystals[index]
            self._known[index] = self._description_of(index).conditions(properties)
        return self._known[index]

    def _description_of(self, index: int) -> Description:
        if index not in self._described:
            name, structure, _ = self.crystals[index]
            try:
                self._described[index] = self._layout.describe(structure)
            except PriorError as error:
                raise PriorError(f"crystal {name}: {error}") from error
        return self._described[index]

    def _count(self, piece: str) -> int:
        if piece not in self._num_tokens:
            tokens = self.tokenizer(piece, add_special_tokens=False)["input_ids"]
            self._num_tokens[piece] = len(tokens)
        return self._num_tokens[piece]

    def draw(self, index: int, rng: np.random.Generator) -> dict[str, Any]:
        """Draw a training example.

        Args:
            index: of the crystal.
            rng: source of every draw.

        Returns:
            `input_ids` and `labels` as lists of length T, and `ids`, the id of the crystal.

        Raises:
            PriorError: if the crystal cannot be written, or a property of it is a bad value of a
                condition.
        """
        name, _, _ = self.crystals[index]
        description, known = self._description_of(index), self._known_of(index)
        try:
            example = _draw(description, known, self.fmt.layout, self.mix, rng)
        except PriorError as error:
            raise PriorError(f"crystal {name}: {error}") from error
        input_ids, labels = tokenize(self.tokenizer, example.prompt, example.answer)
        return {"ids": name, "input_ids": input_ids, "labels": labels}


@dataclass(frozen=True)
class Collator:
    """Collation of training examples into a batch, padded on the right.

    A batch has `input_ids`, `attention_mask` and `labels` (B, T) with T a multiple of 8, and the
    list `ids`. `logits_to_keep` (B, T) and `shift_labels` (K,) let the model compute logits only
    where it predicts a token of an answer. K is a multiple of 256: a CPU kernel is compiled for
    every new shape, so there must be few of them.

    Attributes:
        pad_token_id: fills the rows up.
    """

    pad_token_id: int

    def __call__(self, items: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        longest = max(len(item["input_ids"]) for item in items)
        shape = (len(items), longest + -longest % _LENGTH_STEP)
        input_ids = torch.full(shape, self.pad_token_id, dtype=torch.long)
        labels = torch.full(shape, IGNORED, dtype=torch.long)
        attention_mask = torch.zeros(shape, dtype=torch.long)
        for row, item in enumerate(items):
            length = len(item["input_ids"])
            input_ids[row, :length] = torch.tensor(item["input_ids"])
            labels[row, :length] = torch.tensor(item["labels"])
            attention_mask[row, :length] = 1
        following = torch.nn.functional.pad(labels[:, 1:], (0, 1), value=IGNORED)
        kept = following != IGNORED
        spare = (~kept).flatten().nonzero().flatten()  # positions without a label, to fill up K
        kept.view(-1)[spare[: -int(kept.sum()) % _ANSWER_STEP]] = True
        return {
            "ids": [item["ids"] for item in items],
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "labels": labels,
            "logits_to_keep": kept,
            "shift_labels": following[kept],
        }
