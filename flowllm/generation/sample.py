"""`Sample`: one crystal that was asked for, as it is kept in memory and in the shards of a run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from pymatgen.core import Structure

from flowllm.crystals.cells import reduce_cell
from flowllm.errors import InvalidCrystal
from flowllm.runs.refined import extras
from llm_prior import Proposal
from rfm import Refinement


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
        rank_score: by which it was chosen among several candidates, the higher the better: nats, or
            minus eV/atom; None where it was alone or has none. See `flowllm.generation.selection`.
        refinement: what refining gave, with the trajectory and log-likelihood if they were asked
            for; None where nothing was refined. `from_record` does not bring it back.
    """

    id: str
    prompt: str
    text: str
    prior_structure: Structure | None = None
    structure: Structure | None = None
    attempts: int = 0
    rejects: dict[str, int] = field(default_factory=dict)
    failure: str | None = None
    rank_score: float | None = None
    refinement: Refinement | None = field(default=None, repr=False, compare=False)

    def to_record(self) -> dict[str, Any]:
        """Plain JSON; structures as pymatgen dicts, and the `extras` of the refinement."""
        record = {**vars(self), "rejects": dict(self.rejects)}
        refinement = record.pop("refinement")
        if refinement is not None:
            record |= extras(refinement)
        for name in ("prior_structure", "structure"):
            structure = getattr(self, name)
            record[name] = None if structure is None else structure.as_dict(verbosity=0)
        return record

    @classmethod
    def of(cls, name: str, proposal: Proposal) -> Sample:
        """What the prior proposed, reduced to its Niggli cell."""
        sample = cls(
            id=name,
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
        return sample

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Sample:
        """The inverse of `to_record`."""
        values = {f.name: record[f.name] for f in fields(cls) if f.name in record}
        for name in ("prior_structure", "structure"):
            if values[name] is not None:
                values[name] = Structure.from_dict(values[name])
        return cls(**values)
