"""Sample crystals from the prior: prompts in, structures or counted reasons out.

A text that is no crystal, or not the crystal that was asked for, is drawn again, a bounded number
of times. Every draw of a batch is a function of its seed.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from pymatgen.core import Structure
from transformers import GenerationConfig

from llm_prior.errors import PriorError
from llm_prior.model import Prior
from llm_prior.prompts import BY_NAME, generation_prompt, parse_composition, render_elements
from llm_prior.text import ParseError, TextFormat, decode

DEFAULT_TEMPERATURE = 0.7
DEFAULT_TOP_P = 0.9
DEFAULT_ATTEMPTS = 10
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
        rejects: how many of them were refused, by reason code (`RejectReason`, or `other_NAME`
            for a crystal that misses the condition NAME).
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


def check_conditions(conditions: Mapping[str, Any], fmt: TextFormat) -> None:
    """See that a crystal within the size limit can meet the conditions.

    Raises:
        PriorError: unknown condition, bad value, conditions that contradict each other, or more
            atoms than the model writes.
    """
    generation_prompt(conditions)
    if "formula" in conditions:
        unit = _formula_unit(conditions["formula"])
        if unit > fmt.max_atoms:
            raise PriorError(
                f"formula {conditions['formula']} has {unit} atoms, this model writes at most "
                f"{fmt.max_atoms}; give a smaller formula or another model"
            )
        atoms = int(float(conditions.get("num_atoms", unit)))
        if atoms % unit:
            raise PriorError(
                f"{atoms} atoms are no whole number of formula units of "
                f"{conditions['formula']}; give a multiple of {unit}"
            )
    atoms = int(float(conditions.get("num_atoms", fmt.max_atoms)))
    if atoms > fmt.max_atoms:
        raise PriorError(
            f"{conditions['num_atoms']} atoms are too many, this model writes at most "
            f"{fmt.max_atoms}; give a smaller cell or another model"
        )
    if "elements" in conditions:
        elements = render_elements(conditions["elements"])
        if len(elements.split(", ")) > atoms:
            raise PriorError(
                f"a crystal of {atoms} atoms cannot have the elements {elements}; give fewer "
                "elements or more atoms"
            )
        if "formula" in conditions:
            formula = parse_composition(conditions["formula"])
            if render_elements(map(str, formula)) != elements:
                raise PriorError(
                    f"formula {conditions['formula']} is not of the elements {elements}; "
                    "give the formula alone"
                )


def check_settings(temperature: float, top_p: float, max_attempts: int) -> None:
    """See that a distribution to draw from is described.

    Raises:
        PriorError: temperature negative or not finite, top_p outside (0, 1], or no attempt.
    """
    if not 0 <= temperature < math.inf:  # refuses NaN as well
        raise PriorError(f"temperature {temperature} is no number from 0; the usual is 0.7 to 1")
    if not 0 < top_p <= 1:
        raise PriorError(f"top_p {top_p} is not in (0, 1]; 1 draws from all tokens")
    if max_attempts < 1:
        raise PriorError(f"max_attempts {max_attempts} must be at least 1")


def _formula_unit(formula: Any) -> int:
    """Atoms of the smallest formula unit: 1 for O, whose reduced formula is written O2."""
    amounts = [int(amount) for amount in parse_composition(formula).values()]
    return sum(amounts) // math.gcd(*amounts)


def propose(
    prior: Prior,
    requests: Sequence[Mapping[str, Any]],
    *,
    seed: int,
    temperature: float = DEFAULT_TEMPERATURE,
    top_p: float = DEFAULT_TOP_P,
    max_attempts: int = DEFAULT_ATTEMPTS,
) -> list[Proposal]:
    """Draw one crystal for each request, all in one batch.

    Args:
        prior: the model.
        requests: the conditions of each crystal; see `llm_prior.prompts.ATTRIBUTES`.
        seed: decides every draw of this batch.
        temperature: divides the logits; 0 takes the likeliest token.
        top_p: nucleus of the distribution that is drawn from (Holtzman et al. 2019).
        max_attempts: draws per request.

    Returns:
        One proposal per request, in order.

    Raises:
        PriorError: bad conditions or settings, or a prompt longer than the context.
    """
    check_settings(temperature, top_p, max_attempts)
    if seed < 0:
        raise PriorError(f"seed {seed} is negative; give 0 or more")
    for conditions in requests:
        check_conditions(conditions, prior.fmt)
    proposals = [Proposal(prompt=generation_prompt(conditions)) for conditions in requests]
    open_ones = list(range(len(requests)))
    for attempt in range(max_attempts):
        if not open_ones:
            break
        answers = generate_texts(
            prior,
            [proposals[i].prompt for i in open_ones],
            seed=int(np.random.SeedSequence([seed, attempt]).generate_state(1)[0]),
            temperature=temperature,
            top_p=top_p,
        )
        still_open = []
        for i, (text, complete) in zip(open_ones, answers, strict=True):
            proposal = proposals[i]
            proposal.text = text
            proposal.attempts += 1
            reason = _judge(proposal, requests[i], complete, prior.fmt)
            if reason is not None:
                proposal.rejects[reason] += 1
                still_open.append(i)
        open_ones = still_open
        if temperature == 0:  # the likeliest text stays the same
            break
    return proposals


def _judge(
    proposal: Proposal, conditions: Mapping[str, Any], complete: bool, fmt: TextFormat
) -> str | None:
    """Accept the text of a proposal, or say why not."""
    try:
        structure = decode(proposal.text, fmt, complete=complete)
    except ParseError as error:
        return error.reason.value
    for name, value in conditions.items():
        attribute = BY_NAME[name]
        if attribute.derive is None:
            continue
        if attribute.render(attribute.derive(structure)) != attribute.render(value):
            return f"other_{name}"
    proposal.structure = structure
    return None


@torch.inference_mode()
def generate_texts(
    prior: Prior,
    prompts: Sequence[str],
    *,
    seed: int,
    temperature: float,
    top_p: float,
) -> list[tuple[str, bool]]:
    """Continue each prompt up to the end of the sequence.

    Returns:
        (text, complete) per prompt; complete is False where the token limit cut it off.

    Raises:
        PriorError: a prompt leaves no room for a crystal in the model's context.
    """
    tokenizer = prior.tokenizer
    start = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    ids = [start + tokenizer(p, add_special_tokens=False)["input_ids"] for p in prompts]
    longest = max(len(row) for row in ids)
    room = longest_answer(prior)
    if longest + room > prior.context_length:
        raise PriorError(
            f"a prompt of {longest} tokens and a crystal of up to {room} exceed the context "
            f"of {prior.context_length} tokens; give fewer conditions"
        )
    input_ids = torch.tensor(
        [[tokenizer.pad_token_id] * (longest - len(row)) + row for row in ids],
        device=prior.device,
    )  # (B, T), padded on the left
    attention_mask = torch.tensor(
        [[0] * (longest - len(row)) + [1] * len(row) for row in ids], device=prior.device
    )
    settings = GenerationConfig(
        max_new_tokens=room,
        do_sample=temperature > 0,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        **({"temperature": temperature, "top_p": top_p, "top_k": 0} if temperature > 0 else {}),
    )
    devices = [prior.device] if prior.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        output = prior.model.generate(
            input_ids=input_ids, attention_mask=attention_mask, generation_config=settings
        )
    answers = []
    for row in output[:, longest:].tolist():
        complete = tokenizer.eos_token_id in row
        if complete:
            row = row[: row.index(tokenizer.eos_token_id)]
        answers.append((tokenizer.decode(row, skip_special_tokens=True), complete))
    return answers


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
