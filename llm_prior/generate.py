"""Sample crystals from the prior: conditions in, structures or counted reasons out.

By default only text that decodes to what was asked for can be written (`llm_prior.grammar`).
Without that, a text that is no crystal, or another one, is drawn again, a bounded number of times.
Every draw is a function of the seed, the place of the request and the attempt.
"""

from __future__ import annotations

import logging
import math
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from pymatgen.core import Structure

from llm_prior.composition import CompositionRule
from llm_prior.dataset import TaskMix
from llm_prior.decoding import Answer, decode_answers
from llm_prior.errors import PriorError
from llm_prior.grammar import Constraint
from llm_prior.model import Prior
from llm_prior.prompts import BY_NAME, generation_prompt, parse_composition
from llm_prior.text import ParseError, TextFormat, decode, site_symbols

logger = logging.getLogger(__name__)

DEFAULT_TEMPERATURE = 0.7
DEFAULT_TOP_P = 0.9
DEFAULT_ATTEMPTS = 10
_COLDEST = 1e-6
DEFAULT_SLOTS = 64
# Room beyond the longest crystal's tokens, for numbers that take more tokens than usual.
_SPARE_TOKENS = 8


@dataclass(kw_only=True)
class Proposal:
    """What the prior answered to one prompt.

    Attributes:
        prompt: as the model saw it.
        text: the last answer, accepted or not.
        structure: the crystal, or None if no attempt was accepted.
        attempts: answers that were drawn.
        rejects: how many of them were refused, by reason code (`RejectReason`, `other_NAME` for a
            crystal that misses the condition NAME, `excluded_element`, or what `refuse` said).
    """

    prompt: str
    text: str = ""
    structure: Structure | None = None
    attempts: int = 0
    rejects: Counter[str] = field(default_factory=Counter)


def composition_conditions(formula: Any) -> dict[str, Any]:
    """The conditions that fix every atom: the reduced formula and the number of atoms.

    Raises:
        PriorError: not a formula.
    """
    composition = parse_composition(formula)
    return {"formula": composition.reduced_formula, "num_atoms": int(composition.num_atoms)}


def check_conditions(
    conditions: Mapping[str, Any], fmt: TextFormat, *, exclude_elements: Sequence[str] = ()
) -> None:
    """See that a crystal within the size limit can meet the conditions.

    Raises:
        PriorError: unknown condition, bad value, conditions that contradict each other or the
            excluded elements, or more atoms than the model writes.
    """
    CompositionRule.from_conditions(conditions, fmt.max_atoms, exclude_elements=exclude_elements)


def warn_of_untrained(
    prior: Prior, conditions: Collection[str] = (), *, infill: bool = False
) -> None:
    """Log what a prompt asks that the model has never seen, where it is recorded what it saw: the
    names of its conditions, no condition at all, or infilling."""
    known = prior.info.get("conditions")
    unknown = [name for name in conditions if known is not None and name not in known]
    if tasks := prior.info.get("recipe", {}).get("tasks"):
        mix = TaskMix(**tasks)
        if infill and not mix.infill:
            unknown.append("infilling")
        if not (infill or conditions or mix.has_unconditional):
            unknown.append("a prompt without conditions")
    if unknown:
        logger.warning(
            "this model was never trained with %s and will not know what it means",
            " and ".join(unknown),
        )


def check_settings(temperature: float, top_p: float, max_attempts: int) -> None:
    """See that a distribution to draw from is described.

    Raises:
        PriorError: temperature negative, not finite or so small that logits divided by it
            overflow, top_p outside (0, 1], or no attempt.
    """
    if not 0 <= temperature < math.inf:  # refuses NaN as well
        raise PriorError(f"temperature {temperature} is no number from 0; the usual is 0.7 to 1")
    if 0 < temperature < _COLDEST:
        raise PriorError(f"temperature {temperature} is too small; 0 takes the likeliest token")
    if not 0 < top_p <= 1:
        raise PriorError(f"top_p {top_p} is not in (0, 1]; 1 draws from all tokens")
    if max_attempts < 1:
        raise PriorError(f"max_attempts {max_attempts} must be at least 1")


def propose(
    prior: Prior,
    requests: Sequence[Mapping[str, Any]],
    *,
    seed: int,
    temperature: float = DEFAULT_TEMPERATURE,
    top_p: float = DEFAULT_TOP_P,
    max_attempts: int = DEFAULT_ATTEMPTS,
    constrain: bool = True,
    exclude_elements: Sequence[str] = (),
    refuse: Callable[[Structure], str | None] | None = None,
    slots: int = DEFAULT_SLOTS,
) -> list[Proposal]:
    """Draw one crystal for each request.

    Args:
        prior: the model.
        requests: the conditions of each crystal; see `llm_prior.prompts.ATTRIBUTES`.
        seed: decides, with the place of a request, every draw.
        temperature: divides the logits; 0 takes the likeliest token.
        top_p: nucleus of the distribution that is drawn from (Holtzman et al. 2019).
        max_attempts: draws per request.
        constrain: let the model write only what decodes and has the formula, elements and number
            of atoms that were asked for. Otherwise what misses them is drawn again.
        exclude_elements: symbols of elements that no crystal may have.
        refuse: a reason to draw a crystal again that is all that was asked for, or None.
        slots: texts that are written at the same time; bounds the memory.

    Returns:
        One proposal per request, in order.

    Raises:
        PriorError: bad conditions or settings, or a prompt longer than the context.
    """
    check_settings(temperature, top_p, max_attempts)
    if seed < 0:
        raise PriorError(f"seed {seed} is negative; give 0 or more")
    if slots < 1:
        raise PriorError(f"slots {slots} must be at least 1")
    excluded = frozenset(exclude_elements)
    kinds: dict[str, _Kind] = {}
    requested = []
    free_room = longest_answer(prior)
    for conditions in requests:
        key = repr(conditions)
        if key not in kinds:
            constraint = None
            if constrain:
                constraint = prior.grammar.constraint(conditions, exclude_elements=exclude_elements)
            else:
                check_conditions(conditions, prior.fmt, exclude_elements=exclude_elements)
            kinds[key] = _Kind.of(
                prior, conditions, constraint, constraint.max_tokens if constraint else free_room
            )
        requested.append(kinds[key])
    proposals = [Proposal(prompt=kind.prompt) for kind in requested]
    queue = deque(kind.question(seed, place, 0) for place, kind in enumerate(requested))
    for place, text, complete in generate_texts(
        prior, queue, slots=slots, temperature=temperature, top_p=top_p
    ):
        proposal = proposals[place]
        proposal.text = text
        proposal.attempts += 1
        reason = _judge(proposal, requested[place].wanted, complete, prior.fmt, excluded, refuse)
        if reason is not None:
            proposal.rejects[reason] += 1
            # At temperature 0 the answer would be the same.
            if proposal.attempts < max_attempts and temperature > 0:
                queue.append(requested[place].question(seed, place, proposal.attempts))
    return proposals


@dataclass(kw_only=True, eq=False)
class Question(Answer):
    """A text to be written, for the request at `place`."""

    place: int


def generate_texts(
    prior: Prior, queue: deque[Question], *, slots: int, temperature: float, top_p: float
) -> Iterator[tuple[int, str, bool]]:
    """Write the texts of a queue, to which more may be appended meanwhile.

    Yields:
        (place, text, complete); complete is False where the token limit cut the text off.
    """
    for question in decode_answers(
        prior.model,
        queue,
        eos_token_id=prior.tokenizer.eos_token_id,
        slots=slots,
        temperature=temperature,
        top_p=top_p,
    ):
        text = prior.tokenizer.decode(question.tokens, skip_special_tokens=True)
        yield question.place, text, question.complete


@dataclass(frozen=True)
class _Kind:
    """What requests of the same conditions share."""

    prompt: str
    wanted: Mapping[str, str]  # conditions that a structure can be held against, as in the prompt
    tokens: tuple[int, ...]
    room: int  # most tokens of an answer
    constraint: Constraint | None

    @classmethod
    def of(
        cls,
        prior: Prior,
        conditions: Mapping[str, Any],
        constraint: Constraint | None,
        room: int,
    ) -> _Kind:
        prompt = generation_prompt(conditions)
        wanted = {
            name: BY_NAME[name].render(value)
            for name, value in conditions.items()
            if BY_NAME[name].derive is not None
        }
        tokens = prior.tokenizer(prompt, add_special_tokens=False)["input_ids"]
        if prior.tokenizer.bos_token_id is not None:
            tokens = [prior.tokenizer.bos_token_id, *tokens]
        if len(tokens) + room > prior.context_length:
            raise PriorError(
                f"a prompt of {len(tokens)} tokens and a crystal of up to {room} exceed the "
                f"context of {prior.context_length} tokens; give fewer conditions"
            )
        return cls(prompt, wanted, tuple(tokens), room, constraint)

    def question(self, seed: int, place: int, attempt: int) -> Question:
        """A text to be written, with draws of its own."""
        sequence = np.random.SeedSequence(seed, spawn_key=(place, attempt))
        return Question(
            place=place,
            prompt=self.tokens,
            uniforms=np.random.default_rng(sequence).random(self.room),
            cursor=None if self.constraint is None else self.constraint.cursor(),
        )


def _judge(
    proposal: Proposal,
    wanted: Mapping[str, str],
    complete: bool,
    fmt: TextFormat,
    excluded: frozenset[str],
    refuse: Callable[[Structure], str | None] | None,
) -> str | None:
    """Accept the text of a proposal, or say why not."""
    try:
        structure = decode(proposal.text, fmt, complete=complete)
    except ParseError as error:
        return error.reason.value
    for name, value in wanted.items():
        attribute = BY_NAME[name]
        if attribute.render(attribute.derive(structure)) != value:
            return f"other_{name}"
    if not excluded.isdisjoint(site_symbols(structure)):
        return "excluded_element"
    if refuse is not None and (reason := refuse(structure)):
        return reason
    proposal.structure = structure
    return None


def longest_answer(prior: Prior) -> int:
    """Upper bound on the tokens of a crystal's text and its end of sequence."""
    fmt = prior.fmt
    coordinate = f"{0.88:.{fmt.coord_decimals}f}"
    site = "\nRf\n" + " ".join([coordinate] * 3)
    cell = " ".join([f"{38.8:.{fmt.length_decimals}f}"] * 3)
    angles = " ".join([f"{118.8:.{fmt.angle_decimals}f}"] * 3)
    text = cell + "\n" + angles + site * fmt.max_atoms
    tokens = prior.tokenizer(text, add_special_tokens=False)["input_ids"]
    return len(tokens) + 1 + _SPARE_TOKENS
