"""The grammar of a request, remembered: batches of one request share what the grammar has found."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

from llm_prior.composition import CompositionRule
from llm_prior.wyckoff.grammar import Grammar
from llm_prior.wyckoff.text import WyckoffFormat


def grammar_of(
    fmt: WyckoffFormat, rule: CompositionRule, groups: tuple[int, ...] | None = None
) -> Grammar:
    """Return the fields that a request allows.

    Args:
        fmt: precision and size limit.
        rule: what the conditions ask of the atoms of the primitive cell.
        groups: the space groups that may be written; None for all.

    Raises:
        PriorError: if no crystal of the rule has one of the groups.
    """
    # A mapping cannot be hashed.
    unit = None if rule.unit is None else tuple(rule.unit.items())
    return _remembered(fmt, replace(rule, unit=None), unit, groups)


@lru_cache(maxsize=256)
def _remembered(
    fmt: WyckoffFormat,
    rule: CompositionRule,
    unit: tuple[tuple[int, int], ...] | None,
    groups: tuple[int, ...] | None,
) -> Grammar:
    return Grammar(fmt, replace(rule, unit=None if unit is None else dict(unit)), groups)
