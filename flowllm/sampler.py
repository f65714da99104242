"""`FlowLLM`: the prior proposes a crystal, the refiner moves it to where a stable one would be."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ase import Atoms
from pymatgen.core import IStructure, Lattice, Structure

from flowllm.cells import reduce_cell
from flowllm.data import to_structure
from flowllm.device import pick_device
from flowllm.errors import InvalidCrystal, UserError
from flowllm.jobs import batch_seed
from flowllm.models import BUNDLED_PRIOR, BUNDLED_REFINER, resolve
from flowllm.request import Settings, check_size, merge_conditions, symbols
from llm_prior import (
    DEFAULT_ATTEMPTS,
    DEFAULT_TEMPERATURE,
    DEFAULT_TOP_P,
    Prior,
    propose,
    warn_of_untrained,
)
from llm_prior.text import SYMBOLS
from rfm import Failure, Refinement, Refiner
from rfm import refine as refine_structures

BATCH_SIZE = 128
_NOTHING = Structure(Lattice.cubic(1), [], [])


@dataclass(kw_only=True)
class Sample:
    """One requested crystal.

    Attributes:
        id: `sample-00000` and so on; asking for N gives exactly N.
        prompt: what the prior was asked.
        text: its last answer.
        prior_structure: the prior's crystal in its Niggli cell, or None.
        structure: the final crystal (refined if that was asked), or None if it failed.
        attempts: answers drawn from the prior.
        rejects: how many of them were refused, by reason.
        failure: why there is no structure, else None.
    """

    id: str
    prompt: str
    text: str
    prior_structure: Structure | None = None
    structure: Structure | None = None
    attempts: int = 0
    rejects: dict[str, int] = field(default_factory=dict)
    failure: str | None = None

    def to_record(self) -> dict[str, Any]:
        """Plain JSON; structures as pymatgen dicts."""
        record = {**vars(self), "rejects": dict(self.rejects)}
        for name in ("prior_structure", "structure"):
            structure = getattr(self, name)
            record[name] = None if structure is None else structure.as_dict(verbosity=0)
        return record

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Sample:
        """The inverse of `to_record`."""
        values = dict(record)
        for name in ("prior_structure", "structure"):
            if values[name] is not None:
                values[name] = Structure.from_dict(values[name])
        return cls(**values)


class FlowLLM:
    """A text prior and a refiner (Sriram et al. 2024, arXiv 2410.23405).

    Args:
        prior: language model of crystals; None if only `refine` is used.
        refiner: flow-matching model; None for the plain language-model path.
    """

    def __init__(self, prior: Prior | None, refiner: Refiner | None) -> None:
        self.prior = prior
        self.refiner = refiner

    @classmethod
    def from_pretrained(
        cls,
        prior: str | Path | None = None,
        refiner: str | Path | None = None,
        *,
        device: str = "auto",
    ) -> FlowLLM:
        """Load both models; each by default the bundled one.

        Args:
            prior: folder or hub id.
            refiner: folder or hub id.
            device: `cpu`, `cuda` or `auto`.

        Raises:
            UserError, PriorError, RefinerError: a model is missing or damaged.
        """
        where = pick_device(device)
        return cls(
            Prior.from_pretrained(resolve(prior, BUNDLED_PRIOR), device=where),
            Refiner.from_pretrained(resolve(refiner, BUNDLED_REFINER), device=where),
        )

    def sample(
        self,
        n: int,
        *,
        formula: str | None = None,
        composition: str | None = None,
        refine: bool = True,
        seed: int = 0,
        temperature: float = DEFAULT_TEMPERATURE,
        top_p: float = DEFAULT_TOP_P,
        max_attempts: int = DEFAULT_ATTEMPTS,
        constrain: bool = True,
        exclude_elements: str | Sequence[str] | None = None,
        steps: int | None = None,
        batch_size: int = BATCH_SIZE,
        **conditions: Any,
    ) -> list[Sample]:
        """Generate `n` crystals.

        The result is a function of all arguments on one machine and for one number of torch
        threads; with one thread it is what `flowllm sample` gives.

        Args:
            n: how many.
            formula: any number of formula units of this.
            composition: exactly these atoms.
            refine: move the prior's crystals with the refiner.
            seed: decides every draw.
            temperature, top_p, max_attempts, constrain: see `llm_prior.propose`.
            exclude_elements: symbols (`["Pb", "Cd"]` or `"Pb,Cd"`) that no crystal may have.
            steps: integration steps; None takes the refiner's own.
            batch_size: crystals at a time, as memory allows; another size draws other crystals.
            **conditions: further ones, such as `spacegroup=225`.

        Returns:
            `n` samples in order; one that failed has `structure` None and says why.

        Raises:
            UserError, PriorError, RefinerError: impossible or unknown conditions or settings.
        """
        if n < 0 or batch_size < 1:
            raise UserError(f"n {n} must be at least 0, batch_size {batch_size} at least 1")
        settings = Settings(
            conditions=merge_conditions(formula, composition, conditions),
            refine=refine,
            seed=seed,
            temperature=temperature,
            top_p=top_p,
            max_attempts=max_attempts,
            constrain=constrain,
            exclude_elements=symbols(exclude_elements),
            steps=steps,
        )
        if self.prior is not None:
            check_size(composition, settings.conditions, self.prior.fmt)
            warn_of_untrained(self.prior, settings.conditions)
        samples: list[Sample] = []
        for index, start in enumerate(range(0, n, batch_size)):
            samples += self.sample_batch(settings, index, start, min(batch_size, n - start))
        return samples

    def sample_batch(self, settings: Settings, index: int, start: int, count: int) -> list[Sample]:
        """Samples `start` to `start + count - 1`, which make batch number `index` of a run."""
        if self.prior is None:
            raise UserError("sampling needs a prior; load one with FlowLLM.from_pretrained")
        if settings.refine and self.refiner is None:
            raise UserError("refine needs a refiner; load one, or sample with refine=False")
        seed = batch_seed(settings.seed, index)
        excluded = list(settings.exclude_elements)
        if settings.refine:  # what the prior may write is then what the refiner can take
            excluded += unknown_elements(self.refiner, settings.conditions)
        proposals = propose(
            self.prior,
            [settings.conditions] * count,
            seed=seed,
            temperature=settings.temperature,
            top_p=settings.top_p,
            max_attempts=settings.max_attempts,
            constrain=settings.constrain,
            exclude_elements=excluded,
            slots=-(-count // 2),  # what is finished makes room for the other half
        )
        samples = []
        for number, proposal in enumerate(proposals, start):
            sample = Sample(
                id=f"sample-{number:05d}",
                prompt=proposal.prompt,
                text=proposal.text,
                attempts=proposal.attempts,
                rejects=dict(proposal.rejects),
            )
            if proposal.structure is None:
                sample.failure = "prior: " + proposal.rejects.most_common(1)[0][0]
            else:
                try:
                    sample.prior_structure = reduce_cell(proposal.structure)
                except InvalidCrystal as error:
                    sample.failure = f"prior: {error.reason}"
            sample.structure = sample.prior_structure
            samples.append(sample)
        if settings.refine:
            good = [sample for sample in samples if sample.prior_structure is not None]
            results = refine_structures(
                self.refiner,
                [sample.prior_structure for sample in good],
                seed=seed,
                steps=settings.steps,
            )
            for sample, outcome in zip(good, refined(results), strict=True):
                sample.structure, sample.failure = outcome
        return samples

    def refine(
        self,
        structures: Sequence[Structure | Atoms],
        *,
        seed: int = 0,
        steps: int | None = None,
        first_index: int = 0,
    ) -> list[Refinement]:
        """Refine structures from anywhere: pymatgen or ASE, reduced to their Niggli cell first.

        Meant for rough crystals such as a prior's samples; one that is relaxed already usually
        comes out worse.

        Args:
            structures: a list of ordered crystals.
            seed: structure k draws its noise from (seed, first_index + k).
            steps: integration steps; None takes the refiner's own.
            first_index: place of the first structure in a larger run.

        Returns:
            A `Refinement` for each, in order: `structure`, or None and the `failure` that says why.

        Raises:
            UserError, RefinerError: no refiner is loaded, a lone crystal instead of a list, or an
                impossible seed or number of steps.
        """
        if self.refiner is None:
            raise UserError("refine needs a refiner; load one with FlowLLM.from_pretrained")
        if isinstance(structures, IStructure | Atoms):  # both are sequences, of sites and atoms
            raise UserError("refine takes a list of crystals; put a single one into brackets: [s]")
        crystals: list[Structure | InvalidCrystal] = []
        for structure in structures:
            try:
                crystals.append(reduce_cell(to_structure(structure)))
            except InvalidCrystal as error:
                crystals.append(error)
        # A structure without sites keeps the place, and so the noise, of those that follow.
        results = refine_structures(
            self.refiner,
            [_NOTHING if isinstance(crystal, InvalidCrystal) else crystal for crystal in crystals],
            seed=seed,
            first_index=first_index,
            steps=steps,
        )
        return [
            Refinement(failure=Failure.BAD_INPUT, detail=str(crystal))
            if isinstance(crystal, InvalidCrystal)
            else result
            for crystal, result in zip(crystals, results, strict=True)
        ]


def unknown_elements(refiner: Refiner, conditions: Mapping[str, Any]) -> list[str]:
    """The elements that the refiner does not know.

    Raises:
        UserError: the conditions ask for one of them.
    """
    heaviest = refiner.config.network.max_atomic_number
    unknown = SYMBOLS[heaviest:]
    asked = f"{conditions.get('formula', '')} {conditions.get('elements', '')}"
    for symbol in re.findall("[A-Z][a-z]?", asked):
        if symbol in unknown:
            raise UserError(
                f"the refiner does not know {symbol}, only elements up to {SYMBOLS[heaviest - 1]}; "
                "leave refine out, or take another refiner"
            )
    return list(unknown)


def refined(results: Sequence[Refinement]) -> list[tuple[Structure | None, str | None]]:
    """The structure of each result, or why there is none."""
    return [
        (result.structure, f"refiner: {result.failure}" if result.failure else None)
        for result in results
    ]
