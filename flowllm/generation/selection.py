"""Best of K: several candidates for each crystal, of which the best one is kept.

Likelihoods of different compositions cannot be compared: a text with more atoms has more tokens and
so less probability, and the density of the flow has another number of coordinates. So all
candidates of a crystal share one composition: the first answers the request and decides it, the
other K - 1 are requested with its formula and number of atoms. Compositions keep their
distribution, and the best of K draws moves towards the mode of p(crystal | composition), or towards
the ground state. This is best-of-n sampling (Stiennon et al. 2020, arXiv 2009.01325) with one of
these rewards:

- `prior`: log p(text | conditions and composition) of the finished crystal in its Niggli cell, at
  temperature 1 and without the grammar.
- `energy`: minus the energy per atom of the finished crystal by a potential. Energies of one
  composition can be compared, whatever the scheme of the potential is.
- `flow`: `rfm.log_likelihood` of a refined crystal: the density given its own candidate. The
  density under all K candidates is this one over K, plus terms of the other candidates, which
  vanish if these are further away than the noise of the base is wide.
"""

from __future__ import annotations

import itertools
import logging
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pymatgen.core import Structure

from flowllm.crystals.cells import reduce_cell
from flowllm.crystals.crystal import to_atoms
from flowllm.energy.calculators import known_elements, load_calculator
from flowllm.energy.minimization import CALCULATOR_ERRORS
from flowllm.errors import InvalidCrystal, one_line
from flowllm.generation.sample import Sample
from flowllm.metrics.validity import structural_validity
from flowllm.runs.sharded import batch_seed
from llm_prior import Prior, PriorError, Proposal, composition_conditions, propose
from llm_prior.scoring import score_texts

if TYPE_CHECKING:
    from ase.calculators.calculator import Calculator

logger = logging.getLogger(__name__)

_CANDIDATES = 0  # spawn key of the seed of all candidates but the first; 1, 2, ... see `pipeline`


def add_candidates(
    prior: Prior,
    proposals: Sequence[Proposal],
    conditions: Mapping[str, Any],
    best_of: int,
    *,
    seed: int,
    indices: Sequence[int],
    first_attempts: Sequence[int],
    **options: Any,
) -> list[list[Proposal]]:
    """Return each proposal with `best_of` - 1 further ones of its composition.

    A failed proposal stays alone.

    Args:
        prior: the model.
        proposals: answers to `conditions`.
        conditions: the conditions that all requests share.
        best_of: candidates of each crystal, the proposal included.
        seed: seed of the run.
        indices: position of each proposal in the run.
        first_attempts: of each proposal; see `llm_prior.propose`.
        **options: further arguments of `llm_prior.propose`.

    Returns:
        The candidates of each proposal, itself first.
    """
    if best_of == 1:
        return [[proposal] for proposal in proposals]
    requests: list[dict[str, Any]] = []
    numbers: list[int] = []
    firsts: list[int] = []
    for index, first, proposal in zip(indices, first_attempts, proposals, strict=True):
        if proposal.structure is not None:
            composition = composition_conditions(proposal.structure.formula)
            requests += [{**conditions, **composition}] * (best_of - 1)
            numbers += range(index * (best_of - 1), (index + 1) * (best_of - 1))
            firsts += [first] * (best_of - 1)
    more = iter(
        propose(
            prior,
            requests,
            seed=batch_seed(seed, _CANDIDATES),
            indices=numbers,
            first_attempts=firsts,
            **options,
        )
    )
    return [
        [proposal, *(itertools.islice(more, best_of - 1) if proposal.structure is not None else ())]
        for proposal in proposals
    ]


@dataclass(frozen=True)
class RankingPotential:
    """A potential whose energies rank.

    Attributes:
        name: as `flowllm.energy.calculators.load_calculator` takes it.
        calculator: the loaded potential.
        elements: symbols of the elements that it has learnt; None if it does not tell.
    """

    name: str
    calculator: Calculator
    elements: frozenset[str] | None

    @classmethod
    def load(cls, name: str, *, check: bool = True) -> RankingPotential:
        """Load a potential.

        Args:
            name: as `flowllm.energy.calculators.load_calculator` takes it.
            check: test it.

        Raises:
            UserError: if there is no such potential, or it gives wrong energies.
        """
        return cls(name, load_calculator(name, check=check), known_elements(name))


def prior_scores(
    prior: Prior, conditions: Mapping[str, Any], samples: Sequence[Sample]
) -> list[float]:
    """Return log p(text | conditions and composition) of each crystal in nats.

    It is -inf for a sample without a crystal. The text is written as in training: in the layout
    `sites` it describes the Niggli cell, whose origin refining does not move.

    Args:
        prior: the model.
        conditions: the conditions that all samples share.
        samples: the crystals.
    """
    prompts, texts, scores = [], [], [-math.inf] * len(samples)
    scored = []
    for k, sample in enumerate(samples):
        if sample.structure is None:
            continue
        text = sample.text
        if sample.refinement is not None:
            try:
                text = prior.layout.describe(reduce_cell(sample.structure)).text()
            except (InvalidCrystal, PriorError):  # the latter if no symmetry is found
                continue
        composition = composition_conditions(sample.structure.formula)
        prompts.append(prior.layout.prompt({**conditions, **composition}))
        texts.append(text)
        scored.append(k)
    for k, found in zip(scored, score_texts(prior, prompts, texts), strict=True):
        scores[k] = found.log_likelihood
    return scores


def energy_scores(potential: RankingPotential, samples: Sequence[Sample]) -> list[float]:
    """Return minus the energy of each crystal in eV/atom; -inf without an energy.

    A crystal has no energy if atoms (images included) lie within 0.5 Angstrom of each other, as in
    `flowllm evaluate`, if the potential has not learnt one of its elements, or if the potential
    fails. The log gives the number of such crystals.

    Args:
        potential: the potential.
        samples: the crystals.
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
    """Return the energy in eV/atom; raise `ValueError`, or the potential's error, without one."""
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
    """Return log p_1 of each refined crystal in nats; -inf without a number.

    Args:
        samples: crystals that were refined with their log-likelihoods.
    """
    scores = []
    for sample in samples:
        found = None if sample.refinement is None else sample.refinement.log_likelihood
        scores.append(-math.inf if found is None or math.isnan(found.total) else found.total)
    return scores


def choose(groups: Sequence[Sequence[Sample]], scores: Iterable[float]) -> list[list[Sample]]:
    """Choose the candidate with the highest score of each group; the first one if scores tie.

    A candidate with a structure precedes one without. The texts drawn for the other candidates are
    added to its `attempts` and `rejects`, and its score is kept as `rank_score`.

    Args:
        groups: the candidates of each crystal.
        scores: score of each candidate, in the order of `flat`.

    Returns:
        A group of one candidate for each crystal.
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
    """Return the candidates of all groups in one list.

    Args:
        groups: the candidates of each crystal.
    """
    return list(itertools.chain.from_iterable(groups))
