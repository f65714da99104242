"""Tries of the tokens that write the values of a field.

A trie that depends on the text before it is built at its first use. The most recent ones are kept,
so that in a steady state a query is a dictionary look-up.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any
from weakref import WeakValueDictionary

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from llm_prior.fields import FieldTokens, Kind, angle_ticks
from llm_prior.text import SMALLEST_UNIT_VOLUME_SQUARED, TextFormat

END = -1  # the value in the place of an element that ends the text
_KEPT = 512  # tries of each sort that depend on the text before them


@dataclass(frozen=True, eq=False)
class Legal:
    """The tokens that may come next; places that allow the same tokens share one object.

    Attributes:
        ids: (k,) token ids, ascending.
        only: the token if there is exactly one, else None.
    """

    ids: Tensor
    only: int | None


def legal_of(ids: NDArray[np.int64]) -> Legal:
    """Return token ids as legal tokens.

    Args:
        ids: (k,) token ids, in any order, maybe repeated.
    """
    ids = np.unique(ids)
    return Legal(torch.from_numpy(ids), int(ids[0]) if len(ids) == 1 else None)


class Node:
    """A place in a trie.

    Attributes:
        children: the tokens that may follow inside the field, with the place behind each.
        value: the value that may end here, or None.
        legal: the tokens of the children; None until their first use.
    """

    __slots__ = ("children", "legal", "value")

    def __init__(self, children: dict[int, Node] | None = None, value: int | None = None) -> None:
        self.children = children or {}
        self.value = value
        self.legal: Legal | None = None


class FieldTries:
    """The trie of every field, given the text before it.

    Args:
        tokens: token ids of each value, from `llm_prior.fields.field_tokens`.
        fmt: the text format.
        eos_token_id: ends the text in the place of an element.
    """

    def __init__(self, tokens: FieldTokens, fmt: TextFormat, eos_token_id: int) -> None:
        self._tokens = tokens
        self._eos = eos_token_id
        self._legal: WeakValueDictionary[tuple[int, ...], Legal] = WeakValueDictionary()
        ticks = angle_ticks(fmt)
        self._first_angle = ticks.start
        self._cosines = np.cos(np.radians(np.array(ticks) / 10**fmt.angle_decimals))
        # The caches belong to this object and are freed with it.
        kept = lru_cache(maxsize=_KEPT)
        self.every = kept(self._every)
        self.without = kept(self._without)
        self.element = kept(self._element)
        self.second_angle = kept(self._second_angle)
        self.third_angle = kept(self._third_angle)
        self.legal_at_end = kept(self._legal_at_end)
        self._angles = kept(self._build_angles)

    # --- legal tokens --------------------------------------------------------------------------

    def legal_inside(self, node: Node) -> Legal:
        """Return the tokens that may follow inside the field.

        Args:
            node: a place in a trie.
        """
        if node.legal is None:
            node.legal = self._legal_of(node.children)
        return node.legal

    def _legal_at_end(self, node: Node, following: Node) -> Legal:
        """Return the tokens of the field and of the next one, where a value may end or go on, as
        N may become Nb. The two are distinct because a field begins with white space."""
        return self._legal_of({**node.children, **following.children})

    def _legal_of(self, tokens: Iterable[int]) -> Legal:
        key = tuple(sorted(tokens))
        legal = self._legal.get(key)
        if legal is None:
            legal = Legal(torch.tensor(key), key[0] if len(key) == 1 else None)
            self._legal[key] = legal
        return legal

    # --- tries ---------------------------------------------------------------------------------

    def _every(self, kind: Kind) -> Node:
        """Return the trie of all values of the field."""
        return self._trie(kind, self._tokens[kind])

    def _without(self, kind: Kind, values: frozenset[int]) -> Node:
        """Return the trie without these values; it shares nodes with the trie of all values."""
        root: Node | None = self.every(kind)
        for value in values:
            if root is not None:
                root = _removed(root, self._tokens[kind][value])
        return root or Node()

    def _element(self, elements: int, may_end: bool) -> Node:
        """Return the trie of these elements (bit i: `SYMBOLS[i]`) and, if allowed, of the end."""
        values = [value for value in self._tokens["element"] if elements >> value & 1]
        root = self._trie("element", values)
        if may_end:
            _insert(root, (self._eos,), END)
        return root

    def _second_angle(self, first: int) -> Node:
        """Return the trie of the angles which, with `first` and some third one, close a cell."""
        cosines = self._cosines
        cos_a = cosines[first - self._first_angle]
        # The determinant is largest at cos c = cos a cos b, so one of the two angles next to that
        # value closes a cell if any does.
        place = np.searchsorted(-cosines, -cos_a * cosines).clip(1, len(cosines) - 1)
        beside = (_closing(cos_a, cosines, cosines[k]) for k in (place - 1, place))
        return self._closing_angles(np.logical_or(*beside))

    def _third_angle(self, first: int, second: int) -> Node:
        """Return the trie of the angles that close a cell with these two."""
        cosines, start = self._cosines, self._first_angle
        return self._closing_angles(
            _closing(cosines[first - start], cosines[second - start], cosines)
        )

    def _closing_angles(self, closing: Any) -> Node:
        # An interval, because the determinant is concave in each cosine; many pairs share one.
        places = np.flatnonzero(closing) + self._first_angle
        return self._angles(int(places[0]), int(places[-1]))

    def _build_angles(self, low: int, high: int) -> Node:
        return self._trie("angle", range(low, high + 1))

    def _trie(self, kind: Kind, values: Iterable[int]) -> Node:
        root = Node()
        for value in values:
            _insert(root, self._tokens[kind][value], value)
        return root


def _closing(cos_a: Any, cos_b: Any, cos_c: Any) -> Any:
    """Return `closes_a_cell` of cosines, with a margin so that rounding cannot make them differ."""
    gram = 1 - cos_a**2 - cos_b**2 - cos_c**2 + 2 * cos_a * cos_b * cos_c
    return gram > SMALLEST_UNIT_VOLUME_SQUARED + 1e-9


def _insert(root: Node, tokens: Sequence[int], value: int) -> None:
    node = root
    for token in tokens:
        node = node.children.setdefault(token, Node())
    node.value = value


def _removed(node: Node, tokens: Sequence[int]) -> Node | None:
    """Return a copy of the trie without one value, or None if nothing is left."""
    children = dict(node.children)
    if tokens:
        child = _removed(children.pop(tokens[0]), tokens[1:])
        if child is not None:
            children[tokens[0]] = child
    value = node.value if tokens else None
    return Node(children, value) if children or value is not None else None
