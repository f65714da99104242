"""`FlowLLM`: the prior proposes a crystal, the refiner moves it to where a stable one would be."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ase import Atoms
from pymatgen.core import IStructure, Lattice, Structure

from flowllm.crystals.cells import reduce_cell
from flowllm.crystals.formulas import KnownFormulas
from flowllm.crystals.io import to_structure
from flowllm.errors import InvalidCrystal, UserError
from flowllm.generation.capabilities import check_models, unknown_elements
from flowllm.generation.config import Rank, Settings, merge_conditions, symbols
from flowllm.generation.sample import Sample
from flowllm.generation.selection import (
    RankingPotential,
    add_candidates,
    choose,
    energy_scores,
    flat,
    flow_scores,
    prior_scores,
)
from flowllm.hub.locate import BUNDLED_PRIOR, BUNDLED_REFINER, resolve
from flowllm.runs.refined import structure_or_failure
from flowllm.runs.sharded import batch_seed
from flowllm.system.device import pick_device
from llm_prior import DEFAULT_ATTEMPTS, DEFAULT_TEMPERATURE, DEFAULT_TOP_P, Prior, propose
from rfm import Failure, Refinement, Refiner
from rfm import refine as refine_structures

BATCH_SIZE = 128
_NOTHING = Structure(Lattice.cubic(1), [], [])


class FlowLLM:
    """A text prior and a refiner (Sriram et al. 2024, arXiv 2410.23405).

    Args:
        prior: language model of crystals; None if only `refine` is used.
        refiner: flow-matching model; None for the plain language-model path.
        potential: ranks candidates by energy; `sample` loads the one that it is asked for.
    """

    def __init__(
        self,
        prior: Prior | None,
        refiner: Refiner | None,
        potential: RankingPotential | None = None,
    ) -> None:
        self.prior = prior
        self.refiner = refiner
        self.potential = potential

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
        novel_to: str | Path | Sequence[str | Path] = (),
        best_of: int = 1,
        rank: Rank = "prior",
        potential: str | None = None,
        steps: int | None = None,
        method: str | None = None,
        position_slope: float | None = None,
        cell_slope: float | None = None,
        trajectory: bool = False,
        score: bool = False,
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
            novel_to: files of crystals, such as a training set; what has the reduced formula of one
                of them is drawn again.
            best_of: candidates drawn for each crystal, all of the composition of the first.
            rank: which finished candidate stays, the likeliest under the `prior`, the one of lowest
                `energy`, or the likeliest under the `flow` (slow); see
                `flowllm.generation.selection`.
            potential: whose energy, see `flowllm.energy.calculators.load_calculator`; None is
                `chgnet`.
            steps, method, position_slope, cell_slope, trajectory, score: see `refine`; the last two
                come in `Sample.refinement`.
            batch_size: crystals at a time, as memory allows; another size draws other crystals.
            **conditions: further ones, such as `spacegroup=225`.

        Returns:
            `n` samples in order; one that failed has `structure` None and says why.

        Raises:
            UserError, PriorError, RefinerError: impossible or unknown conditions or settings.
        """
        if n < 0 or batch_size < 1:
            raise UserError(f"n {n} must be at least 0, batch_size {batch_size} at least 1")
        known = KnownFormulas(novel_to)
        settings = Settings(
            conditions=merge_conditions(formula, composition, conditions),
            refine=refine,
            seed=seed,
            temperature=temperature,
            top_p=top_p,
            max_attempts=max_attempts,
            constrain=constrain,
            exclude_elements=symbols(exclude_elements),
            novel_to=known.files,
            best_of=best_of,
            rank=rank,
            potential=potential,
            steps=steps,
            method=method,
            position_slope=position_slope,
            cell_slope=cell_slope,
            trajectory=trajectory,
            score=score,
        )
        known.check(settings.conditions)
        self.load_potential(settings)
        check_models(settings, composition, self.prior, self.refiner, self.potential)
        samples: list[Sample] = []
        for index, start in enumerate(range(0, n, batch_size)):
            count = min(batch_size, n - start)
            samples += self.sample_batch(settings, known, index, start, count)
        return samples

    def load_potential(self, settings: Settings) -> None:
        """Load and test the potential that ranks, if one does and it is another than before.

        Raises:
            UserError: there is no such potential, or it is wrong.
        """
        wanted = settings.ranking_potential
        if wanted is None:
            self.potential = None
        elif self.potential is None or self.potential.name != wanted:
            self.potential = RankingPotential.load(wanted)

    def sample_batch(
        self, settings: Settings, known: KnownFormulas, index: int, start: int, count: int
    ) -> list[Sample]:
        """Samples `start` to `start + count - 1`, which make batch number `index` of a run; `known`
        are the formulas of `settings.novel_to`. `check_models` has seen that it can be done, and
        what ranks is loaded."""
        seed = batch_seed(settings.seed, index)
        excluded = list(settings.exclude_elements)
        if settings.refine:  # what the prior may write is then what the refiner can take
            excluded += unknown_elements(self.refiner, settings.conditions)
        drawing = {
            "temperature": settings.temperature,
            "top_p": settings.top_p,
            "max_attempts": settings.max_attempts,
            "constrain": settings.constrain,
            "exclude_elements": excluded,
            "slots": -(-count // 2),  # what is finished makes room for the other half
        }
        proposals = propose(
            self.prior,
            [settings.conditions] * count,
            seed=seed,
            refuse=known.refuse,
            **drawing,
        )
        if settings.best_of > 1:
            groups = add_candidates(
                self.prior,
                proposals,
                settings.conditions,
                settings.best_of,
                seed=batch_seed(seed, 0),
                **drawing,
            )
        else:
            groups = [[proposal] for proposal in proposals]
        candidates = [
            [Sample.of(f"sample-{number:05d}", proposal) for proposal in group]
            for number, group in enumerate(groups, start)
        ]
        if settings.refine:
            self._refine_samples(flat(candidates), settings, seed)
        if settings.best_of > 1:
            candidates = choose(candidates, self._rank(flat(candidates), settings))
        return flat(candidates)

    def _rank(self, samples: Sequence[Sample], settings: Settings) -> list[float]:
        """The score of each finished candidate; the highest stays."""
        if self.potential is not None:
            return energy_scores(self.potential, samples)
        if settings.rank == "flow":
            return flow_scores(samples)
        return prior_scores(self.prior, settings.conditions, samples)

    def _refine_samples(self, samples: Sequence[Sample], settings: Settings, seed: int) -> None:
        """Refine samples in place."""
        good = [sample for sample in samples if sample.prior_structure is not None]
        results = refine_structures(
            self.refiner,
            [sample.prior_structure for sample in good],
            seed=seed,
            **settings.integration,
            trajectory=settings.trajectory,
            score=settings.score or settings.rank == "flow",
        )
        for sample, result in zip(good, results, strict=True):
            sample.structure, sample.failure = structure_or_failure(result)
            sample.refinement = result

    def refine(
        self,
        structures: Sequence[Structure | Atoms],
        *,
        seed: int = 0,
        steps: int | None = None,
        method: str | None = None,
        position_slope: float | None = None,
        cell_slope: float | None = None,
        trajectory: bool = False,
        score: bool = False,
        first_index: int = 0,
    ) -> list[Refinement]:
        """Refine structures from anywhere: pymatgen or ASE, reduced to their Niggli cell first.

        Meant for rough crystals such as a prior's samples; one that is relaxed already usually
        comes out worse.

        Args:
            structures: a list of ordered crystals.
            seed: structure k draws its noise from (seed, first_index + k).
            steps, method, position_slope, cell_slope: of the integration, see `rfm.integrate`; None
                takes the refiner's own.
            trajectory: keep every state on the way, from the base with its noise to the end.
            score: the log-likelihood of each refined crystal under the flow (`rfm.likelihood`);
                takes many times as long as refining.
            first_index: place of the first structure in a larger run.

        Returns:
            A `Refinement` for each, in order: `structure`, or None and the `failure` that says why.

        Raises:
            UserError, RefinerError: no refiner is loaded, a lone crystal instead of a list, or an
                impossible seed or setting.
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
            method=method,
            position_slope=position_slope,
            cell_slope=cell_slope,
            trajectory=trajectory,
            score=score,
        )
        return [
            Refinement(failure=Failure.BAD_INPUT, detail=str(crystal))
            if isinstance(crystal, InvalidCrystal)
            else result
            for crystal, result in zip(crystals, results, strict=True)
        ]
