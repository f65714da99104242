"""Structures of one formula: candidates, relaxed if there is a potential, and ranked."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from pymatgen.core import Structure

from flowllm.crystals.cells import reduce_cell
from flowllm.crystals.crystal import Crystal
from flowllm.crystals.symmetry import symmetry_of
from flowllm.energy.calculators import load_calculator
from flowllm.energy.hull import hull_distances
from flowllm.energy.minimization import Relaxation
from flowllm.errors import InvalidCrystal, UserError
from flowllm.metrics.validity import structural_validity
from flowllm.prediction.candidates import (
    Candidate,
    check_units,
    formula_seed,
    merge,
    propose_candidates,
)
from flowllm.prediction.config import PredictionConfig
from flowllm.prediction.minima import SYMMETRIC, Relax, leave_saddles, relaxer
from flowllm.prediction.names import prototype_name
from flowllm.prediction.resources import (
    library_path,
    load_energies,
    read_hull_data,
    read_library,
)
from flowllm.prediction.scores import fitted
from flowllm.runs.records import CrystalRecord
from flowllm.system.options import check_count
from flowllm.templates.library import TemplateLibrary
from llm_prior.prompts import parse_composition, render_formula

if TYPE_CHECKING:
    from flowllm.evaluation.energies import EnergyModel
    from flowllm.generation.pipeline import FlowLLM

logger = logging.getLogger(__name__)

# The best candidates are relaxed without their symmetry, however many are asked for: as many as
# this, if their scores are that close (eV/atom) to the best one.
_FREED, _NEAR = 5, 0.2
_DISPLACED = (0, 1)  # places of the seed of the displacements; samples have one place
_NO_SYMMETRY = "relaxation: no symmetry is found"
_INVALID = "atoms within 0.5 Angstrom"


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """A predicted structure.

    Attributes:
        formula: reduced.
        rank: 1 for the best.
        structure: in its Niggli cell; relaxed if there is a potential.
        spacegroup: International number, at 0.1 Angstrom.
        symbol: Hermann-Mauguin symbol of the group.
        gene: group and Wyckoff letters of the elements, such as `225 Na:a Cl:b`.
        prototype: name of the prototype, such as `rock salt`; None if it has none in
            `flowllm.prediction.names`.
        source: `template ID (FORMULA)`, with the formula of the template, or `sample`.
        probability: that this is the structure of the formula, if one of the candidates is; see
            `flowllm.prediction.scores`.
        score: by which it is ranked, eV/atom, lower is better.
        log_probability: of the candidate by its sources, nats.
        energy_per_atom: by the potential, eV/atom; None without one.
        formation_energy_per_atom: eV/atom; None without a hull.
        e_above_hull: eV/atom; None without a hull.
        is_free: whether the structure left its symmetry for a lower minimum in another group.
    """

    formula: str
    rank: int
    structure: Structure = field(repr=False)
    spacegroup: int
    symbol: str
    gene: str
    prototype: str | None = None
    source: str
    probability: float
    score: float
    log_probability: float
    energy_per_atom: float | None = None
    formation_energy_per_atom: float | None = None
    e_above_hull: float | None = None
    is_free: bool = False

    @property
    def id(self) -> str:
        """Formula and rank, such as `NaCl-1`."""
        return f"{self.formula}-{self.rank}"

    @property
    def conventional_lengths(self) -> tuple[float, float, float]:
        """Lengths a, b, c of the conventional cell, Angstrom."""
        symmetry = symmetry_of(self.structure)
        if symmetry is None:
            return self.structure.lattice.abc
        a, b, c, *_ = symmetry.crystal.parameters
        return a, b, c

    def to_record(self) -> CrystalRecord:
        """Return the record for the shards of a run."""
        values = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "structure"}
        properties = {name: value for name, value in values.items() if value is not None}
        return CrystalRecord(id=self.id, structure=self.structure, properties=properties)

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, Any]:
        """Show the structure in a notebook."""
        from flowllm.crystals.views.notebook import mimebundle

        return mimebundle(Crystal(id=self.id, structure=self.structure), include, exclude)

    @classmethod
    def from_record(cls, record: CrystalRecord) -> Prediction:
        """Return the prediction that `to_record` has made a record of.

        Args:
            record: of a crystal that was made.
        """
        properties: dict[str, Any] = dict(record.properties)
        assert record.structure is not None
        return cls(structure=record.structure, **properties)


@dataclass(frozen=True, kw_only=True)
class FormulaOutcome:
    """What was found for a formula.

    Attributes:
        formula: reduced.
        predictions: the best first; none if the formula failed.
        num_candidates: different candidates that were ranked.
        failures: of samples and relaxations, by reason.
        problem: why there is no prediction; else None.
        warning: what was asked for and is missing: samples, or the energies of a potential; else
            None.
    """

    formula: str
    predictions: list[Prediction]
    num_candidates: int = 0
    failures: Counter[str] = field(default_factory=Counter)
    problem: str | None = None
    warning: str | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class Energies:
    """A potential that relaxes and ranks.

    Attributes:
        model: the potential.
        relax: relaxes crystals with it.
    """

    model: EnergyModel
    relax: Relax


def predict_formula(
    model: FlowLLM | None,
    formula: str,
    n: int,
    config: PredictionConfig,
    library: TemplateLibrary,
    energies: Energies | None = None,
) -> FormulaOutcome:
    """Return the `n` best structures of a formula.

    With a potential all candidates are relaxed with their symmetry kept and ranked. The best ones,
    at most five and none with a score 0.2 eV/atom above that of the first, are then displaced and
    relaxed freely, and those that find a lower minimum take it (`flowllm.prediction.minima`). That
    is done again until it is done for all of the best. The order does not depend on `n`.

    If the potential has not learnt an element of the formula, the candidates are ranked without it.

    Args:
        model: the prior and the refiner; None if `config.num_samples` is 0.
        formula: reduced, see `llm_prior.prompts.render_formula`.
        n: number of structures at most.
        config: the request.
        library: the templates.
        energies: the potential; None ranks by the sources alone.

    Returns:
        The structures, without energies above the hull, and what failed.

    Raises:
        FlowLLMError: if there is no candidate, or the potential fails on every one.
    """
    weights = fitted()
    candidates, failures, lost = propose_candidates(model, formula, config, library, weights)
    unlearnt = _unlearnt(formula, energies)
    if energies is None or unlearnt is not None:
        ranked = _sorted(merge(candidates))
    else:
        relaxed = relaxed_candidates(formula, candidates, energies, failures)
        seed = formula_seed(config.seed, formula, *_DISPLACED)
        ranked = _without_saddles(_sorted(merge(_sorted(relaxed))), energies, failures, seed)
    scores = _scores(ranked)
    predictions = [
        _prediction(formula, rank, candidate, score=float(score), probability=float(chance))
        for rank, (candidate, score, chance) in enumerate(
            zip(ranked, scores, weights.probabilities(scores), strict=True), start=1
        )
        if rank <= n
    ]
    return FormulaOutcome(
        formula=formula,
        predictions=predictions,
        num_candidates=len(ranked),
        failures=+failures,
        warning="; ".join(filter(None, (lost, unlearnt))) or None,
    )


def predict_structures(
    model: FlowLLM, formula: str, n: int, config: PredictionConfig
) -> list[Prediction]:
    """Return the `n` best structures of a formula; see `FlowLLM.predict`.

    Args:
        model: the prior and the refiner; it keeps the potential for the next call.
        formula: any text that `llm_prior.prompts.render_formula` reads.
        n: number of structures at most.
        config: the request.

    Raises:
        FlowLLMError: as `FlowLLM.predict`.
    """
    check_count("n", n, 1)
    formula = render_formula(formula)
    check_units(formula, config)
    library = read_library(library_path(config))
    # Only a hull of the database is made for a formula.
    system = formula if config.hull_is_online else None
    key = (config.potential, config.hull, config.references, system)
    energies = None
    if config.potential is not None:
        if model.energies is None or model.energies[0] != key:
            calculator = load_calculator(config.potential)
            loaded = load_energies(config, *read_hull_data(config, [formula]), calculator)
            assert loaded is not None
            model.energies = (key, Energies(model=loaded, relax=relaxer(calculator)))
        energies = model.energies[1]
    outcome = predict_formula(model, formula, n, config, library, energies)
    if outcome.warning is not None:
        logger.warning("%s: %s", formula, outcome.warning)
    if energies is None or energies.model.hull is None:
        return outcome.predictions
    return with_hull(outcome.predictions, energies.model)


def with_hull(predictions: Sequence[Prediction], model: EnergyModel) -> list[Prediction]:
    """Return predictions with their energies of formation and above the hull.

    Args:
        predictions: those without an energy stay as they are.
        model: the potential and the hull.
    """
    assert model.hull is not None
    distances = hull_distances(
        [prediction.structure for prediction in predictions],
        [prediction.energy_per_atom for prediction in predictions],
        model.hull,
        scheme=model.scheme,
        potential=model.identity,
        references=model.references,
    )
    reasons = {
        distance.failure
        for prediction, distance in zip(predictions, distances, strict=True)
        if prediction.energy_per_atom is not None and distance.failure is not None
    }
    for reason in sorted(reasons):
        logger.warning("no energy above the hull: %s", reason)
    return [
        replace(
            prediction,
            formation_energy_per_atom=distance.formation_energy_per_atom,
            e_above_hull=distance.e_above_hull,
        )
        for prediction, distance in zip(predictions, distances, strict=True)
    ]


def relaxed_candidates(
    formula: str, candidates: Sequence[Candidate], energies: Energies, failures: Counter[str]
) -> list[Candidate]:
    """Return the candidates relaxed with their symmetry kept.

    Args:
        formula: reduced, for the error message.
        candidates: at least one.
        energies: the potential.
        failures: gets the counts of those that fail, by reason.

    Raises:
        UserError: if all fail.
    """
    valid = [c for c in candidates if structural_validity(c.structure)]
    problems = Counter({_INVALID: len(candidates) - len(valid)})
    found = energies.relax([candidate.structure for candidate in valid], SYMMETRIC)
    kept = []
    for candidate, relaxation in zip(valid, found, strict=True):
        new = _with(candidate, relaxation)
        if new is None:
            problems[relaxation.failure or _NO_SYMMETRY] += 1
        else:
            kept.append(new)
    if not kept:
        (reason, _), *_ = problems.most_common(1)
        raise UserError(
            f"{formula}: {energies.model.potential} failed on all {len(candidates)} candidates "
            f"({reason}); leave the potential out, or give another one"
        )
    failures.update(problems)
    return kept


def _unlearnt(formula: str, energies: Energies | None) -> str | None:
    """Return why a potential cannot rank a formula; None if it can, or there is none."""
    if energies is None or energies.model.elements is None:
        return None
    symbols = {element.symbol for element in parse_composition(formula).elements}
    unknown = sorted(symbols - energies.model.elements)
    if not unknown:
        return None
    return (
        f"{energies.model.potential} has not learnt {', '.join(unknown)}: ranked by the sources "
        "alone"
    )


def _without_saddles(
    candidates: Sequence[Candidate], energies: Energies, failures: Counter[str], seed: int
) -> list[Candidate]:
    """Return ranked candidates again, the best ones of them at minima."""
    ranked = list(candidates)
    while True:
        scores = _scores(ranked)
        unchecked = [
            place
            for place in range(min(_FREED, len(ranked)))
            if scores[place] <= scores[0] + _NEAR and not ranked[place].is_checked
        ]
        if not unchecked:
            return ranked
        found = leave_saddles(
            [ranked[place].structure for place in unchecked],
            [_energy(ranked[place]) for place in unchecked],
            energies.relax,
            seed=seed,
        )
        for place, relaxation in zip(unchecked, found, strict=True):
            before = ranked[place]
            moved = before if relaxation is None else _with(before, relaxation)
            if moved is None:
                assert relaxation is not None
                failures[relaxation.failure or _NO_SYMMETRY] += 1
                moved = before
            is_free = moved.spacegroup != before.spacegroup
            ranked[place] = replace(moved, is_checked=True, is_free=is_free)
        ranked = _sorted(merge(_sorted(ranked)))


def _with(candidate: Candidate, relaxation: Relaxation) -> Candidate | None:
    """Return the relaxed candidate; None if the relaxation failed."""
    if relaxation.structure is None:
        return None
    try:
        structure = reduce_cell(relaxation.structure)
    except InvalidCrystal:
        return None
    symmetry = symmetry_of(structure)
    if symmetry is None:
        return None
    return replace(
        candidate,
        structure=structure,
        spacegroup=symmetry.spacegroup,
        gene=symmetry.gene,
        energy_per_atom=relaxation.energy_per_atom,
    )


def _prediction(
    formula: str, rank: int, candidate: Candidate, *, score: float, probability: float
) -> Prediction:
    symmetry = symmetry_of(candidate.structure)
    if symmetry is None:
        raise UserError(f"{formula}: no symmetry is found for {candidate.source}; report this")
    return Prediction(
        formula=formula,
        rank=rank,
        structure=candidate.structure,
        spacegroup=symmetry.spacegroup,
        symbol=symmetry.crystal.group.symbol,
        gene=symmetry.gene,
        prototype=prototype_name(symmetry.crystal),
        source=candidate.source,
        probability=probability,
        score=score,
        log_probability=candidate.log_probability,
        energy_per_atom=candidate.energy_per_atom,
        is_free=candidate.is_free,
    )


def _energy(candidate: Candidate) -> float:
    assert candidate.energy_per_atom is not None  # of a relaxed one
    return candidate.energy_per_atom


def _scores(candidates: Sequence[Candidate]) -> NDArray[np.float64]:
    """Return the scores (N,) of candidates that are all relaxed, or none of them."""
    logs = [candidate.log_probability for candidate in candidates]
    energies = [c.energy_per_atom for c in candidates if c.energy_per_atom is not None]
    return fitted().scores(logs, energies or None)


def _sorted(candidates: Sequence[Candidate]) -> list[Candidate]:
    return [candidates[place] for place in np.argsort(_scores(candidates), kind="stable")]
