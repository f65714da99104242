"""Best of K: several candidates for each crystal that is asked for, of which the likeliest stays.

Likelihoods of different compositions do not tell the better crystal: a text with more atoms has
more tokens and so less probability, the flow's density is one over another number of coordinates,
and no mean per atom or token makes them commensurate. So the candidates of one request share a
composition: the first answers the request and decides it, and the other K - 1 are asked for that
formula and number of atoms besides. Compositions keep the distribution that they have without this,
and the likeliest of K draws moves towards the mode of p(crystal | composition): best-of-n sampling
(Stiennon et al. 2020, arXiv 2009.01325) with the model's own likelihood as the reward.

The prior ranks by log p(text | conditions and composition), of its text as it was written: before
refining, at temperature 1 and without the grammar. The flow ranks refined crystals by
`rfm.log_likelihood`, the density given the candidate that each came from; the density under all K
together is that over K plus terms of the other candidates, which are nothing where these are
further away than the noise of the base is wide.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from flowllm.samples import Sample
from llm_prior import Prior, Proposal, composition_conditions, generation_prompt, propose
from llm_prior.scoring import score_texts
from rfm import Refinement


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
    """log p(text | conditions and composition) of each sample, nats; -inf where it has failed."""
    good = [sample for sample in samples if sample.prior_structure is not None]
    prompts = [
        generation_prompt({**conditions, **composition_conditions(s.prior_structure.formula)})
        for s in good
    ]
    found = iter(score_texts(prior, prompts, [sample.text for sample in good]))
    return [
        next(found).log_likelihood if sample.prior_structure is not None else -math.inf
        for sample in samples
    ]


def flow_score(result: Refinement) -> float:
    """log p1 of a refined crystal, nats; -inf where there is none, or no number for it."""
    score = result.log_likelihood
    if score is None or math.isnan(score.total):
        return -math.inf
    return score.total


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
