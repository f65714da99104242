"""`Sample`: one requested crystal."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from flowllm.crystals.cells import reduce_cell
from flowllm.crystals.crystal import Crystal
from flowllm.errors import InvalidCrystal
from flowllm.runs.records import CrystalRecord, Frame

if TYPE_CHECKING:
    from pymatgen.core import Structure

    from llm_prior import Proposal
    from llm_prior.wyckoff.crystal import WyckoffCrystal
    from rfm import Operations, Refinement, Trajectory

_SAME = 1e-6  # Angstrom of cell vectors, and periods of coordinates

# Columns of a log-likelihood, in nats; see `rfm.LogLikelihood`.
SCORE_COLUMNS = ("log_likelihood", "log_likelihood_error", "log_likelihood_per_degree")


@dataclass(kw_only=True)
class Sample:
    """One requested crystal.

    Attributes:
        id: `sample-00000` and so on; a request for N crystals gives exactly N samples.
        prompt: the prompt of the prior.
        text: the prior's last answer.
        prior_structure: the crystal as the prior wrote it, in its Niggli cell, or None. Refining
            starts from it scaled to another volume, unless `SamplingConfig.volume` is `prior`.
        structure: the final crystal (refined, unless refining was switched off), or None.
        attempts: texts drawn from the prior.
        rejects: number of rejected texts by reason, and of those that were drawn again because
            refining destroyed their crystals, such as `refiner: close_atoms`.
        failure: reason why `structure` is None, else None.
        template: id of the crystal whose elements were replaced (`SamplingConfig.like`), or None.
        crystal: space group and orbits of `prior_structure` as the text states them; None if it
            states none, or its Niggli cell is another one.
        rank_score: score by which the crystal was chosen among its candidates, higher is better:
            nats, or minus eV/atom. None if there was one candidate, or it has no score. See
            `flowllm.generation.selection`.
        refinement: the `rfm.Refinement` with trajectory and log-likelihood if requested; None if
            the crystal was not refined.
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
    template: str | None = None
    refinement: Refinement | None = field(default=None, repr=False, compare=False)
    crystal: WyckoffCrystal | None = field(default=None, repr=False, compare=False)

    @classmethod
    def of(cls, name: str, proposal: Proposal) -> Sample:
        """Return the sample of a proposal, its crystal reduced to the Niggli cell.

        Args:
            name: id of the sample.
            proposal: answer of the prior.
        """
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
                if _same_sites(proposal.structure, sample.prior_structure):
                    sample.crystal = proposal.crystal
            except InvalidCrystal as error:
                sample.failure = f"prior: {error.reason}"
        sample.structure = sample.prior_structure
        return sample

    @property
    def operations(self) -> Operations | None:
        """The operations of the group of `crystal`, in the cell of `prior_structure`."""
        if self.crystal is None:
            return None
        from rfm import Operations

        return Operations(*self.crystal.primitive_operations())

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, Any]:
        """Show the final crystal in a notebook; a failed sample is shown as text."""
        if self.structure is None:
            return {}
        from flowllm.crystals.views.notebook import mimebundle

        return mimebundle(Crystal(id=self.id, structure=self.structure), include, exclude)

    def add_refinement(self, refinement: Refinement) -> None:
        """Take the structure, or the failure, of a refinement of `prior_structure`.

        Args:
            refinement: the outcome.
        """
        self.refinement = refinement
        self.structure = refinement.structure
        self.failure = f"refiner: {refinement.failure}" if refinement.failure else None

    def add_failed(self, before: Sample) -> None:
        """Count the texts of a failed sample that this one replaces.

        Args:
            before: the failed sample.
        """
        assert before.failure is not None
        reasons = Counter(before.rejects)
        # All texts that were not rejected gave crystals, which are lost.
        reasons[before.failure.removeprefix("prior: ")] += before.attempts - reasons.total()
        self.attempts += before.attempts
        self.rejects = dict(reasons + Counter(self.rejects))

    def to_record(self) -> CrystalRecord:
        """Return the record of this sample for the shards of a run."""
        properties: dict[str, float | int | str] = {
            "prompt": self.prompt,
            "text": self.text,
            "attempts": self.attempts,
        }
        if self.template is not None:
            properties["template"] = self.template
        if self.rank_score is not None:
            properties["rank_score"] = self.rank_score
        trajectory = None
        if self.refinement is not None:
            score = self.refinement.log_likelihood
            if score is not None:
                values = (score.total, score.standard_error, score.per_degree)
                properties |= {
                    name: value
                    for name, value in zip(SCORE_COLUMNS, values, strict=True)
                    if not math.isnan(value)
                }
            if self.refinement.trajectory is not None:
                trajectory = frames(self.refinement.trajectory)
        return CrystalRecord(
            id=self.id,
            structure=self.structure,
            initial_structure=self.prior_structure,
            failure=self.failure,
            properties=properties,
            rejects=dict(self.rejects),
            trajectory=trajectory,
        )


def _same_sites(one: Structure, other: Structure) -> bool:
    """Return whether two cells of a crystal are the same, and the coordinates in them."""
    gaps = one.frac_coords - other.frac_coords
    gaps -= np.rint(gaps)
    cells = np.abs(one.lattice.matrix - other.lattice.matrix).max()
    return bool(cells < _SAME and np.abs(gaps).max() < _SAME)


def frames(trajectory: Trajectory) -> Sequence[Frame]:
    """Return the states of a refinement with their time `t` from 0 (base) to 1.

    Args:
        trajectory: F states.

    Returns:
        F frames.
    """
    return [
        Frame(lattice=lattice, frac_coords=frac_coords, info={"t": float(t)})
        for t, frac_coords, lattice in zip(
            trajectory.t, trajectory.frac_coords, trajectory.lattice, strict=True
        )
    ]
