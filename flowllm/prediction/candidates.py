"""Candidates for the structure of a formula, from templates and from the prior.

The probability of a gene (space group and Wyckoff letters of the elements) is a mixture of the two
sources,

    p(g) = a p_templates(g) + (1 - a) f_samples(g),

where p_templates is `Proposal.log_probability` and f_samples the share of the prior's samples that
have the gene. Without templates a is 0, without samples 1. `flowllm.prediction.scores` has a.

Samples of the prior are refined, proposals from templates are not. On 100 validation crystals of
MP-20 (composition given) refining the first proposal lowered its match rate from 77 to 73% and
raised its RMSD from 0.033 to 0.039 (`benchmarks/predict.py --refine-templates`).
"""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from pymatgen.core import Structure

from flowllm.crystals.formulas import KnownFormulas
from flowllm.crystals.symmetry import symmetry_of
from flowllm.errors import FlowLLMError, UserError
from flowllm.generation.config import SamplingConfig
from flowllm.metrics.uniqueness import PrimitiveCells, Tolerances
from flowllm.prediction.config import PredictionConfig
from flowllm.prediction.scores import Weights
from flowllm.templates.library import TemplateLibrary
from flowllm.templates.proposals import propose_templates
from llm_prior.prompts import parse_composition, render_formula

if TYPE_CHECKING:
    from flowllm.generation.pipeline import FlowLLM
    from flowllm.generation.sample import Sample

logger = logging.getLogger(__name__)

SAMPLE = "sample"
SAME_ENERGY = 0.002  # eV/atom


@dataclass(frozen=True, kw_only=True, eq=False)
class Candidate:
    """A structure that a formula may have.

    Attributes:
        structure: in its Niggli cell.
        spacegroup: International number, at 0.1 Angstrom.
        gene: group and Wyckoff letters of the elements, such as `225 Na:a Cl:b`.
        source: `template ID (FORMULA)` or `sample`.
        log_probability: of the gene among all that the sources proposed.
        of_templates: the probability of the gene by the templates; None without templates.
        of_samples: the share of the samples that have the gene; None without samples.
        energy_per_atom: by the potential after relaxing, eV/atom; None if it was not relaxed.
        is_free: whether it left its symmetry for a lower minimum.
    """

    structure: Structure
    spacegroup: int
    gene: str
    source: str
    log_probability: float
    of_templates: float | None = None
    of_samples: float | None = None
    energy_per_atom: float | None = None
    is_free: bool = False


def propose_candidates(
    model: FlowLLM | None,
    formula: str,
    config: PredictionConfig,
    library: TemplateLibrary,
    weights: Weights,
) -> tuple[list[Candidate], Counter[str]]:
    """Return the candidates for a formula, the likeliest first; no two have the same gene.

    They are a function of the arguments: the draws come from (`config.seed`, `formula`).

    Args:
        model: the prior, and the refiner if `config.refine`; None if `config.num_samples` is 0.
        formula: reduced, see `llm_prior.prompts.render_formula`.
        config: the request.
        library: the templates.
        weights: of the sources.

    Returns:
        The candidates, and the counts of samples that failed by reason.

    Raises:
        FlowLLMError: if there is no template and the prior cannot write the formula, or no cell
            within the limit can hold it.
    """
    units = check_units(formula, config)
    proposals = []
    if config.num_templates:
        proposals = propose_templates(
            formula,
            n=config.num_templates,
            max_atoms=config.max_atoms,
            formula_units=units,
            spacegroups=config.spacegroups,
            exclude_formula=config.exclude_formula,
            exclude_ids=config.exclude_ids,
            library=library,
        )
    samples: list[Sample] = []
    problem = "num_samples is 0"
    if config.num_samples:
        try:
            samples = list(_samples(model, formula, config, units))
        except FlowLLMError as error:
            problem = str(error)
    if not proposals and not samples:
        raise UserError(f"{formula}: no template has its stoichiometry, and no samples: {problem}")
    if config.num_samples and not samples:
        logger.warning("%s: candidates from templates alone: %s", formula, problem)

    found: dict[str, Candidate] = {}
    shares: Counter[str] = Counter()
    failures = Counter(sample.failure for sample in samples if sample.failure is not None)
    for sample in samples:
        symmetry = None if sample.structure is None else symmetry_of(sample.structure)
        if sample.structure is None or symmetry is None:
            failures["no symmetry is found"] += sample.structure is not None
            continue
        shares[symmetry.gene] += 1
        candidate = Candidate(
            structure=sample.structure,
            spacegroup=symmetry.spacegroup,
            gene=symmetry.gene,
            source=SAMPLE,
            log_probability=-math.inf,
        )
        found.setdefault(symmetry.gene, candidate)
    from_templates = {proposal.gene: proposal for proposal in proposals}
    for gene, proposal in from_templates.items():  # closer to a crystal than a sample is
        found[gene] = Candidate(
            structure=proposal.structure,
            spacegroup=proposal.crystal.spacegroup,
            gene=gene,
            source=f"template {proposal.template} ({proposal.template_formula})",
            log_probability=-math.inf,
        )
    total = shares.total()
    ranked = []
    for gene, candidate in found.items():
        of_templates = None
        if proposals:
            proposal_of = from_templates.get(gene)
            of_templates = 0.0 if proposal_of is None else math.exp(proposal_of.log_probability)
        of_samples = shares[gene] / total if total else None
        ranked.append(
            replace(
                candidate,
                log_probability=weights.log_probability(of_templates, of_samples),
                of_templates=of_templates,
                of_samples=of_samples,
            )
        )
    ranked.sort(key=lambda candidate: -candidate.log_probability)
    return ranked, +failures


def check_units(formula: str, config: PredictionConfig) -> tuple[int, ...]:
    """Return the numbers of formula units that are asked for and fit; empty for all that fit.

    Args:
        formula: reduced.
        config: the request.

    Raises:
        UserError: if none fits.
    """
    size = int(parse_composition(formula).num_atoms)
    units = tuple(number for number in config.z if number * size <= config.max_atoms)
    smallest = min(config.z, default=1)
    if smallest * size > config.max_atoms:
        what = "a formula unit has" if smallest == 1 else f"{smallest} formula units have"
        raise UserError(
            f"{formula}: {what} {smallest * size} atoms, more than {config.max_atoms}; raise "
            "max_atoms (--max-atoms)" + ("" if smallest == 1 else ", or give a smaller z")
        )
    return units


def merge(candidates: Sequence[Candidate]) -> list[Candidate]:
    """Return the candidates without those that equal an earlier one, to which they add.

    Two are equal if pymatgen's `StructureMatcher` maps one onto the other and they have the same
    space group, or energies within 2 meV/atom, which relaxations leave. A distorted form with an
    energy of its own is another structure. Probabilities are added.

    Args:
        candidates: in order; the first of equal ones stays.
    """
    cells = PrimitiveCells(Tolerances())
    kept: list[Candidate] = []
    for candidate in candidates:
        for place, other in enumerate(kept):
            if _may_be_equal(other, candidate) and cells.match(
                other.structure, candidate.structure
            ):
                total = np.logaddexp(other.log_probability, candidate.log_probability)
                kept[place] = replace(other, log_probability=float(total))
                break
        else:
            kept.append(candidate)
    return kept


def _may_be_equal(one: Candidate, other: Candidate) -> bool:
    if one.energy_per_atom is None or other.energy_per_atom is None:
        return one.spacegroup == other.spacegroup
    close = abs(one.energy_per_atom - other.energy_per_atom) < SAME_ENERGY
    return close or one.spacegroup == other.spacegroup


def _samples(
    model: FlowLLM | None, formula: str, config: PredictionConfig, units: tuple[int, ...]
) -> Iterator[Sample]:
    """Yield samples of the prior; requested numbers of formula units have equal shares."""
    if model is None or model.prior is None:
        raise UserError("sampling needs a prior; load one with FlowLLM.from_pretrained")
    size = int(parse_composition(formula).num_atoms)
    largest = model.prior.fmt.max_atoms
    sizes: list[Any] = [number * size for number in units]
    if not units:
        upper = min(config.max_atoms, largest)
        sizes = [None] if upper == largest or upper < size else [f"{size}-{upper}"]
    none = KnownFormulas()
    for place, num_atoms in enumerate(sizes):
        count = len(range(place, config.num_samples, len(sizes)))
        request = SamplingConfig.of(
            formula=formula,
            num_atoms=num_atoms,
            spacegroup=config.spacegroups or None,
            refine=config.refine,
            seed=formula_seed(config.seed, formula, place),
        )
        model.prepare(request, none)
        yield from model.sample_batch(request, none, range(count))


def formula_seed(seed: int, formula: str, place: int = 0) -> int:
    """Return the seed of the draws for a formula, the same in every list of formulas.

    Args:
        seed: of the run.
        formula: reduced.
        place: of the draws among those for the formula.

    Returns:
        The seed, in [0, 2**63).
    """
    key = (*render_formula(formula).encode(), place)
    words = np.random.SeedSequence(seed, spawn_key=key).generate_state(1, np.uint64)
    return int(words[0] >> np.uint64(1))
