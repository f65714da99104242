"""`FlowLLM`: the prior proposes a crystal, the refiner moves it to a stable one.

Structures come out of this module as they go in: pymatgen `Structure` or ASE `Atoms` in, pymatgen
`Structure` out. `flowllm.generation.sampling_run` does the same into a run folder.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ase import Atoms
from pymatgen.core import IStructure, Structure

from flowllm.crystals.cells import reduce_cell
from flowllm.crystals.crystal import to_structure
from flowllm.crystals.formulas import KnownFormulas
from flowllm.errors import InvalidCrystal, PriorError, UserError
from flowllm.generation.analogues import Analogues
from flowllm.generation.capabilities import check_models, check_predicts, unknown_elements
from flowllm.generation.config import RefinementConfig, SamplingConfig
from flowllm.generation.engines import ENGINES, Engine, check_engine, load_prior
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
from flowllm.hub.card import CARD_FILE
from flowllm.hub.locate import PRIOR, REFINER, resolve_pair
from flowllm.hub.publication import check_repo_id, model_card, push_to_hub
from flowllm.runs.sharded import batch_seed, no_progress
from flowllm.system.device import pick_device
from flowllm.system.files import publish
from flowllm.system.options import OptionSpec, check_count, from_arguments
from flowllm.templates.volumes import with_template_volume
from llm_prior import Prior, propose
from llm_prior.wyckoff.lattices import SYMPREC as STATED_SYMPREC
from rfm import Failure, Refinement, Refiner, find_symmetries
from rfm import refine as refine_structures

if TYPE_CHECKING:
    from flowllm.prediction.config import PredictionConfig
    from flowllm.prediction.prediction import Energies, Prediction

logger = logging.getLogger(__name__)

_MOST_SLOTS = 128  # texts written at a time; more take memory and save no time


class FlowLLM:
    """A text prior and a refiner (Sriram et al. 2024, arXiv 2410.23405).

    Args:
        prior: language model of crystals; None if only `refine` is used.
        refiner: flow-matching model; None for the plain language-model path.
        potential: ranks candidates by energy; `sample` loads the potential that a request names.
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
        # Of `predict`, kept for its next call: the request, and the potential.
        self.energies: tuple[Any, Energies] | None = None

    @classmethod
    def from_pretrained(
        cls,
        prior: str | Path | None = None,
        refiner: str | Path | None = None,
        *,
        device: str = "auto",
        engine: Engine = "plain",
    ) -> FlowLLM:
        """Load both models.

        Args:
            prior: folder or hub id of a prior, or of a pair (see `save_pretrained`); None takes the
                bundled prior.
            refiner: folder or hub id; None takes that of the pair that `prior` names, else the
                bundled one.
            device: `cpu`, `cuda`, `cuda:NUMBER` or `auto`.
            engine: what writes the texts of the prior: `plain`, or `vllm` (see
                `llm_prior.serving`). Requests name the same one.

        Returns:
            The composed model.

        Raises:
            UserError: if there is no such model, its weights are not those of its card, or there
                is no such device.
            PriorError: if the prior is damaged, or the engine cannot run it.
            RefinerError: if the refiner is damaged.
        """
        OptionSpec(help="", choices=ENGINES).check("engine", engine)
        where = pick_device(device)
        prior_folder, refiner_folder = resolve_pair(prior, refiner)
        check_engine(engine, prior_folder)
        return cls(
            load_prior(prior_folder, where, engine),
            Refiner.from_pretrained(refiner_folder, device=where),
        )

    def save_pretrained(self, folder: str | Path) -> Path:
        """Write the models to `prior/` and `refiner/` of a new folder, with a model card.

        Weights are safetensors files. `FlowLLM.from_pretrained(folder)` loads both again.

        Args:
            folder: must not exist, or be empty. It appears whole or not at all.

        Returns:
            The folder.

        Raises:
            UserError: if the folder is not empty, or there is no model to save.
        """
        folder = Path(folder)
        if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
            raise UserError(f"{folder} exists; choose another name, or an empty folder")
        if self.prior is None and self.refiner is None:
            raise UserError("there is neither a prior nor a refiner to save")

        def save(place: Path) -> None:
            place.mkdir()
            if self.prior is not None:
                self.prior.save_pretrained(place / PRIOR)
            if self.refiner is not None:
                self.refiner.save_pretrained(place / REFINER)
            (place / CARD_FILE).write_text(model_card(place, folder.name), encoding="utf-8")

        folder.parent.mkdir(parents=True, exist_ok=True)
        return publish(folder, save)

    def push_to_hub(self, repo_id: str, *, private: bool = False, token: str | None = None) -> str:
        """Upload the models as one repository of the Hugging Face hub.

        `FlowLLM.from_pretrained(repo_id)` loads both again.

        Args:
            repo_id: `OWNER/NAME` on the hub.
            private: make a private repository; an existing one stays as it is.
            token: access token of the hub; None: the one that `hf auth login` stored.

        Returns:
            The address of the repository.

        Raises:
            UserError: see `flowllm.push_to_hub`.
        """
        check_repo_id(repo_id)
        with tempfile.TemporaryDirectory() as folder:
            place = self.save_pretrained(Path(folder) / repo_id.rpartition("/")[2])
            (place / CARD_FILE).unlink()  # the one that is made there has the id of the hub
            return push_to_hub(place, repo_id, private=private, token=token)

    def sample(self, n: int, config: SamplingConfig | None = None, **options: Any) -> list[Sample]:
        """Generate `n` crystals.

        The result is a function of all arguments on one machine and for one number of torch
        threads; with one thread it equals that of `flowllm sample`.

            model.sample(16, formula="NaCl", spacegroup=225, seed=0)

        Args:
            n: number of crystals.
            config: the request; None: the defaults.
            **options: fields of `SamplingConfig`, and conditions by their names, such as
                `formula` or `spacegroup`; they replace those of `config`.

        Returns:
            `n` samples in order. The `structure` of a failed one is None, and `failure` says why.

        Raises:
            UserError: if an option is unknown or impossible, or a model is missing.
            PriorError: if a condition is impossible, or the prior cannot meet it.
            RefinerError: if the refiner cannot integrate with these settings.
        """
        config = SamplingConfig.of(config, **options)
        check_count("n", n, 0)
        known = KnownFormulas(config.novel_to)
        analogues = None if config.like is None else Analogues(config)
        self.prepare(config, known)
        self.check_analogues(config, analogues, n)
        samples: list[Sample] = []
        parameters = 0 if self.prior is None else self.prior.num_parameters
        batch_size = config.batch_size_for(n, parameters)
        for start in range(0, n, batch_size):
            indices = range(start, min(start + batch_size, n))
            samples += self.sample_batch(config, known, indices, analogues=analogues)
        return samples

    def check_analogues(self, config: SamplingConfig, analogues: Analogues | None, n: int) -> None:
        """Check that the crystals of `config.like` give enough structures of a size to refine.

        Args:
            config: the request.
            analogues: the structures, or None if the request has no `like`.
            n: structures that are asked for.

        Raises:
            UserError: if they do not.
        """
        if analogues is not None:
            refiner = self.refiner if config.refine else None
            analogues.check(n, None if refiner is None else refiner.config.max_atoms)

    def prepare(self, config: SamplingConfig, known: KnownFormulas) -> None:
        """Check that a request can be fulfilled, and load the potential that it ranks with.

        Args:
            config: the request.
            known: the formulas of `config.novel_to`.

        Raises:
            UserError: if a model is missing or does not know an element, or no formula is left.
            PriorError: if the prior cannot meet the conditions.
            RefinerError: if the refiner cannot integrate with these settings.
        """
        known.check(config.conditions)
        wanted = config.ranking_potential
        if wanted is not None and (self.potential is None or self.potential.name != wanted):
            self.potential = RankingPotential.load(wanted)
        ranking = None if wanted is None else self.potential
        check_models(config, self.prior, self.refiner, ranking)

    def sample_batch(
        self,
        config: SamplingConfig,
        known: KnownFormulas,
        indices: Sequence[int],
        progress: Callable[[int], None] = no_progress,
        *,
        analogues: Analogues | None = None,
        rescale: Callable[..., Structure] = with_template_volume,
    ) -> list[Sample]:
        """Return the samples of these indices, after `prepare`.

        A crystal that refining destroys is drawn again, text and all, as a rejected text is: while
        it has had fewer than `config.max_attempts` texts, and not at temperature 0.

        Every random number is a function of (`config.seed`, index of the sample, attempt), so the
        batches change the samples by the rounding of floating-point sums at most.

        Args:
            config: the request.
            known: the formulas of `config.novel_to`.
            indices: positions of the samples among all samples of the request.
            progress: called with the number of crystals that were finished since its last call;
                in the end they add up to that of `indices`.
            analogues: the structures of `config.like`.
            rescale: gives a crystal the volume from which refining starts with `config.volume`
                `templates`; takes the structure, and its `Sample.crystal` as `crystal`.

        Returns:
            The samples, in the order of `indices`.
        """
        if analogues is not None:
            return self._analogue_batch(config, analogues, indices, progress)
        samples = self._draw_batch(config, known, indices, progress, rescale)
        most = config.max_attempts if config.temperature > 0 else 0  # the same text again at 0
        for turn in range(1, most):
            places = [
                place
                for place, sample in enumerate(samples)
                if sample.structure is None and sample.attempts < most
            ]
            if not places:
                break
            logger.info("drawn again: %d of %d crystals", len(places), len(samples))
            failed = [samples[place] for place in places]
            drawn = self._draw_batch(
                config,
                known,
                [indices[place] for place in places],
                no_progress,
                rescale,
                turn=turn,
                first_attempts=[sample.attempts for sample in failed],
            )
            for place, before, sample in zip(places, failed, drawn, strict=True):
                sample.add_failed(before)
                samples[place] = sample
        return samples

    def _draw_batch(
        self,
        config: SamplingConfig,
        known: KnownFormulas,
        indices: Sequence[int],
        progress: Callable[[int], None],
        rescale: Callable[..., Structure],
        *,
        turn: int = 0,
        first_attempts: Sequence[int] | None = None,
    ) -> list[Sample]:
        """Draw, refine and choose the samples of these indices for the first or a later turn."""
        assert self.prior is not None  # see `check_models`
        if first_attempts is None:
            first_attempts = [0] * len(indices)
        excluded = list(config.exclude_elements)
        if config.refine:  # the prior writes only elements that the refiner knows
            assert self.refiner is not None
            excluded += unknown_elements(self.refiner, config.conditions)
        drawing: dict[str, Any] = {
            **config.drawing,
            "exclude_elements": excluded,
            "slots": min(len(indices), _MOST_SLOTS),
        }
        last = "choose" if config.best_of > 1 else "refine" if config.refine else "propose"
        proposals = propose(
            self.prior,
            [config.conditions] * len(indices),
            seed=config.seed,
            indices=indices,
            first_attempts=first_attempts,
            refuse=known.refuse,
            on_finished=progress if last == "propose" else None,
            **drawing,
        )
        groups = add_candidates(
            self.prior,
            proposals,
            config.conditions,
            config.best_of,
            seed=config.seed,
            indices=indices,
            first_attempts=first_attempts,
            **drawing,
        )
        candidates = [
            [Sample.of(f"sample-{index:05d}", proposal) for proposal in group]
            for index, group in zip(indices, groups, strict=True)
        ]
        if config.refine:
            # Candidate k of sample i has the number i * best_of + k among all candidates.
            numbers = [
                index * config.best_of + k
                for index, group in zip(indices, candidates, strict=True)
                for k in range(len(group))
            ]
            self._refine_samples(
                flat(candidates),
                numbers,
                config,
                progress if last == "refine" else no_progress,
                rescale if self._rescales(config) else None,
                turn=turn,
            )
        if config.best_of > 1:
            candidates = choose(candidates, self._rank(flat(candidates), config))
            progress(len(candidates))
        return flat(candidates)

    def _analogue_batch(
        self,
        config: SamplingConfig,
        analogues: Analogues,
        indices: Sequence[int],
        progress: Callable[[int], None],
    ) -> list[Sample]:
        """Return the samples of these indices that crystals of a file give."""
        samples = []
        for index in indices:
            proposal = analogues.proposals[index]
            structure, failure = None, None
            try:
                structure = reduce_cell(proposal.structure)
            except (PriorError, InvalidCrystal):
                failure = "template: no_reduced_cell"
            samples.append(
                Sample(
                    id=f"sample-{index:05d}",
                    prompt="",
                    text="",
                    prior_structure=structure,
                    structure=structure,
                    failure=failure,
                    template=proposal.template,
                )
            )
        if config.refine:
            self._refine_samples(samples, indices, config, progress)
        else:
            progress(len(samples))
        return samples

    def _rank(self, samples: Sequence[Sample], config: SamplingConfig) -> list[float]:
        """Return the score of each finished candidate; the highest one wins."""
        if config.rank == "energy":
            assert self.potential is not None  # see `prepare`
            return energy_scores(self.potential, samples)
        if config.rank == "flow":
            return flow_scores(samples)
        assert self.prior is not None
        return prior_scores(self.prior, config.conditions, samples)

    def _rescales(self, config: SamplingConfig) -> bool:
        """Return whether samples get another volume; noise has none of theirs."""
        assert self.refiner is not None
        return config.volume == "templates" and self.refiner.config.base.from_crystals

    def _refine_samples(
        self,
        samples: Sequence[Sample],
        numbers: Sequence[int],
        config: SamplingConfig,
        progress: Callable[[int], None],
        rescale: Callable[..., Structure] | None = None,
        *,
        turn: int = 0,
    ) -> None:
        """Refine samples in place, rescaled before; later turns have other noise."""
        assert self.refiner is not None
        structures, places = [], []
        for place, sample in enumerate(samples):
            if (structure := sample.prior_structure) is not None:
                if rescale is not None:
                    structure = rescale(structure, crystal=sample.crystal)
                structures.append(structure)
                places.append(place)
        progress(len(samples) - len(places))
        groups = None
        exact = self.prior is None or self.prior.fmt.layout == "wyckoff" or config.like is not None
        if config.symmetry == "keep" and exact:
            # Text or template state the group; a wider search may find a higher one.
            groups = find_symmetries(
                structures,
                STATED_SYMPREC,
                # Without the grammar a text may state a lower group than its crystal has.
                [samples[place].operations if config.constrain else None for place in places],
            )
        results = refine_structures(
            self.refiner,
            structures,
            seed=batch_seed(config.seed, turn) if turn else config.seed,
            indices=[numbers[place] for place in places],
            integration=self.refiner.config.integration.but(**config.integration),
            trajectory=config.trajectory,
            score=config.score or config.rank == "flow",
            on_finished=progress,
            symmetry=config.symmetry,
            groups=groups,
        )
        for place, result in zip(places, results, strict=True):
            samples[place].add_refinement(result)

    def predict(
        self, formula: str, n: int = 5, config: PredictionConfig | None = None, **options: Any
    ) -> list[Prediction]:
        """Predict the structure of a formula: candidates, ranked, the best first.

        Candidates come from templates (known crystals with other elements) and from the prior;
        `potential="chgnet"` relaxes them and ranks by energy. `flowllm.predict` does the same for
        many formulas into a run folder.

            model.predict("LiFePO4", n=5, potential="chgnet")

        Args:
            formula: such as `NaCl`; the number of formula units is open unless `z` is given.
            n: number of structures at most.
            config: the request; None: the defaults.
            **options: fields of `flowllm.PredictionConfig`; they replace those of `config`.

        Returns:
            At most `n` predictions.

        Raises:
            UserError: if the formula fits into no cell of the request or has no candidate, an
                option, a file or the potential is bad, or the potential fails on every candidate.
            PriorError: if it is no formula.
        """
        from flowllm.prediction.config import PredictionConfig
        from flowllm.prediction.prediction import predict_structures

        check_predicts(self.prior)
        config = from_arguments(PredictionConfig, options, base=config)
        return predict_structures(self, formula, n, config)

    def refine(
        self,
        structures: Sequence[Structure | Atoms],
        config: RefinementConfig | None = None,
        *,
        indices: Sequence[int] | None = None,
        **options: Any,
    ) -> list[Refinement]:
        """Refine crystals from anywhere, reduced to their Niggli cells first.

        Meant for rough crystals such as the samples of a prior. A relaxed crystal usually comes out
        worse.

        Args:
            structures: ordered crystals, pymatgen or ASE.
            config: settings of refining; None: the defaults.
            indices: position of each crystal in a larger run; crystal k draws its noise from
                (seed, indices[k]). None: 0, 1, 2 and so on.
            **options: fields of `RefinementConfig`; they replace those of `config`.

        Returns:
            A `Refinement` for each crystal, in order: `structure`, or None and `failure`.

        Raises:
            UserError: if no refiner is loaded, `structures` is a single crystal, or an option is
                unknown or impossible.
            RefinerError: if there is not one index for each crystal, or one is negative.
        """
        config = from_arguments(RefinementConfig, options, base=config)
        if self.refiner is None:
            raise UserError("refine needs a refiner; load one with FlowLLM.from_pretrained")
        if isinstance(structures, IStructure | Atoms):  # both are sequences, of sites and atoms
            raise UserError("refine takes a list of crystals; put a single one into brackets: [s]")
        numbers = range(len(structures)) if indices is None else indices
        if len(numbers) != len(structures):
            raise UserError(
                f"{len(numbers)} indices are given for {len(structures)} crystals; give one each"
            )
        crystals: dict[int, Structure] = {}
        errors: dict[int, InvalidCrystal] = {}
        for place, structure in enumerate(structures):
            try:
                crystals[place] = reduce_cell(to_structure(structure))
            except InvalidCrystal as error:
                errors[place] = error
        found = refine_structures(
            self.refiner,
            list(crystals.values()),
            seed=config.seed,
            indices=[numbers[place] for place in crystals],
            integration=self.refiner.config.integration.but(**config.integration),
            trajectory=config.trajectory,
            score=config.score,
            symmetry=config.symmetry,
        )
        results = dict(zip(crystals, found, strict=True))
        for place, invalid in errors.items():
            results[place] = Refinement(failure=Failure.BAD_INPUT, detail=str(invalid))
        return [results[place] for place in range(len(structures))]
