"""The interface through which a model writes and reads crystals in any layout."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import numpy as np
from pymatgen.core import Structure

from llm_prior.config import TaskMix
from llm_prior.prompts import BY_NAME, generation_prompt
from llm_prior.text import TextFormat

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from llm_prior.tries import Legal
    from llm_prior.wyckoff.crystal import WyckoffCrystal


@dataclass(frozen=True)
class Reading:
    """The crystal of a text.

    Attributes:
        structure: the crystal.
        crystal: its space group, orbits and free parameters, if the layout has them. The sites of
            `structure` are grouped by orbit: see `WyckoffCrystal.site_orbits`.
    """

    structure: Structure
    crystal: WyckoffCrystal | None = None


@dataclass(frozen=True)
class Vocabulary:
    """The fields of a layout as tokens of the compact tokenizer.

    Attributes:
        words: the tokens.
        patterns: regular expressions that match exactly them, longest meaning first.
    """

    words: Sequence[str]
    patterns: Sequence[str]


class Description(ABC):
    """A crystal as a layout writes it.

    Attributes:
        symbols: the elements of the crystal.
    """

    symbols: Sequence[str]

    @abstractmethod
    def text(self) -> str:
        """Return the text of the crystal."""

    @abstractmethod
    def draw(self, mix: TaskMix, rng: np.random.Generator, *, infill: bool) -> str:
        """Return one of the texts of the crystal, drawn for training.

        Args:
            mix: the share of texts that are not the one of `text`.
            rng: source of every draw.
            infill: the text is for infilling.
        """

    @abstractmethod
    def conditions(self, properties: Mapping[str, Any]) -> dict[str, Any]:
        """Return every condition that the text meets.

        Args:
            properties: values of conditions that a structure does not tell, by name.

        Returns:
            name -> value, in the order of `llm_prior.prompts.ATTRIBUTES`.
        """

    @abstractmethod
    def pieces(self) -> list[str]:
        """Return strings that have about as many tokens together as a text of the crystal."""

    def record(self) -> str:
        """Return what `TextLayout.recall` needs besides the structure, as JSON."""
        return "null"


class TextCursor(Protocol):
    """A place in a text that is being written."""

    @property
    def is_certain(self) -> bool:
        """True if the crystal of the text meets all that the grammar promises."""
        ...

    def legal(self) -> Legal:
        """Return the tokens that may come next."""
        ...

    def candidates(self) -> Legal:
        """Return tokens of which some may come next; all that may are among them."""
        ...

    def accepts(self, token: int) -> bool:
        """Return whether one of the candidates may come next; if not, it is none any more."""
        ...

    def advance(self, token: int) -> None:
        """Take a token as written."""
        ...


class TextConstraint(Protocol):
    """The constraint of one request.

    Attributes:
        max_tokens: limit on the tokens of an answer, end of sequence included.
    """

    max_tokens: int

    def cursor(self) -> TextCursor:
        """Return a cursor before the first token of a new text."""
        ...


class TextGrammar(Protocol):
    """The tokens that may follow in a text, for one tokenizer and text format."""

    def constraint(
        self, conditions: Mapping[str, Any], *, exclude_elements: Sequence[str] = ()
    ) -> TextConstraint:
        """Return the constraint of a request; all texts of the request share it.

        Args:
            conditions: values by name.
            exclude_elements: symbols that are never written.

        Raises:
            PriorError: if no crystal up to the size limit can meet the conditions.
        """
        ...


class TextLayout(ABC):
    """A layout with its precision and size limit.

    Args:
        fmt: the text format.

    Attributes:
        fmt: the text format.
        shift_invariant: a crystal has the same text wherever its origin is.
        record_key: names everything that the records of descriptions depend on besides the
            structure. None where describing a crystal costs little, so that a record is useless.
    """

    shift_invariant: ClassVar[bool]
    record_key: str | None = None

    def __init__(self, fmt: TextFormat) -> None:
        self.fmt = fmt

    @abstractmethod
    def describe(self, structure: Structure) -> Description:
        """Return a crystal as the layout writes it.

        Args:
            structure: ordered crystal of at most `fmt.max_atoms` sites.

        Raises:
            PriorError: if the layout cannot write the crystal.
        """

    def recall(self, structure: Structure, record: str) -> Description:
        """Return the description of a crystal from its record, without a symmetry search.

        Args:
            structure: as given to `describe`.
            record: `Description.record` of that description, under the same `record_key`.
        """
        return self.describe(structure)

    @abstractmethod
    def read(self, text: str, *, complete: bool = True) -> Reading:
        """Return the crystal of a text.

        Args:
            text: the text.
            complete: False if generation hit the token limit before the end of the sequence.

        Raises:
            ParseError: if the text is not a crystal, with the first reason that was found.
        """

    @abstractmethod
    def check(self, conditions: Mapping[str, Any], exclude_elements: Sequence[str] = ()) -> None:
        """Check that a crystal within the size limit can meet the conditions.

        Args:
            conditions: values by name; see `llm_prior.prompts.ATTRIBUTES`.
            exclude_elements: symbols of elements that must not occur.

        Raises:
            PriorError: if none can.
        """

    @abstractmethod
    def longest_text(self) -> str:
        """Return a text with about the most tokens."""

    @abstractmethod
    def vocabulary(self) -> Vocabulary:
        """Return the fields as tokens of the compact tokenizer.

        Raises:
            PriorError: if the precision would need too many tokens.
        """

    @abstractmethod
    def grammar(self, tokenizer: PreTrainedTokenizerBase) -> TextGrammar:
        """Return the grammar of the layout for a tokenizer.

        Args:
            tokenizer: a fast tokenizer with an end-of-sequence token.

        Raises:
            PriorError: if the tokenizer does not reproduce the text field by field, or the format
                has too many decimals.
        """

    def prompt(self, conditions: Mapping[str, Any]) -> str:
        """Return the prompt for a crystal that meets the conditions.

        Args:
            conditions: values by name.

        Raises:
            PriorError: if a condition is unknown or a value is bad.
        """
        return generation_prompt(conditions, self.fmt.layout)

    def settle(
        self,
        conditions: Mapping[str, Any],
        rng: np.random.Generator,
        exclude_elements: Sequence[str] = (),
    ) -> Mapping[str, Any]:
        """Return the conditions of one text of a request: values that the layout needs are drawn.

        Args:
            conditions: values by name.
            rng: source of the draws.
            exclude_elements: symbols of elements that must not occur.

        Raises:
            PriorError: if no crystal within the size limit meets the conditions.
        """
        return conditions

    def refusal(
        self, reading: Reading, conditions: Mapping[str, Any], cursor: TextCursor | None = None
    ) -> str | None:
        """Return the reason for which a crystal does not answer a request, or None.

        Args:
            reading: the crystal.
            conditions: values by name; those that a crystal does not tell are passed over.
            cursor: the place at the end of the text if it was constrained.

        Returns:
            `other_NAME` for a condition NAME that is not met, or a reason of the layout.
        """
        for name, value in conditions.items():
            told = BY_NAME[name].derive is not None
            if told and not BY_NAME[name].holds_for(reading.structure, value):
                return f"other_{name}"
        return None

    def as_requested(self, reading: Reading, conditions: Mapping[str, Any]) -> Reading:
        """Return a crystal in the form that a request names.

        Args:
            reading: a crystal that meets the conditions.
            conditions: values by name.
        """
        return reading
