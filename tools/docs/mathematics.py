"""Extension of Python-Markdown: formulas become MathML, so pages need no script and no network.

It takes what `pymdownx.arithmatex` has found, so both are in the list of extensions.
"""

from __future__ import annotations

import html
import re
from typing import Any

from latex2mathml.converter import convert
from markdown import Extension, Markdown
from markdown.postprocessors import Postprocessor

_INLINE = re.compile(r'<span class="arithmatex">\\\((.*?)\\\)</span>', re.DOTALL)
_BLOCK = re.compile(r'<div class="arithmatex">\s*\\\[(.*?)\\\]\s*</div>', re.DOTALL)


class _Formulas(Postprocessor):
    """Replaces LaTeX in elements of the class `arithmatex`."""

    def run(self, text: str) -> str:
        """Return the page with each formula as MathML.

        Args:
            text: HTML of a page.
        """
        text = _BLOCK.sub(lambda found: _mathml(found[1], "block"), text)
        return _INLINE.sub(lambda found: _mathml(found[1], "inline"), text)


class Formulas(Extension):
    """Formulas as MathML."""

    def extendMarkdown(self, md: Markdown) -> None:  # noqa: N802  # the name is Markdown's
        """Add the postprocessor, after those that bring back raw HTML.

        Args:
            md: the converter.
        """
        md.postprocessors.register(_Formulas(md), "formulas", -10)


def makeExtension(**settings: Any) -> Formulas:  # noqa: N802
    """Return the extension; Markdown calls this function by its name."""
    return Formulas(**settings)


def _mathml(latex: str, display: str) -> str:
    formula = html.unescape(latex).strip()
    converted = str(convert(formula, display=display))
    if "\\" in converted or "&amp;" in converted:  # left as they were
        raise ValueError(f"latex2mathml does not know a command in {formula!r}")
    return converted
