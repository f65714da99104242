"""The layout `sites` behind the common interface."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from pymatgen.core import Structure

from llm_prior.composition import CompositionRule
from llm_prior.config import TaskMix
from llm_prior.errors import PriorError
from llm_prior.layouts.interface import Description, Reading, TextLayout, Vocabulary
from llm_prior.prompts import known_conditions
from llm_prior.spacegroups import parse_spacegroups
from llm_prior.text import SYMBOLS, TextFormat, decode, encode, site_symbols

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from llm_prior.grammar import Grammar

_LARGEST_LENGTH = 40  # Angstrom; a longer edge is spelled in characters
_ANGLES = range(10, 180)


class SitesDescription(Description):
    """A crystal in its given cell, with its given coordinates.

    Args:
        structure: ordered crystal.
        fmt: the text format.
    """

    def __init__(self, structure: Structure, fmt: TextFormat) -> None:
        self.symbols = site_symbols(structure)
        self._structure = structure
        self._fmt = fmt

    def text(self) -> str:
        """Return the text of the crystal."""
        return encode(self._structure, self._fmt)

    def draw(self, mix: TaskMix, rng: np.random.Generator, *, infill: bool) -> str:
        """Return the text, shifted by a random vector for a share of the crystals.

        Args:
            mix: its `translated` is the share; infilling shifts every crystal.
            rng: source of every draw.
            infill: the text is for infilling.
        """
        translated = infill or rng.random() < mix.translated
        return encode(self._structure, self._fmt, rng.random(3) if translated else None)

    def conditions(self, properties: Mapping[str, Any]) -> dict[str, Any]:
        """Return every condition that the crystal meets.

        Args:
            properties: values of conditions that the structure does not tell, by name.
        """
        return known_conditions(self._structure, properties)

    def pieces(self) -> list[str]:
        """Return the lines of each site; the cell has as many tokens in every crystal."""
        zero = f"{0:.{self._fmt.coord_decimals}f}"
        return [f"\n{symbol}\n{zero} {zero} {zero}" for symbol in self.symbols]


class SitesLayout(TextLayout):
    """Cell, then element and coordinates of each site (`llm_prior.text`)."""

    shift_invariant = False

    def describe(self, structure: Structure) -> SitesDescription:
        """Return a crystal as the layout writes it.

        Args:
            structure: ordered crystal.

        Raises:
            PriorError: if the crystal has partial occupancies or an unknown species.
        """
        return SitesDescription(structure, self.fmt)

    def read(self, text: str, *, complete: bool = True) -> Reading:
        """Return the crystal of a text.

        Args:
            text: the text.
            complete: False if generation hit the token limit before the end of the sequence.

        Raises:
            ParseError: if the text is not a crystal, with the first reason that was found.
        """
        return Reading(decode(text, self.fmt, complete=complete))

    def check(self, conditions: Mapping[str, Any], exclude_elements: Sequence[str] = ()) -> None:
        """Check that a crystal within the size limit can meet the conditions.

        Args:
            conditions: values by name.
            exclude_elements: symbols of elements that must not occur.

        Raises:
            PriorError: if none can, with the space groups that can.
        """
        rule = CompositionRule.from_conditions(
            conditions, self.fmt.max_atoms, exclude_elements=exclude_elements
        )
        self._groups(rule, conditions)

    def settle(
        self,
        conditions: Mapping[str, Any],
        rng: np.random.Generator,
        exclude_elements: Sequence[str] = (),
    ) -> Mapping[str, Any]:
        """Return the conditions of one text: of a set of space groups one is drawn.

        The prompt states one group, and the text, which does not, tells nothing of how likely each
        is. So those that can hold the atoms are drawn evenly.

        Args:
            conditions: values by name.
            rng: source of the draw.
            exclude_elements: symbols of elements that must not occur.

        Raises:
            PriorError: if no crystal within the size limit meets the conditions.
        """
        rule = CompositionRule.from_conditions(
            conditions, self.fmt.max_atoms, exclude_elements=exclude_elements
        )
        groups = self._groups(rule, conditions)
        return {**conditions, "spacegroup": int(rng.choice(groups))} if groups else conditions

    def _groups(self, rule: CompositionRule, conditions: Mapping[str, Any]) -> list[int]:
        """Return the requested groups that can hold the atoms; none if none is requested."""
        if conditions.get("spacegroup") is None:
            return []
        from llm_prior.wyckoff.requests import grammar_of  # imports spglib
        from llm_prior.wyckoff.text import WyckoffFormat

        asked = parse_spacegroups(conditions["spacegroup"])
        return grammar_of(
            WyckoffFormat(max_atoms=self.fmt.max_atoms, keep_hand=True), rule, asked
        ).groups

    def longest_text(self) -> str:
        """Return a text with about the most tokens."""
        fmt = self.fmt
        coordinate = f"{0.88:.{fmt.coord_decimals}f}"
        site = "\nRf\n" + " ".join([coordinate] * 3)
        cell = " ".join([f"{38.8:.{fmt.length_decimals}f}"] * 3)
        angles = " ".join([f"{118.8:.{fmt.angle_decimals}f}"] * 3)
        return cell + "\n" + angles + site * fmt.max_atoms

    def vocabulary(self) -> Vocabulary:
        """Return elements, angles, coordinates and lengths with the white space before them.

        Raises:
            PriorError: if the precision would need too many tokens.
        """
        fmt = self.fmt
        check_precision(fmt)
        scale = 10**fmt.coord_decimals
        coords = [f"{tick / scale:.{fmt.coord_decimals}f}" for tick in range(scale)]
        lengths = [f"{tick / 10:.1f}" for tick in range(10 * _LARGEST_LENGTH)]
        angles = [str(angle) for angle in _ANGLES]
        elements = "|".join(sorted(SYMBOLS, key=len, reverse=True))
        no_number_before = r"(?<![0-9.])"
        no_number_after = r"(?![0-9]|\.[0-9])"
        return Vocabulary(
            words=[
                *_prefixed(("\n", ""), SYMBOLS),
                *_prefixed(("\n", " "), angles),
                *_prefixed(("\n", " "), coords),
                *_prefixed(("", " "), lengths),
            ],
            patterns=[
                rf"[\n ]0\.[0-9]{{{fmt.coord_decimals}}}{no_number_after}",
                rf"(?:{no_number_before}| )(?:[0-9]|[1-3][0-9])\.[0-9]{no_number_after}",
                rf"[\n ](?:1[0-7][0-9]|[1-9][0-9]){no_number_after}",
                rf"\n(?:{elements})(?=\n|$)",
                rf"(?:{elements})",
            ],
        )

    def grammar(self, tokenizer: PreTrainedTokenizerBase) -> Grammar:
        """Return the grammar of the layout for a tokenizer.

        Args:
            tokenizer: a fast tokenizer with an end-of-sequence token.

        Raises:
            PriorError: if the tokenizer does not reproduce the text field by field, or the format
                has too many decimals.
        """
        from llm_prior.grammar import Grammar  # imports torch

        return Grammar(tokenizer, self.fmt)


def check_precision(fmt: TextFormat) -> None:
    """Check that a text format has few enough values for one token each.

    Args:
        fmt: the text format.

    Raises:
        PriorError: if it has too many.
    """
    if fmt.coord_decimals not in (1, 2, 3) or (fmt.length_decimals, fmt.angle_decimals) != (1, 0):
        raise PriorError(
            "the compact tokenizer writes coordinates with 1 to 3 decimals, lengths with 1 and "
            f"angles with 0; {fmt.to_dict()} needs a pretrained tokenizer"
        )


def _prefixed(prefixes: Sequence[str], words: Sequence[str]) -> list[str]:
    return [prefix + word for prefix in prefixes for word in words]
