"""Jobs of jobflow, run in this process."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from pymatgen.core import Lattice, Structure

from flowllm import FlowLLMError, UserError

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of the databases that jobflow can store into
    jobflow = pytest.importorskip("jobflow", reason="jobflow is not installed")
    from maggma.stores import MemoryStore

    from flowllm.workflows.jobflow import EachMaker, PredictMaker, RelaxMaker, SampleMaker

EMT = "ase.calculators.emt:EMT"
COPPER = Structure.from_spacegroup("Fm-3m", Lattice.cubic(3.7), ["Cu"], [[0, 0, 0]])


@dataclass
class VolumeMaker(jobflow.Maker):
    """Stands for a maker of another package that takes one structure."""

    name: str = "volume"

    @jobflow.job
    def make(self, structure: Structure) -> float:
        return structure.volume / len(structure)


def run(jobs: list[Any], folder: Path) -> list[Any]:
    """Run jobs one after another and return their outputs."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        store = jobflow.JobStore(MemoryStore())
        jobflow.run_locally(
            jobflow.Flow(jobs),
            store=store,
            root_dir=folder,
            create_folders=True,
            log=False,
            raise_immediately=True,
        )
        return [one.output.resolve(store) for one in jobs]


def test_crystals_are_sampled_relaxed_and_handed_on(tmp_path: Path) -> None:
    sample = SampleMaker(n=2, device="cpu", options={"seed": 3, "steps": 2}).make(formula="Cu")
    relax = RelaxMaker(potential=EMT, options={"step_limit": 100, "force_limit": 0.2}).make(
        sample.output["structures"], sample.output["ids"]
    )
    each = EachMaker(maker=VolumeMaker()).make(relax.output["structures"])
    made, relaxed, volumes = run([sample, relax, each], tmp_path)
    assert made["ids"] == ["sample-00000", "sample-00001"] and made["failures"] == {}
    assert all(s.composition.reduced_formula == "Cu" for s in made["structures"])
    assert (Path(made["folder"]) / "samples.parquet").is_file()
    assert tmp_path in Path(made["folder"]).parents
    assert len(relaxed["ids"]) + sum(relaxed["failures"].values()) == 2
    assert all("energy_per_atom" in values for values in relaxed["properties"])
    assert relaxed["ids"]
    expected = [s.volume / len(s) for s in relaxed["structures"]]
    assert volumes == pytest.approx(expected) and 10 < min(volumes) < 14  # Angstrom^3 per atom


def test_a_single_structure_is_relaxed(tmp_path: Path) -> None:
    (relaxed,) = run([RelaxMaker(potential=EMT).make(COPPER)], tmp_path)
    assert relaxed["ids"] == ["1"]
    assert relaxed["structures"][0].volume / 4 == pytest.approx(11.5, abs=0.5)


def test_structures_are_predicted_and_handed_on(tmp_path: Path) -> None:
    options = {"num_samples": 0, "num_templates": 3}
    predict = PredictMaker(n=2, device="cpu", options=options).make(["CuAu", "NaCl"])
    each = EachMaker(maker=VolumeMaker()).make(predict.output["structures"])
    found, volumes = run([predict, each], tmp_path)
    assert found["ids"][0] == "CuAu-1" and "NaCl-1" in found["ids"]
    assert len(volumes) == len(found["ids"]) == len(found["structures"]) <= 4
    first = found["properties"][found["ids"].index("NaCl-1")]
    assert first["rank"] == 1 and first["spacegroup"] == 225
    assert (Path(found["folder"]) / "predictions.parquet").is_file()


def test_bad_settings_are_refused_before_anything_runs() -> None:
    for maker, settings in (
        (SampleMaker, {"n": 0}),
        (SampleMaker, {"options": {"temperatur": 1}}),
        (PredictMaker, {"options": {"num_samples": -1}}),
        (EachMaker, {}),
        (RelaxMaker, {"potential": "unknown"}),
        (RelaxMaker, {"options": {"force_limit": -1}}),
    ):
        with pytest.raises(FlowLLMError):
            maker(**settings)


def test_makers_survive_the_way_through_a_database() -> None:
    maker = SampleMaker(n=3, options={"temperature": 1.0}, prior="me/pair")
    assert SampleMaker.from_dict(maker.as_dict()) == maker


def test_without_jobflow_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib
    import sys

    monkeypatch.setitem(sys.modules, "jobflow", None)
    monkeypatch.delitem(sys.modules, "flowllm.workflows.jobflow")
    with pytest.raises(UserError, match=r"needs jobflow, .* 'flowllm-crystal\[jobflow\]'"):
        importlib.import_module("flowllm.workflows.jobflow")
