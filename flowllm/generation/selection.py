"""Best of K: several candidates for each crystal that is asked for, of which the best stays.

Likelihoods of different compositions do not tell the better crystal: a text with more atoms has
more tokens and so less probability, the flow's density is one over another number of coordinates,
and no mean per atom or token makes them commensurate. So the candidates of one request share a
composition: the first answers the request and decides it, and the other K - 1 are asked for that
formula and number of atoms besides. Compositions keep the distribution that they have without this,
and the best of K draws moves towards the mode of p(crystal | composition), or towards the ground
state: best-of-n sampling (Stiennon et al. 2020, arXiv 2009.01325), the reward being one of

- `prior`: log p(text | conditions and composition) of the finished crystal in its Niggli cell and
  at its origin, at temperature 1 and without the grammar.
- `energy`: minus the energy per atom of the finished crystal, as it is, by a potential. Energies of
  one composition compare whatever the potential's scheme is.
- `flow`: `rfm.log_likelihood` of a refined crystal, the density given the candidate that it came
  from; the density under all K together is that over K plus terms of the other candidates, which
  are nothing where these are further away than the noise of the base is wide.
"""

from __future__ import annotations

import itertools
import logging
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ase.calculators.calculator import Calculator
from pymatgen.core import Structure

from flowllm.crystals.cells import reduce_cell
from flowllm.crystals.crystal import to_atoms
from flowllm.energy.calculators import known_elements, load_calculator
from flowllm.energy.minimization import CALCULATOR_ERRORS
from flowllm.errors import InvalidCrystal, one_line
from flowllm.generation.sample import Sample
from flowllm.metrics.validity import structural_validity
from llm_prior import Prior, Proposal, composition_conditions, generation_prompt, propose
from llm_prior.scoring import score_texts
from llm_prior.text import encode

logger = logging.getLogger(__name__)


def add_candidates(
    prior: Prior,
    proposals: Sequence[Proposal],
    conditions: Mapping[str, Any],
    best_of: int,
    **options: Any,
) -> list[list[Proposal]]:
    """Each proposal with `best_of` - 1 further ones of its composition; a failed one stays alone.

    Args:
        prior: the model.
        proposals: answers to `conditions`.
        conditions: that all were asked for.
        best_of: candidates for each, the proposal included.
        **options: for `llm_prior.propose`.
    """
    requests = [
        {**conditions, **composition_conditions(proposal.structure.formula)}
        for proposal in proposals
        if proposal.structure is not None
        for _ in range(best_of - 1)
    ]
    more = iter(propose(prior, requests, **options))
    return [
        [proposal, *(itertools.islice(more, best_of - 1) if proposal.structure is not None else ())]
        for proposal in proposals
    ]


@dataclass(frozen=True)
class RankingPotential:
    """A potential whose energies rank.

    Attributes:
        name: as `flowllm.energy.calculators.load_calculator` takes it.
        calculator: loaded.
        elements: symbols that it has learnt; None where it does not say.
    """

    name: str
    calculator: Calculator
    elements: frozenset[str] | None

    @classmethod
    def load(cls, name: str, *, check: bool = True) -> RankingPotential:
        """Load it and, unless that has been done, test it.

        Raises:
            UserError: there is no such potential, or it is wrong.
        """
        return cls(name, load_calculator(name, check=check), known_elements(name))


def prior_scores(
    prior: Prior, conditions: Mapping[str, Any], samples: Sequence[Sample]
) -> list[float]:
    """log p(text | conditions and composition) of each crystal, nats; -inf where there is none.

    The text is that of the Niggli cell, as in training; refining has not moved the origin.
    """
    prompts, texts, scores = [], [], [-math.inf] * len(samples)
    scored = []
    for k, sample in enumerate(samples):
        if sample.structure is None:
            continue
        text = sample.text
        if sample.refinement is not None:
            try:
                text = encode(reduce_cell(sample.structure), prior.fmt)
            except InvalidCrystal:
                continue
        composition = composition_conditions(sample.structure.formula)
        prompts.append(generation_prompt({**conditions, **composition}))
        texts.append(text)
        scored.append(k)
    for k, found in zip(scored, score_texts(prior, prompts, texts), strict=True):
        scores[k] = found.log_likelihood
    return scores


def energy_scores(potential: RankingPotential, samples: Sequence[Sample]) -> list[float]:
    """Minus the energy of each crystal, eV/atom; -inf where there is none.

    A crystal with atoms within 0.5 Angstrom of each other (images included) has none, as in
    `flowllm evaluate`: a potential knows nothing of it. Nor has one with an element that the
    potential has not learnt, or at which it fails. The log tells how many.
    """
    scores, failures = [], []
    for sample in samples:
        score = -math.inf
        if sample.structure is not None:
            try:
                score = -_energy(potential, sample.structure)
            except CALCULATOR_ERRORS as error:
                failures.append(one_line(error))
        scores.append(score)
    if failures:
        logger.warning(
            "%d of %d candidates have no energy by %s; the first: %s",
            *(len(failures), len(samples), potential.name, failures[0]),
        )
    return scores


def _energy(potential: RankingPotential, structure: Structure) -> float:
    """eV/atom; a ValueError, or what the potential raises, where it has none."""
    unknown = (
        set() if potential.elements is None else structure.chemical_system_set - potential.elements
    )
    if unknown:
        raise ValueError(f"it has not learnt {', '.join(sorted(unknown))}")
    if not structural_validity(structure):
        raise ValueError("atoms within 0.5 Angstrom")
    atoms = to_atoms(structure)
    atoms.calc = potential.calculator
    energy = float(atoms.get_potential_energy()) / len(atoms)
    if not math.isfinite(energy):
        raise ValueError(f"its energy is {energy}")
    return energy


def flow_scores(samples: Sequence[Sample]) -> list[float]:
    """log p1 of each refined crystal, nats; -inf where there is none, or no number for it."""
    found = [sample.refinement and sample.refinement.log_likelihood for sample in samples]
    return [
        -math.inf if score is None or math.isnan(score.total) else score.total for score in found
    ]


def choose(groups: Sequence[Sequence[Sample]], scores: Iterable[float]) -> list[list[Sample]]:
    """The candidate with the highest score of each group, alone; the first among equals.

    One with a structure goes before one without, whatever their scores. The answers that the
    others took are counted as its own, and the score is kept.

    Args:
        groups: candidates.
        scores: of each candidate, in the order of `flat`.
    """
    numbers = iter(scores)
    chosen = []
    for group in groups:
        ranks = [(s.structure is not None, next(numbers), -k) for k, s in enumerate(group)]
        _, score, place = max(ranks)
        best = group[-place]
        best.rank_score = score if math.isfinite(score) else None
        best.attempts = sum(sample.attempts for sample in group)
        best.rejects = dict(sum((Counter(sample.rejects) for sample in group), Counter()))
        chosen.append([best])
    return chosen


def flat(groups: Iterable[Iterable[Sample]]) -> list[Sample]:
    """The candidates of all groups in one list."""
    return list(itertools.chain.from_iterable(groups))
