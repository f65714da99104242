"""The grammar of constrained decoding: the tokens that may follow, so that the text is a crystal.

Each field of the text (`llm_prior.fields`) is a trie of the token sequences with which the
tokenizer writes its values. The text is therefore tokenised exactly as in training, with any
tokenizer: one token per field, one per digit, or anything between. Some fields depend on the text
before them: the third angle closes a cell, an atom does not stand on another, and the elements
meet the conditions (`llm_prior.composition`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from llm_prior.composition import CompositionRule
from llm_prior.errors import PriorError
from llm_prior.fields import Kind, field_tokens
from llm_prior.text import TextFormat
from llm_prior.tries import END, FieldTries, Legal, Node

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Places of the fields in `Cursor`: three lengths, three angles, then the four of each site.
_ELEMENT, _X, _Y, _Z = 6, 7, 8, 9


class Grammar:
    """The tokens that may follow, for one tokenizer and text format.

    Args:
        tokenizer: a fast tokenizer with an end-of-sequence token.
        fmt: the text format.

    Raises:
        PriorError: if the tokenizer does not reproduce the text field by field, or the format has
            too many decimals.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, fmt: TextFormat) -> None:
        if tokenizer.eos_token_id is None:
            raise PriorError("this tokenizer has no eos_token; name one")
        self.fmt = fmt
        self._tokens = field_tokens(tokenizer, fmt)
        self._tries = FieldTries(self._tokens, fmt, tokenizer.eos_token_id)

    def constraint(
        self, conditions: Mapping[str, Any], *, exclude_elements: Sequence[str] = ()
    ) -> Constraint:
        """Return the constraint of a request; all sequences of the request share it.

        Args:
            conditions: values by name. Every text meets `formula`, `elements` and `num_atoms`; the
                other conditions constrain nothing.
            exclude_elements: symbols that are never written.

        Raises:
            PriorError: if no crystal up to `fmt.max_atoms` can meet the conditions.
        """
        rule = CompositionRule.from_conditions(
            conditions, self.fmt.max_atoms, exclude_elements=exclude_elements
        )
        return Constraint(self._tries, rule, self.fmt, max_tokens=self._longest(rule))

    def _longest(self, rule: CompositionRule) -> int:
        most = {kind: max(map(len, tokens.values())) for kind, tokens in self._tokens.items()}
        element = max(
            len(tokens)
            for number, tokens in self._tokens["element"].items()
            if rule.allowed >> number & 1
        )
        cell = most["first_length"] + most["first_angle"] + 2 * (most["length"] + most["angle"])
        site = element + most["first_coord"] + 2 * most["coord"]
        return cell + rule.max_atoms * site + 1


class Constraint:
    """The constraint of one request.

    Attributes:
        rule: constraint on the elements.
        max_tokens: limit on the tokens of an answer, end of sequence included.
    """

    def __init__(
        self, tries: FieldTries, rule: CompositionRule, fmt: TextFormat, *, max_tokens: int
    ) -> None:
        self.rule = rule
        self.max_tokens = max_tokens
        self._tries = tries
        self._fmt = fmt

    def cursor(self) -> Cursor:
        """Return a cursor before the first token of a new sequence."""
        return Cursor(self._tries, self.rule, coord_values=10**self._fmt.coord_decimals)


class Cursor:
    """A place in a sequence that is being written.

    Attributes:
        finished: True once the end of sequence is written.
        is_certain: True: what may be written always meets the conditions.
    """

    is_certain = True

    def __init__(self, tries: FieldTries, rule: CompositionRule, *, coord_values: int) -> None:
        self.finished = False
        self._tries = tries
        self._rule = rule
        self._coord_values = coord_values
        self._field = 0
        self._node = tries.every("first_length")
        self._angles: list[int] = []
        self._counts: dict[int, int] = {}  # atoms of each element, in the order of the blocks
        self._xy: list[int] = []  # of the site that is being written
        self._taken_z: dict[tuple[int, int], set[int]] = {}  # of an x and y
        self._full_y: dict[int, set[int]] = {}  # of an x: the y whose every z is taken
        self._full_x: set[int] = set()  # the x whose every y is full

    def legal(self) -> Legal:
        """Return the tokens that may come next.

        Raises:
            ValueError: if the sequence is finished.
        """
        node = self._node
        if node.value is None:
            return node.legal or self._tries.legal_inside(node)
        if self.finished:
            raise ValueError("the sequence is finished")
        return self._tries.legal_at_end(node, self._following(node.value))

    def candidates(self) -> Legal:
        """Return `legal()`, which costs little in this layout.

        Raises:
            ValueError: if the sequence is finished.
        """
        return self.legal()

    def accepts(self, token: int) -> bool:
        """Return whether one of the `candidates` may come next: each of them may.

        Args:
            token: the token.
        """
        return True

    def advance(self, token: int) -> None:
        """Take a token as written.

        Args:
            token: one of `legal().ids`.

        Raises:
            ValueError: if it is none of them.
        """
        node = self._node.children.get(token)
        if node is None:
            node = self._next_field().children.get(token)
            if node is None:
                raise ValueError(f"token {token} may not come here")
            self._commit(self._node.value)
        self._node = node
        if node.value is not None and not node.children:
            following = self._next_field()
            self._commit(node.value)
            if not self.finished:
                self._node = following

    def _next_field(self) -> Node:
        """Return the trie of the next field if this one may end here, else an empty trie."""
        value = self._node.value
        return Node() if value is None or value == END else self._following(value)

    def _following(self, value: int) -> Node:
        """Return the trie of the next field if this one has the given value."""
        tries, field = self._tries, self._field
        if field < 2:
            return tries.every("length")
        if field == 2:
            return tries.every("first_angle")
        if field == 3:
            return tries.second_angle(value)
        if field == 4:
            return tries.third_angle(self._angles[0], value)
        if field in (5, _Z):
            return tries.element(*self._rule.next_elements(self._counts))
        kind: Kind = "coord"
        if field == _ELEMENT:
            kind, taken = "first_coord", self._full_x
        elif field == _X:
            taken = self._full_y.get(value, set())
        else:
            taken = self._taken_z.get((self._xy[0], value), set())
        return tries.without(kind, frozenset(taken)) if taken else tries.every(kind)

    def _commit(self, value: int | None) -> None:
        """Close the current field with this value."""
        field = self._field
        self._field += 1
        if value is None or value == END:
            self.finished = True
        elif field in (3, 4):
            self._angles.append(value)
        elif field == _ELEMENT:
            self._counts[value] = self._counts.get(value, 0) + 1
            self._xy = []
        elif field in (_X, _Y):
            self._xy.append(value)
        elif field == _Z:
            x, y = self._xy
            self._take_place(x, y, value)
            self._field = _ELEMENT

    def _take_place(self, x: int, y: int, z: int) -> None:
        column = self._taken_z.setdefault((x, y), set())
        column.add(z)
        if len(column) == self._coord_values:
            plane = self._full_y.setdefault(x, set())
            plane.add(y)
            if len(plane) == self._coord_values:
                self._full_x.add(x)
