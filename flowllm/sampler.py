"""`FlowLLM`: the prior proposes a crystal, the refiner moves it to where a stable one would be."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from ase import Atoms
from pymatgen.core import Structure

from flowllm.cells import reduce_cell
from flowllm.data import to_structure
from flowllm.errors import InvalidCrystal, UserError
from flowllm.jobs import batch_seed
from flowllm.models import BUNDLED_PRIOR, BUNDLED_REFINER, resolve
from llm_prior import (
    DEFAULT_ATTEMPTS,
    DEFAULT_TEMPERATURE,
    DEFAULT_TOP_P,
    Prior,
    check_conditions,
    composition_conditions,
    propose,
)
from rfm import Refinement, Refiner
from rfm import refine as refine_structures

BATCH_SIZE = 64


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What a sampling run asks for, apart from the models: plain JSON, part of its identity.

    Attributes:
        conditions: see `llm_prior.prompts.ATTRIBUTES`.
        refine: move the prior's crystals with the refiner.
        seed: decides every draw.
        temperature, top_p, max_attempts: see `llm_prior.propose`.
        steps: integration steps of the refiner; None takes the model's own.
    """

    conditions: dict[str, Any] = field(default_factory=dict)
    refine: bool = True
    seed: int = 0
    temperature: float = DEFAULT_TEMPERATURE
    top_p: float = DEFAULT_TOP_P
    max_attempts: int = DEFAULT_ATTEMPTS
    steps: int | None = None


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
        record = {**asdict(self, dict_factory=_shallow)}
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
        steps: int | None = None,
        **conditions: Any,
    ) -> list[Sample]:
        """Generate `n` crystals.

        Args:
            n: how many.
            formula: any number of formula units of this.
            composition: exactly these atoms.
            refine: move the prior's crystals with the refiner.
            seed: the same seed gives the same crystals on the same machine.
            temperature, top_p, max_attempts: see `llm_prior.propose`.
            steps: integration steps; None takes the refiner's own.
            **conditions: further ones, such as `spacegroup=225`.

        Returns:
            `n` samples in order; one that failed has `structure` None and says why.

        Raises:
            UserError, PriorError: impossible or unknown conditions.
        """
        settings = Settings(
            conditions=merge_conditions(formula, composition, conditions),
            refine=refine,
            seed=seed,
            temperature=temperature,
            top_p=top_p,
            max_attempts=max_attempts,
            steps=steps,
        )
        samples: list[Sample] = []
        for index, start in enumerate(range(0, n, BATCH_SIZE)):
            samples += self.sample_batch(settings, index, start, min(BATCH_SIZE, n - start))
        return samples

    def sample_batch(self, settings: Settings, index: int, start: int, count: int) -> list[Sample]:
        """Samples `start` to `start + count - 1`, which make batch number `index` of a run."""
        if self.prior is None:
            raise UserError("sampling needs a prior; load one with FlowLLM.from_pretrained")
        if settings.refine and self.refiner is None:
            raise UserError("refine needs a refiner; load one, or sample with refine=False")
        seed = batch_seed(settings.seed, index)
        proposals = propose(
            self.prior,
            [settings.conditions] * count,
            seed=seed,
            temperature=settings.temperature,
            top_p=settings.top_p,
            max_attempts=settings.max_attempts,
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
                sample.failure = "prior: " + Counter(proposal.rejects).most_common(1)[0][0]
            else:
                try:
                    sample.prior_structure = reduce_cell(proposal.structure)
                except InvalidCrystal as error:
                    sample.failure = f"prior: {error.reason}"
            sample.structure = sample.prior_structure
            samples.append(sample)
        if settings.refine:
            good = [sample for sample in samples if sample.prior_structure is not None]
            refined = refine_structures(
                self.refiner,
                [sample.prior_structure for sample in good],
                seed=seed,
                steps=settings.steps,
            )
            for sample, result in zip(good, refined, strict=True):
                sample.structure = result.structure
                sample.failure = f"refiner: {result.failure}" if result.failure else None
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

        Args:
            structures: ordered crystals.
            seed: structure k draws its noise from (seed, first_index + k).
            steps: integration steps; None takes the refiner's own.
            first_index: place of the first structure in a larger run.

        Returns:
            A `Refinement` for each, in order.

        Raises:
            UserError: no refiner is loaded, or a structure cannot be reduced.
        """
        if self.refiner is None:
            raise UserError("refine needs a refiner; load one with FlowLLM.from_pretrained")
        reduced = [reduce_cell(to_structure(structure)) for structure in structures]
        return refine_structures(
            self.refiner, reduced, seed=seed, first_index=first_index, steps=steps
        )


def merge_conditions(
    formula: str | None, composition: str | None, conditions: Mapping[str, Any]
) -> dict[str, Any]:
    """All conditions of a request in one dict, without those that are None.

    Raises:
        UserError: both formula and composition, or composition and num_atoms.
    """
    merged = {name: value for name, value in conditions.items() if value is not None}
    if formula is not None and composition is not None:
        raise UserError("formula and composition exclude each other; give one of them")
    if formula is not None:
        merged["formula"] = formula
    if composition is not None:
        if "num_atoms" in merged:
            raise UserError("composition fixes the number of atoms; leave num_atoms out")
        merged |= composition_conditions(composition)
    return merged


def check_request(prior: Prior, conditions: Mapping[str, Any]) -> None:
    """See that a prior can meet the conditions, before any work begins."""
    check_conditions(conditions, prior.fmt)


def pick_device(device: str) -> str:
    """`auto` is `cuda` where there is one, else `cpu`.

    Raises:
        UserError: a device that is not there.
    """
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise UserError(f"device {device} is not there; use --device cpu")
    if device != "cpu" and not device.startswith("cuda"):
        raise UserError(f"unknown device {device!r}; use cpu, cuda or auto")
    return device


def _shallow(items: list[tuple[str, Any]]) -> dict[str, Any]:
    return {key: value for key, value in items if key not in ("prior_structure", "structure")}
