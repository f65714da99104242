"""Sampling of crystals from the prior: conditions in, structures or counted reasons out.

By default the model can write only text that decodes to a crystal with the requested atoms
(`llm_prior.grammar`). Without that constraint, a text that is not such a crystal is drawn again, a
bounded number of times. Every draw is a function of the seed, the index of the request and the
attempt.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from pymatgen.core import Structure

from llm_prior.config import (
    DEFAULT_ATTEMPTS,
    DEFAULT_GUIDANCE,
    DEFAULT_SLOTS,
    DEFAULT_TEMPERATURE,
    DEFAULT_TOP_P,
    check_guidance,
    check_seed,
    check_settings,
    check_unconditional,
)
from llm_prior.decoding import Answer, decode_answers
from llm_prior.errors import PriorError
from llm_prior.layouts import TextConstraint, TextCursor, TextLayout
from llm_prior.model import Prior
from llm_prior.prompts import BY_NAME
from llm_prior.serving.client import ServedPrior
from llm_prior.text import ParseError, site_symbols

if TYPE_CHECKING:
    from llm_prior.wyckoff.crystal import WyckoffCrystal

# Room beyond the longest crystal's tokens, for numbers that take more tokens than usual.
_SPARE_TOKENS = 8
_SETTLED = 0  # spawn key of the draws of conditions; those of texts are one shorter


@dataclass(kw_only=True)
class Proposal:
    """The prior's answer to one request.

    Attributes:
        prompt: text that the model continued; with guidance the one of the two with conditions.
        text: the last answer, accepted or not.
        structure: the crystal, or None if no attempt was accepted.
        crystal: its space group, orbits and free parameters, if the layout of the text has them;
            `crystal.site_orbits()` gives the orbit of each site of `structure`.
        attempts: number of answers drawn by the call.
        rejects: number of rejected answers by reason: a `RejectReason` or `WyckoffReject`,
            `other_NAME` for a crystal that misses the condition NAME, `near_atoms` (`wyckoff`, in a
            cell that is too crowded), `excluded_element`, or a reason from `refuse`.
    """

    prompt: str
    text: str = ""
    structure: Structure | None = None
    crystal: WyckoffCrystal | None = None
    attempts: int = 0
    rejects: Counter[str] = field(default_factory=Counter)


def propose(
    prior: Prior,
    requests: Sequence[Mapping[str, Any]],
    *,
    seed: int,
    temperature: float = DEFAULT_TEMPERATURE,
    top_p: float = DEFAULT_TOP_P,
    guidance: float = DEFAULT_GUIDANCE,
    max_attempts: int = DEFAULT_ATTEMPTS,
    constrain: bool = True,
    exclude_elements: Sequence[str] = (),
    refuse: Callable[[Structure], str | None] | None = None,
    slots: int = DEFAULT_SLOTS,
    indices: Sequence[int] | None = None,
    first_attempts: Sequence[int] | None = None,
    on_finished: Callable[[int], None] | None = None,
) -> list[Proposal]:
    """Draw one crystal for each request.

    Args:
        prior: the model.
        requests: conditions of each crystal; see `llm_prior.prompts.ATTRIBUTES`.
        seed: seed of the random numbers.
        temperature: divides the logits; 0 takes the likeliest token.
        top_p: probability of the nucleus from which a token is drawn (Holtzman et al. 2019,
            arXiv 1904.09751).
        guidance: weight W of the conditions in the prompt (classifier-free guidance, Ho & Salimans
            2022, arXiv 2207.12598). A token is drawn from the logits u + W (c - u), where c are
            those after the prompt and u those after the prompt without any condition. 1 is the
            prompt alone. 0 is the prompt without conditions; `constrain` enforces what it can.
        max_attempts: draws per request.
        constrain: let the model write only text that decodes to a crystal with the requested
            formula, elements and number of atoms, in the layout `wyckoff` with the requested space
            group too. Without it, a crystal that misses them is drawn again.
        exclude_elements: symbols of elements that no crystal may have.
        refuse: returns a reason to draw a crystal again that meets all conditions, or None to
            accept it.
        slots: texts that are written at the same time; bounds the memory.
        indices: number of each request in the whole run, 0 or more; None is 0 to n - 1. The draws
            of request k are a function of (seed, indices[k], attempt), so batches do not matter.
        first_attempts: number of the first attempt of each request, 0 or more; None is 0. Attempts
            before it belong to earlier calls, whose crystals were of no use in the end, and count
            among `max_attempts`.
        on_finished: is called with 1 whenever a request is accepted or given up.

    Returns:
        One proposal per request, in order.

    Raises:
        PriorError: if conditions or settings are bad, or a prompt is longer than the context, or
            with guidance other than 1 if a prompt has no condition or the model was trained with
            conditions only.
    """
    check_settings(temperature, top_p, max_attempts)
    check_guidance(guidance)
    if guidance != 1:
        check_unconditional(prior.info)
    check_seed(seed)
    if indices is None:
        indices = range(len(requests))
    if len(indices) != len(requests):
        raise PriorError(
            f"{len(indices)} indices for {len(requests)} requests; give one index for each"
        )
    if len(indices) > 0 and min(indices) < 0:
        raise PriorError(f"index {min(indices)} is negative; give indices of 0 or more")
    if slots < 1:
        raise PriorError(f"slots {slots} must be at least 1")
    firsts = [0] * len(requests) if first_attempts is None else first_attempts
    if len(firsts) != len(requests):
        raise PriorError(
            f"{len(firsts)} first attempts for {len(requests)} requests; give one for each"
        )
    for first in firsts:
        if not 0 <= first < max_attempts:
            raise PriorError(
                f"first attempt {first} is not in 0 to {max_attempts - 1}; raise max_attempts"
            )
    excluded = frozenset(exclude_elements)
    kinds: dict[str, _Kind] = {}
    requested = []
    free_room = longest_answer(prior)
    for index, request in zip(indices, requests, strict=True):
        sequence = np.random.SeedSequence(seed, spawn_key=(index, _SETTLED, 0))
        conditions = prior.layout.settle(request, np.random.default_rng(sequence), exclude_elements)
        key = repr(conditions)
        if key not in kinds:
            constraint = None
            if constrain:
                constraint = prior.grammar.constraint(conditions, exclude_elements=exclude_elements)
            else:
                prior.layout.check(conditions, exclude_elements)
            room = constraint.max_tokens if constraint else free_room
            kinds[key] = _Kind.of(prior, conditions, constraint, room, guidance, exclude_elements)
        requested.append(kinds[key])
    proposals = [Proposal(prompt=kind.prompt) for kind in requested]

    cursors: dict[int, TextCursor | None] = {}  # of the text that is being written

    def question(place: int) -> Question:
        attempt = firsts[place] + proposals[place].attempts
        sequence = np.random.SeedSequence(seed, spawn_key=(indices[place], attempt))
        asked = requested[place].question(place, np.random.default_rng(sequence))
        cursors[place] = asked.cursor
        return asked

    # Long texts first: the last ones to be finished have few companions.
    order = sorted(range(len(requested)), key=lambda place: -requested[place].room)
    queue = deque(question(place) for place in order)
    for place, text, complete in generate_texts(
        prior, queue, slots=slots, temperature=temperature, top_p=top_p, guidance=guidance
    ):
        proposal = proposals[place]
        proposal.text = text
        proposal.attempts += 1
        cursor = cursors.pop(place)
        reason = _judge(
            proposal, requested[place].wanted, complete, prior.layout, cursor, excluded, refuse
        )
        if reason is not None:
            proposal.rejects[reason] += 1
            # At temperature 0 the answer would be the same.
            if firsts[place] + proposal.attempts < max_attempts and temperature > 0:
                queue.append(question(place))
                continue
        if on_finished is not None:
            on_finished(1)
    return proposals


@dataclass(kw_only=True, eq=False)
class Question(Answer):
    """A text to be written.

    Attributes:
        place: index of its request in the call.
        cursor: constrains the tokens; None allows every token.
        conditions: what the cursor was made of, for a server with a grammar of its own: values by
            name as canonical text; None allows every token.
        exclude_elements: symbols that are never written.
    """

    place: int
    cursor: TextCursor | None = None
    conditions: Mapping[str, str] | None = None
    exclude_elements: Sequence[str] = ()


def generate_texts(
    prior: Prior,
    queue: deque[Question],
    *,
    slots: int,
    temperature: float,
    top_p: float,
    guidance: float = DEFAULT_GUIDANCE,
) -> Iterator[tuple[int, str, bool]]:
    """Write the texts of a queue.

    Args:
        prior: the model.
        queue: is emptied; the consumer may append questions.
        slots: texts that are written at the same time.
        temperature: see `propose`.
        top_p: see `propose`.
        guidance: see `propose`.

    Yields:
        (place, text, complete); complete is False if the token limit cut the text off.

    Raises:
        PriorError: if the model computes NaN, or its server fails.
    """
    answers: Iterator[Question]
    if isinstance(prior, ServedPrior):
        if guidance != 1:
            raise PriorError(
                f"guidance {guidance:g} is not available with engine vllm; leave guidance out, "
                "or load the prior with the engine plain"
            )
        answers = prior.server.decode_answers(queue, temperature=temperature, top_p=top_p)
    else:
        answers = decode_answers(
            prior.decoder,
            queue,
            eos_token_id=prior.words.eos_token_id,
            slots=slots,
            temperature=temperature,
            top_p=top_p,
            guidance=guidance,
        )
    for question in answers:
        text = prior.words.decode(question.tokens, skip_special_tokens=True)
        yield question.place, str(text), question.complete


@dataclass(frozen=True)
class _Kind:
    """The prompts, limits and constraint that requests of the same conditions share."""

    prompt: str
    wanted: Mapping[str, str]  # conditions as canonical text
    tokens: tuple[int, ...]
    room: int  # limit on the tokens of an answer
    constraint: TextConstraint | None
    exclude_elements: Sequence[str]
    unconditional: tuple[int, ...] | None  # None without guidance

    @classmethod
    def of(
        cls,
        prior: Prior,
        conditions: Mapping[str, Any],
        constraint: TextConstraint | None,
        room: int,
        guidance: float,
        exclude_elements: Sequence[str],
    ) -> _Kind:
        prompt = prior.layout.prompt(conditions)
        unconditional = None
        if guidance != 1:
            without = prior.layout.prompt({})
            if prompt == without:
                raise PriorError(
                    f"guidance {guidance:g} weighs the conditions of the prompt, and this one has "
                    "none; give a condition, or leave guidance out"
                )
            unconditional = _prompt_tokens(prior, without)
            prompt = prompt if guidance else without
        wanted = {name: BY_NAME[name].render(value) for name, value in conditions.items()}
        tokens = _prompt_tokens(prior, prompt)
        if len(tokens) + room > prior.context_length:
            raise PriorError(
                f"a prompt of {len(tokens)} tokens and a crystal of up to {room} exceed the "
                f"context of {prior.context_length} tokens; give fewer conditions"
            )
        excluded = list(exclude_elements)
        return cls(prompt, wanted, tokens, room, constraint, excluded, unconditional)

    def question(self, place: int, rng: np.random.Generator) -> Question:
        return Question(
            place=place,
            prompt=self.tokens,
            unconditional=self.unconditional,
            uniforms=rng.random(self.room),
            cursor=None if self.constraint is None else self.constraint.cursor(),
            conditions=None if self.constraint is None else self.wanted,
            exclude_elements=self.exclude_elements,
        )


def _prompt_tokens(prior: Prior, prompt: str) -> tuple[int, ...]:
    tokens = prior.words(prompt, add_special_tokens=False)["input_ids"]
    if prior.words.bos_token_id is not None:
        tokens = [prior.words.bos_token_id, *tokens]
    return tuple(tokens)


def _judge(
    proposal: Proposal,
    wanted: Mapping[str, str],
    complete: bool,
    layout: TextLayout,
    cursor: TextCursor | None,
    excluded: frozenset[str],
    refuse: Callable[[Structure], str | None] | None,
) -> str | None:
    """Accept the text of a proposal, or return the reason for its rejection."""
    try:
        reading = layout.read(proposal.text, complete=complete)
    except ParseError as error:
        return error.reason.value
    if (reason := layout.refusal(reading, wanted, cursor)) is not None:
        return reason
    if not excluded.isdisjoint(site_symbols(reading.structure)):
        return "excluded_element"
    reading = layout.as_requested(reading, wanted)
    if refuse is not None and (reason := refuse(reading.structure)):
        return reason
    proposal.structure, proposal.crystal = reading.structure, reading.crystal
    return None


def longest_answer(prior: Prior) -> int:
    """Return an upper bound on the tokens of a crystal's text and its end of sequence.

    Args:
        prior: the model.
    """
    tokens = prior.words(prior.layout.longest_text(), add_special_tokens=False)["input_ids"]
    return len(tokens) + 1 + _SPARE_TOKENS
