"""The grammar of a request, remembered: batches of one request share what the grammar has found."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

from llm_prior.composition import CompositionRule
from llm_prior.text import SYMBOLS
from llm_prior.wyckoff.crystal import element_order
from llm_prior.wyckoff.grammar import Grammar
from llm_prior.wyckoff.text import WyckoffFormat

_Unit = tuple[tuple[int, int], ...]


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
    unit: _Unit | None,
    groups: tuple[int, ...] | None,
) -> Grammar:
    rule = replace(rule, unit=None if unit is None else dict(unit))
    if groups is None and unit is not None:
        rank = element_order()
        counts = [count for _, count in sorted(unit, key=lambda item: rank[SYMBOLS[item[0]]])]
        groups = _groups_of_numbers(
            fmt, tuple(counts), rule.multiples, rule.min_atoms, rule.max_atoms
        )
    return Grammar(fmt, rule, groups)


@lru_cache(maxsize=4096)
def _groups_of_numbers(
    fmt: WyckoffFormat,
    counts: tuple[int, ...],
    multiples: frozenset[int],
    min_atoms: int,
    max_atoms: int,
) -> tuple[int, ...]:
    """Return the groups that can hold a formula, which its numbers alone decide.

    Looking for them takes half a second.
    """
    rank = element_order()
    elements = sorted(range(len(SYMBOLS)), key=lambda element: rank[SYMBOLS[element]])
    unit = dict(zip(elements, counts, strict=False))
    every = sum(1 << element for element in unit)
    rule = CompositionRule(
        allowed=every,
        required=every,
        unit=unit,
        multiples=multiples,
        min_atoms=min_atoms,
        max_atoms=max_atoms,
    )
    return tuple(Grammar(fmt, rule).groups)
