"""Makers of jobflow (Rosen et al. 2024, Journal of Open Source Software 9, 5995).

A job writes a run folder `flowllm-UUID` into its working directory, as the command of the same name
does, and returns an object with lists of one length:

    structures    pymatgen Structures
    ids           of the crystals
    properties    an object for each crystal: energies, log-likelihoods and others

and with `failures` (number by reason) and `folder`. `EachMaker` hands the structures on to a maker
that takes one, such as those of atomate2.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pymatgen.core import Structure

from flowllm.crystals.crystal import Crystal
from flowllm.energy.calculators import POTENTIAL, check_potential_name
from flowllm.energy.minimization import RelaxationConfig
from flowllm.errors import UserError
from flowllm.generation.config import SamplingConfig
from flowllm.prediction.config import PredictionConfig
from flowllm.system.extras import require
from flowllm.system.options import check_count, from_arguments

require("jobflow", "jobflow")

from jobflow import CURRENT_JOB, Flow, Maker, Response, job  # noqa: E402


@dataclass
class SampleMaker(Maker):
    """Generates crystals, as `flowllm sample` does.

        SampleMaker(n=16, options={"temperature": 1.0}).make(formula="NaCl", spacegroup=225)

    Attributes:
        name: of the job.
        n: number of crystals.
        options: fields of `flowllm.SamplingConfig`.
        prior: folder or hub id of a prior or a pair; None: the bundled one.
        refiner: folder or hub id; None: that of the pair, else the bundled one.
        device: `cpu`, `cuda`, `cuda:NUMBER` or `auto`.

    Raises:
        FlowLLMError: if an option is unknown or impossible.
    """

    name: str = "sample"
    n: int = 16
    options: dict[str, Any] = field(default_factory=dict)
    prior: str | None = None
    refiner: str | None = None
    device: str = "auto"

    def __post_init__(self) -> None:
        check_count("n", self.n, 1)
        SamplingConfig.of(**self.options)

    @job
    def make(self, **conditions: Any) -> dict[str, Any]:
        """Return the job.

        Args:
            **conditions: of the crystals, by name, such as `formula` or `spacegroup`.
        """
        from flowllm.generation.sampling_run import run_sampling

        outcome = run_sampling(
            self.n,
            out=_folder(),
            prior=self.prior,
            refiner=self.refiner,
            device=self.device,
            progress=False,
            **self.options,
            **conditions,
        )
        return _document(outcome.crystals, outcome.failures, outcome.folder)


@dataclass
class PredictMaker(Maker):
    """Predicts the structures of formulas, as `flowllm predict` does.

    The crystals of each formula are in the order of their ranks, with the fields of
    `flowllm.Prediction` as properties.

        PredictMaker(n=5, options={"potential": "chgnet"}).make("LiCoO2")

    Attributes:
        name: of the job.
        n: structures for each formula.
        options: fields of `flowllm.PredictionConfig`.
        prior: folder or hub id of a prior or a pair; None: the bundled one.
        refiner: folder or hub id; None: that of the pair, else the bundled one.
        device: `cpu`, `cuda`, `cuda:NUMBER` or `auto`.

    Raises:
        FlowLLMError: if an option is unknown or impossible.
    """

    name: str = "predict"
    n: int = 5
    options: dict[str, Any] = field(default_factory=dict)
    prior: str | None = None
    refiner: str | None = None
    device: str = "auto"

    def __post_init__(self) -> None:
        check_count("n", self.n, 1)
        from_arguments(PredictionConfig, self.options)

    @job
    def make(self, formulas: str | Sequence[str]) -> dict[str, Any]:
        """Return the job.

        Args:
            formulas: one or several.
        """
        from flowllm.prediction.run import predict

        run = predict(
            formulas,
            self.n,
            out=_folder(),
            prior=self.prior,
            refiner=self.refiner,
            device=self.device,
            progress=False,
            **self.options,
        )
        records = [p.to_record() for o in run.outcomes for p in o.predictions]
        crystals = [
            Crystal(id=record.id, structure=record.structure, properties=dict(record.properties))
            for record in records
            if record.structure is not None
        ]
        failures: Counter[str] = sum((outcome.failures for outcome in run.outcomes), Counter())
        failures.update(o.problem for o in run.outcomes if o.problem is not None)
        return _document(crystals, failures, run.folder)


@dataclass
class RelaxMaker(Maker):
    """Relaxes crystals with a potential, cell and positions, as `flowllm relax` does.

    Crystals that cannot be relaxed are counted in `failures`; the properties of the others have
    `energy_per_atom` (eV/atom).

    Attributes:
        name: of the job.
        potential: see `flowllm.relax`.
        options: fields of `flowllm.RelaxationConfig`.

    Raises:
        FlowLLMError: if the potential or an option is unknown or impossible.
    """

    name: str = "relax"
    potential: str = POTENTIAL
    options: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_potential_name(self.potential)
        from_arguments(RelaxationConfig, self.options)

    @job
    def make(
        self, structures: Structure | Sequence[Structure], ids: Sequence[str] | None = None
    ) -> dict[str, Any]:
        """Return the job.

        Args:
            structures: one or several crystals, or the output of a job.
            ids: of the crystals; None: their numbers from 1.
        """
        from flowllm.energy.relaxation import relax_crystals

        given = [structures] if isinstance(structures, Structure) else list(structures)
        names = [str(number) for number in range(1, len(given) + 1)] if ids is None else ids
        outcome = relax_crystals(
            [Crystal(id=name, structure=s) for name, s in zip(names, given, strict=True)],
            out=_folder(),
            potential=self.potential,
            progress=False,
            **self.options,
        )
        return _document(outcome.crystals, outcome.failures, outcome.folder)


@dataclass
class EachMaker(Maker):
    """Makes a job of another maker for each structure, when their number is known.

        EachMaker(maker=StaticMaker()).make(relaxed.output["structures"])

    Attributes:
        name: of the job.
        maker: whose `make` takes a structure, such as atomate2's `StaticMaker`.

    Raises:
        UserError: if there is no maker.
    """

    name: str = "each"
    maker: Maker | None = None

    def __post_init__(self) -> None:
        if self.maker is None:
            raise UserError("EachMaker needs a maker of single structures; give maker=...")

    @job
    def make(self, structures: Sequence[Structure]) -> Any:
        """Return the job, whose output is the list of the outputs of the jobs.

        Args:
            structures: crystals, or the output of a job.
        """
        assert self.maker is not None
        jobs = [self.maker.make(structure) for structure in structures]
        return Response(replace=Flow(jobs, output=[one.output for one in jobs]))


def _folder() -> Path:
    """Return the run folder of the job that runs now; the same one if it is restarted here."""
    return Path(f"flowllm-{CURRENT_JOB.job.uuid}")


def _document(
    crystals: Sequence[Crystal], failures: Mapping[str, int], folder: Path
) -> dict[str, Any]:
    return {
        "structures": [crystal.structure for crystal in crystals],
        "ids": [crystal.id for crystal in crystals],
        "properties": [dict(crystal.properties) for crystal in crystals],
        "failures": dict(failures),
        "folder": str(folder.resolve()),
    }
