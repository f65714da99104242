"""The layouts in which a crystal is written as text: `sites` and `wyckoff`.

Everything else in `llm_prior` works with a layout through `TextLayout`. `sites` is CrystalLLM's and
the default; `llm_prior.text` and `llm_prior.grammar` hold it. `wyckoff` is in `llm_prior.wyckoff`.
"""

from __future__ import annotations

from pymatgen.core import Structure

from llm_prior.layouts.interface import (
    Description,
    Reading,
    TextConstraint,
    TextCursor,
    TextGrammar,
    TextLayout,
    Vocabulary,
)
from llm_prior.text import TextFormat

__all__ = [
    "Description",
    "Reading",
    "TextConstraint",
    "TextCursor",
    "TextGrammar",
    "TextLayout",
    "Vocabulary",
    "decode",
    "encode",
    "layout_of",
]


def layout_of(fmt: TextFormat) -> TextLayout:
    """Return the layout of a text format.

    Args:
        fmt: the text format.
    """
    if fmt.layout == "wyckoff":
        from llm_prior.layouts.wyckoff import WyckoffLayout  # imports spglib

        return WyckoffLayout(fmt)
    from llm_prior.layouts.sites import SitesLayout

    return SitesLayout(fmt)


def encode(structure: Structure, fmt: TextFormat) -> str:
    """Return a crystal as text.

    Args:
        structure: ordered crystal.
        fmt: layout, precision and size limit.

    Returns:
        Lines joined by newlines, with none at the end.

    Raises:
        PriorError: if the crystal has partial occupancies, an unknown species or too many sites, or
            the layout cannot write it.
    """
    return layout_of(fmt).describe(structure).text()


def decode(text: str, fmt: TextFormat, *, complete: bool = True) -> Structure:
    """Return the crystal of a text, in `wyckoff` in its primitive Niggli cell.

    Args:
        text: as `encode` writes it, with any number of decimals.
        fmt: layout and size limit.
        complete: False if generation hit the token limit before the end of the sequence.

    Raises:
        ParseError: if the text is not a crystal, with the first reason that was found.
    """
    return layout_of(fmt).read(text, complete=complete).structure
