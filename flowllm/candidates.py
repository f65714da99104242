"""Best of K: several candidates for each crystal that is asked for, of which the best stays.

Likelihoods of different compositions do not tell the better crystal: a text with more atoms has
more tokens and so less probability, the flow's density is one over another number of coordinates,
and no mean per atom or token makes them commensurate. So the candidates of one request share a
composition: the first answers the request and decides it, and the other K - 1 are asked for that
formula and number of atoms besides. Compositions keep the distribution that they have without this,
and the best of K draws moves towards the mode of p(crystal | composition), or towards the ground
state: best-of-n sampling (Stiennon et al. 2020, arXiv 2009.01325), the reward being one of

- `prior`: log p(text | conditions and composition) of the finished crystal, at temperature 1 and
  without the grammar.
- `energy`: minus the energy per atom of the finished crystal, as it is, by a potential. Energies of
  one composition compare whatever the potential's scheme is.
- `flow`: `rfm.log_likelihood` of a refined crystal, the density given the candidate that it came
  from; the density under all K together is that over K plus terms of the other candidates, which
  are nothing where these are further away than the noise of the base is wide.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ase.calculators.calculator import Calculator

from flowllm.crystal import to_atoms
from flowllm.potentials import load_calculator
from flowllm.relax import CALCULATOR_ERRORS
from flowllm.samples import Sample
from llm_prior import Prior, Proposal, composition_conditions, generation_prompt, propose
from llm_prior.scoring import score_texts
from llm_prior.text import encode


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


def prior_scores(
    prior: Prior, conditions: Mapping[str, Any], samples: Sequence[Sample]
) -> list[float]:
    """log p(text | conditions and composition) of each crystal, nats; -inf where there is none."""
    prompts, texts = [], []
    for sample in samples:
        if sample.structure is not None:
            composition = composition_conditions(sample.structure.formula)
            prompts.append(generation_prompt({**conditions, **composition}))
            refined = sample.refinement is not None
            texts.append(encode(sample.structure, prior.fmt) if refined else sample.text)
    found = iter(score_texts(prior, prompts, texts))
    return [
        next(found).log_likelihood if sample.structure is not None else -math.inf
        for sample in samples
    ]


def energy_scores(potential: str, samples: Sequence[Sample]) -> list[float]:
    """Minus the energy of each crystal, eV/atom; -inf where there is none, or no finite energy.

    Args:
        potential: for `load_calculator`, which has tested it.
        samples: with the crystals.
    """
    scores = []
    for sample in samples:
        energy = math.nan
        if sample.structure is not None:
            atoms = to_atoms(sample.structure)
            atoms.calc = _calculator(potential)
            with contextlib.suppress(*CALCULATOR_ERRORS):
                energy = float(atoms.get_potential_energy()) / len(atoms)
        scores.append(-energy if math.isfinite(energy) else -math.inf)
    return scores


@functools.lru_cache(maxsize=1)
def _calculator(potential: str) -> Calculator:
    """Loaded once in each process."""
    return load_calculator(potential, check=False)


def flow_scores(samples: Sequence[Sample]) -> list[float]:
    """log p1 of each refined crystal, nats; -inf where there is none, or no number for it."""
    found = [sample.refinement and sample.refinement.log_likelihood for sample in samples]
    return [
        -math.inf if score is None or math.isnan(score.total) else score.total for score in found
    ]


def choose(groups: Sequence[Sequence[Sample]], scores: Iterable[float]) -> list[list[Sample]]:
    """The candidate with the highest score of each group, alone; the first among equals.

    One with a structure goes before one without, whatever their scores. The answers that the
    others took are counted as its own.

    Args:
        groups: candidates.
        scores: of each candidate, in the order of `flat`.
    """
    numbers = iter(scores)
    chosen = []
    for group in groups:
        ranks = [(s.structure is not None, next(numbers), -k) for k, s in enumerate(group)]
        best = group[-max(ranks)[2]]
        best.attempts = sum(sample.attempts for sample in group)
        best.rejects = dict(sum((Counter(sample.rejects) for sample in group), Counter()))
        chosen.append([best])
    return chosen


def flat(groups: Iterable[Iterable[Sample]]) -> list[Sample]:
    """The candidates of all groups in one list."""
    return list(itertools.chain.from_iterable(groups))
