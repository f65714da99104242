"""Candidates for the structure of a formula, from templates and from the prior.

The probability of a gene (space group and Wyckoff letters of the elements) is a mixture of the two
sources,

    p(g) = a p_templates(g) + (1 - a) f_samples(g),

where p_templates is `Proposal.log_probability` and f_samples the share of the prior's samples that
have the gene. Without templates a is 0, without samples 1. `flowllm.prediction.scores` has a.

p_templates counts every gene that templates have, also those that are not among the candidates.

Samples of the prior are refined, proposals from templates are not. On 400 validation crystals of
MP-20 (composition given) refining the first proposal lowered its match rate from 75.2 to 72.0% and
raised its RMSD from 0.026 to 0.031 (`docs/results.md`).
"""

from __future__ import annotations

import functools
import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from pymatgen.core import Structure

from flowllm.crystals.formulas import KnownFormulas, formula_units
from flowllm.crystals.symmetry import Symmetry, symmetry_of
from flowllm.errors import FlowLLMError, PriorError, UserError, one_line
from flowllm.generation.config import SamplingConfig
from flowllm.metrics.uniqueness import PrimitiveCells, Tolerances
from flowllm.prediction.config import PredictionConfig
from flowllm.prediction.scores import Weights
from flowllm.templates.library import TemplateLibrary
from flowllm.templates.proposals import Proposal, propose_templates
from flowllm.templates.volumes import with_template_volume
from llm_prior.prompts import parse_composition, render_formula

if TYPE_CHECKING:
    from flowllm.generation.pipeline import FlowLLM
    from flowllm.generation.sample import Sample

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
        is_free: whether it left its symmetry for a lower minimum in another space group.
        is_checked: whether it was relaxed without its symmetry.
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
    is_checked: bool = False


def propose_candidates(
    model: FlowLLM | None,
    formula: str,
    config: PredictionConfig,
    library: TemplateLibrary,
    weights: Weights,
) -> tuple[list[Candidate], Counter[str], str | None]:
    """Return the candidates for a formula, the likeliest first; no two have the same gene.

    They are a function of the arguments: the draws come from (`config.seed`, `formula`).

    Args:
        model: the prior, and the refiner if `config.refine`; None if `config.num_samples` is 0.
        formula: reduced, see `llm_prior.prompts.render_formula`.
        config: the request.
        library: the templates.
        weights: of the sources.

    Returns:
        The candidates, the counts of what failed by reason, and a warning if samples that were
        asked for could not be drawn.

    Raises:
        FlowLLMError: if a model is missing, there is no template and the prior cannot write the
            formula, or no cell within the limit can hold it.
    """
    units = check_units(formula, config)
    check_sources(model, config)
    proposals = _proposals(formula, config, units, library)
    samples, problems = _samples(model, formula, config, units, library)

    failures = Counter(sample.failure for sample in samples if sample.failure is not None)
    found: dict[str, Candidate] = {}
    chances: defaultdict[str, float] = defaultdict(float)  # of genes, by the templates
    for proposal in proposals[: config.num_templates]:
        structure = _structure(proposal)
        symmetry = None if structure is None else symmetry_of(structure)
        if structure is None or symmetry is None:
            failures["template: no reduced cell, or no symmetry"] += 1
            continue
        chances[symmetry.gene] += math.exp(proposal.log_probability)
        source = f"template {proposal.template} ({proposal.template_formula})"
        found.setdefault(symmetry.gene, _candidate(structure, symmetry, source))
    shares: Counter[str] = Counter()
    groups: set[int | None] = set()
    for sample in samples:
        symmetry = None if sample.structure is None else symmetry_of(sample.structure)
        if sample.structure is None or symmetry is None:
            failures["no symmetry is found"] += sample.structure is not None
            continue
        shares[symmetry.gene] += 1
        groups |= {symmetry.spacegroup, symmetry.crystal.group.enantiomorph}
        # A structure from templates is closer to a crystal than a sample is, and stays.
        found.setdefault(symmetry.gene, _candidate(sample.structure, symmetry, SAMPLE))
    for proposal in proposals[config.num_templates :]:
        gene = _gene(proposal) if proposal.spacegroup in groups else None
        if gene is not None and gene in shares:
            chances[gene] += math.exp(proposal.log_probability)
    if not found:
        raise UserError(f"{formula}: {_why_none(config, proposals, problems, failures)}")
    warning = None
    if problems:
        lost = "some samples are missing" if samples else "candidates from templates alone"
        warning = f"{lost}: {'; '.join(problems)}"
    total = shares.total()
    ranked = []
    for gene, candidate in found.items():
        of_templates = chances[gene] if proposals else None
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
    return ranked, +failures, warning


def check_sources(model: FlowLLM | None, config: PredictionConfig) -> None:
    """Check that there are the models which a request needs.

    Args:
        model: the prior and the refiner, or None.
        config: the request.

    Raises:
        FlowLLMError: if one is missing, or the refiner is not for samples.
    """
    if not config.num_samples:
        return
    if model is None:
        raise UserError("sampling needs a prior; load one with FlowLLM.from_pretrained")
    model.prepare(SamplingConfig(refine=config.refine), KnownFormulas())


def _proposals(
    formula: str, config: PredictionConfig, units: tuple[int, ...], library: TemplateLibrary
) -> list[Proposal]:
    """Return what the templates propose, all of it: a sample may have any of the genes."""
    if not config.num_templates:
        return []
    return propose_templates(
        formula,
        n=None,
        max_atoms=config.max_atoms,
        formula_units=units,
        spacegroups=config.spacegroups,
        exclude_formula=config.exclude_formula,
        exclude_ids=config.exclude_ids,
        library=library,
    )


def _structure(proposal: Proposal) -> Structure | None:
    try:
        return proposal.structure
    except PriorError:
        return None


def _gene(proposal: Proposal) -> str | None:
    try:
        return proposal.gene
    except PriorError:
        return None


def _candidate(structure: Structure, symmetry: Symmetry, source: str) -> Candidate:
    return Candidate(
        structure=structure,
        spacegroup=symmetry.spacegroup,
        gene=symmetry.gene,
        source=source,
        log_probability=-math.inf,
    )


def _why_none(
    config: PredictionConfig,
    proposals: Sequence[Proposal],
    problems: Sequence[str],
    failures: Counter[str],
) -> str:
    """Return why there is no candidate."""
    if not config.num_templates:
        templates = "num_templates is 0"
    elif not proposals:
        templates = "no template has its stoichiometry"
    else:
        templates = "no template gives a structure"
    if not config.num_samples:
        samples = "num_samples is 0"
    else:
        samples = "; ".join(problems) or ", ".join(f"{why} {n}" for why, n in failures.items())
    return f"{templates}, and no samples: {samples}"


def check_units(formula: str, config: PredictionConfig) -> tuple[int, ...]:
    """Return the numbers of formula units that are asked for and fit; empty for all that fit.

    Args:
        formula: reduced.
        config: the request.

    Raises:
        UserError: if none fits.
    """
    size = _unit_size(formula)
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

    Two are equal if pymatgen's `StructureMatcher` maps one onto the other and their energies are
    within 2 meV/atom, which relaxations leave; without energies, if they have the same space group.
    A structure with an energy of its own is another one. Probabilities are added. The structure
    with the higher space group stays, since a distortion of so little energy is none; of equal
    groups, the one of lower energy.

    Args:
        candidates: in order; without energies the first of equal ones stays.
    """
    cells = PrimitiveCells(Tolerances())
    kept: list[Candidate] = []
    for candidate in candidates:
        for place, other in enumerate(kept):
            if _may_be_equal(other, candidate) and cells.match(
                other.structure, candidate.structure
            ):
                total = np.logaddexp(other.log_probability, candidate.log_probability)
                best = max(
                    other, candidate, key=lambda c: (c.spacegroup, -(c.energy_per_atom or 0.0))
                )
                kept[place] = replace(best, log_probability=float(total))
                break
        else:
            kept.append(candidate)
    return kept


def _may_be_equal(one: Candidate, other: Candidate) -> bool:
    if one.energy_per_atom is None or other.energy_per_atom is None:
        return one.spacegroup == other.spacegroup
    return abs(one.energy_per_atom - other.energy_per_atom) < SAME_ENERGY


def _samples(
    model: FlowLLM | None,
    formula: str,
    config: PredictionConfig,
    units: tuple[int, ...],
    library: TemplateLibrary,
) -> tuple[list[Sample], list[str]]:
    """Return samples of the prior, and why there are none of some sizes.

    Numbers of formula units have equal shares, of those that the prior can write.
    """
    if not config.num_samples:
        return [], []
    assert model is not None and model.prior is not None  # see `check_sources`
    size = _unit_size(formula)
    largest = model.prior.fmt.max_atoms
    sizes: list[Any] = [number * size for number in units]
    if not units:
        upper = min(config.max_atoms, largest)
        sizes = [None] if upper == largest or upper < size else [f"{size}-{upper}"]
    none = KnownFormulas()
    options: dict[str, Any] = {"refine": config.refine}
    if config.refine and not config.num_templates:
        options["volume"] = "prior"
    requests, problems = [], []
    for place, num_atoms in enumerate(sizes):
        request = SamplingConfig.of(
            formula=formula,
            num_atoms=num_atoms,
            spacegroup=config.spacegroups or None,
            seed=formula_seed(config.seed, formula, place),
            **options,
        )
        try:
            model.prepare(request, none)
        except FlowLLMError as error:
            problems.append(one_line(error))
        else:
            requests.append(request)
    rescale = functools.partial(
        with_template_volume,
        exclude_formula=config.exclude_formula,
        exclude_ids=config.exclude_ids,
        library=library,
    )
    samples: list[Sample] = []
    for place, request in enumerate(requests[: config.num_samples]):
        count = len(range(place, config.num_samples, len(requests)))
        try:
            samples += model.sample_batch(request, none, range(count), rescale=rescale)
        except FlowLLMError as error:
            problems.append(one_line(error))
    return samples, problems


def _unit_size(formula: str) -> int:
    """Return the number of atoms of a formula unit."""
    composition = parse_composition(formula)
    return int(composition.num_atoms) // formula_units(composition)


def formula_seed(seed: int, formula: str, *places: int) -> int:
    """Return the seed of the draws for a formula, the same in every list of formulas.

    Args:
        seed: of the run.
        formula: reduced.
        *places: of the draws among those for the formula.

    Returns:
        The seed, in [0, 2**63).
    """
    key = (*render_formula(formula).encode(), *places)
    words = np.random.SeedSequence(seed, spawn_key=key).generate_state(1, np.uint64)
    return int(words[0] >> np.uint64(1))
