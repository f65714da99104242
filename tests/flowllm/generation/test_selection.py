"""Novelty and best of K: crystals of known formulas are drawn again, the best candidate stays."""

from __future__ import annotations

import math
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from ase.calculators.calculator import Calculator
from pymatgen.core import Lattice, Structure

from flowllm import FlowLLM, Sample, UserError, run_sampling
from flowllm.crystals.cells import reduce_cell
from flowllm.crystals.formulas import KNOWN_FORMULA, KnownFormulas
from flowllm.crystals.io import Crystal, write
from flowllm.energy import potential_check
from flowllm.generation import pipeline
from flowllm.generation.selection import RankingPotential, choose, energy_scores
from flowllm.runs.records import read_records
from flowllm.runs.sharded import RunFolder
from llm_prior import composition_conditions, generation_prompt
from llm_prior.scoring import score_texts
from llm_prior.text import encode
from rfm import LogLikelihood, Refinement

N = 6


@pytest.fixture(scope="module")
def free(model: FlowLLM) -> list[Sample]:
    """Samples without a condition."""
    return model.sample(N, refine=False, seed=1)


def formula(made: Sample) -> str:
    return made.structure.composition.reduced_formula


def records(samples: list[Sample]) -> list[dict[str, Any]]:
    return [made.to_record().to_json() for made in samples]


# Novelty


def known_crystals(free: list[Sample], file: Path) -> Path:
    """Write every other crystal in a cell of twice the size, as only formulas count."""
    crystals = []
    for made in free[::2]:
        structure = made.structure.copy()
        structure.make_supercell([1, 1, 2])
        crystals.append(Crystal(id=made.id, structure=structure))
    return write(crystals, file)


def test_known_formulas_are_drawn_again_and_the_others_stay(
    model: FlowLLM, free: list[Sample], tmp_path: Path
) -> None:
    file = known_crystals(free, tmp_path / "known.jsonl")
    known = {formula(made) for made in free[::2]}
    found = model.sample(N, refine=False, seed=1, novel_to=file)
    assert known.isdisjoint(formula(made) for made in found)
    for before, after in zip(free, found, strict=True):
        if formula(before) in known:
            assert after.rejects[KNOWN_FORMULA] >= 1
        else:
            assert records([after]) == records([before])


def test_a_run_counts_what_it_refused_and_a_lost_shard_comes_back(
    model: FlowLLM, free: list[Sample], tmp_path: Path
) -> None:
    file = known_crystals(free, tmp_path / "known.jsonl")
    options: dict[str, Any] = {"seed": 1, "novel_to": [file], "batch_size": 3, "refine": False}
    sample = partial(run_sampling, N, out=tmp_path / "run", prior="bundled:sites", device="cpu")
    outcome = sample(**options)
    folder = RunFolder.open(outcome.folder)
    refused = sum(made.rejects.get(KNOWN_FORMULA, 0) for made in read_records(folder))
    assert outcome.rejects[KNOWN_FORMULA] == refused > 0
    before = folder.shard(1).read_bytes()
    folder.shard(1).unlink()
    sample(**options)
    assert folder.shard(1).read_bytes() == before
    with pytest.raises(UserError, match="novel_to"):
        sample(**{**options, "novel_to": ()})


def test_a_formula_that_is_known_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    structure = Structure(Lattice.cubic(4), ["Na", "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]])
    file = write([Crystal(id="known", structure=structure)], tmp_path / "known.jsonl")
    for asked in ({"formula": "ClNa"}, {"composition": "Na4Cl4"}):
        with pytest.raises(UserError, match="NaCl is among the known crystals"):
            run_sampling(1, out=tmp_path / "run", novel_to=file, **asked)
    assert not (tmp_path / "run").exists()
    KnownFormulas(file).check({"formula": "Na2Cl", "elements": "Na, Cl"})
    with pytest.raises(UserError, match="no such file"):
        run_sampling(1, out=tmp_path / "run", novel_to=tmp_path / "absent.csv")


# Best of K


def test_the_likeliest_of_one_composition_stays(model: FlowLLM, free: list[Sample]) -> None:
    best = model.sample(N, refine=False, seed=1, best_of=3)
    better = 0
    for one, other in zip(free, best, strict=True):
        assert one.structure.composition == other.structure.composition
        composition = one.structure.composition
        prompt = generation_prompt(
            {"formula": composition.reduced_formula, "num_atoms": len(one.structure)}
        )
        first, kept = score_texts(model.prior, [prompt] * 2, [one.text, other.text])
        assert kept.log_likelihood >= first.log_likelihood - 1e-4
        better += kept.log_likelihood > first.log_likelihood + 1
        assert other.attempts == 3 + sum(other.rejects.values())
    assert better >= N / 3
    assert records(model.sample(N, refine=False, seed=1, best_of=3)) == records(best)


def test_the_flow_ranks_refined_crystals(model: FlowLLM, monkeypatch: pytest.MonkeyPatch) -> None:
    scores = {0: -3.0, 1: 2.0, 2: 1.0, 3: None, 4: float("nan"), 5: -50.0}

    def refine(refiner: object, structures: list[Structure], **options: Any) -> list[Refinement]:
        assert options["score"] and len(structures) == len(scores)
        results = []
        for (place, change), structure in zip(scores.items(), structures, strict=True):
            score = None
            if change is not None:
                score = LogLikelihood(base=0, change=change, standard_error=0, degrees_of_freedom=9)
            marked = structure.copy({"place": [place] * len(structure)})
            results.append(Refinement(structure=marked, log_likelihood=score))
        return results

    monkeypatch.setattr(pipeline, "refine_structures", refine)
    samples = model.sample(2, composition="NaCl", best_of=3, rank="flow", seed=2)
    assert [made.structure.site_properties["place"][0] for made in samples] == [1, 5]


def test_the_prior_ranks_refined_crystals_in_the_niggli_cell(
    model: FlowLLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of three candidates one becomes rock salt in another cell than the Niggli cell, in which
    texts describe crystals; the other two become gases."""
    salt = Structure(
        Lattice.from_parameters(3.97, 3.97, 3.97, 60, 60, 60),
        ["Na", "Cl"],
        [[0, 0, 0], [0.5, 0.5, 0.5]],
    )
    skewed = salt.copy().make_supercell([[1, 0, 0], [3, 1, 0], [0, 2, 1]])
    gas = Structure(Lattice.cubic(14.1), ["Na", "Cl"], [[0, 0, 0], [0.13, 0.31, 0.87]])

    def refine(refiner: object, structures: list[Structure], **options: Any) -> list[Refinement]:
        places = ([gas, skewed, gas] * 2)[: len(structures)]
        return [
            Refinement(structure=made.copy({"place": [place] * len(made)}))
            for place, made in enumerate(places)
        ]

    monkeypatch.setattr(pipeline, "refine_structures", refine)
    samples = model.sample(2, composition="NaCl", best_of=3, seed=2)
    assert [made.structure.site_properties["place"][0] for made in samples] == [1, 4]
    prompt = generation_prompt(composition_conditions("NaCl"))
    as_it_is, reduced = (encode(made, model.prior.fmt) for made in (skewed, reduce_cell(skewed)))
    low, high = score_texts(model.prior, [prompt] * 2, [as_it_is, reduced])
    assert low.log_likelihood < high.log_likelihood - 5


def harmonic() -> Calculator:
    """Lowest where the cell has 20 Angstrom^3 an atom."""

    class Harmonic(Calculator):
        implemented_properties = ("energy",)

        def calculate(self, *arguments: Any, **options: Any) -> None:
            super().calculate(*arguments, **options)
            n = len(self.atoms)
            self.results["energy"] = n * (self.atoms.get_volume() / n - 20) ** 2

    return Harmonic()


def broken() -> Calculator:
    """Raises an error of the kind that potentials raise."""

    class Broken(Calculator):
        implemented_properties = ("energy",)

        def calculate(self, *arguments: Any, **options: Any) -> None:
            raise ValueError("no such element")

    return Broken()


@pytest.fixture
def untested(monkeypatch: pytest.MonkeyPatch) -> None:
    """Toy potentials know nothing of NaCl."""
    monkeypatch.setattr(potential_check, "check_calculator", lambda *a: None)


def test_the_one_of_lowest_energy_stays(model: FlowLLM, untested: None) -> None:
    name = f"{__name__}:harmonic"
    options = {"composition": "NaCl", "best_of": 4, "seed": 2, "refine": False}
    best = model.sample(N, rank="energy", potential=name, **options)
    free = model.sample(N, composition="NaCl", seed=2, refine=False)

    def off(made: Sample) -> float:
        return abs(made.structure.volume / len(made.structure) - 20)

    pairs = [(off(kept), off(first)) for kept, first in zip(best, free, strict=True)]
    assert all(kept <= first + 1e-9 for kept, first in pairs)
    assert sum(kept < first for kept, first in pairs) >= N / 3
    assert [made.rank_score for made in best] == pytest.approx([-(off(m) ** 2) for m in best])
    assert all(made.rank_score is None for made in free)


def test_if_a_potential_fails_the_first_candidate_stays_and_the_log_says_so(
    model: FlowLLM, untested: None, caplog: pytest.LogCaptureFixture
) -> None:
    options = {"composition": "NaCl", "seed": 2, "refine": False}
    name = f"{__name__}:broken"
    best = model.sample(2, best_of=3, rank="energy", potential=name, **options)
    free = model.sample(2, **options)
    assert [b.structure for b in best] == [f.structure for f in free]
    assert all(made.rank_score is None for made in best)
    (line,) = [r.getMessage() for r in caplog.records if "energy" in r.getMessage()]
    assert line.startswith("6 of 6 candidates") and line.endswith("the first: no such element")


def test_a_crystal_that_a_potential_does_not_know_has_no_energy() -> None:
    """Atoms within 0.5 Angstrom and elements outside its data: their energies mean nothing."""
    lattice = Lattice.cubic(20 ** (1 / 3) * 2 ** (1 / 3))
    apart = Structure(lattice, ["Na", "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]])
    close = Structure(lattice, ["Na", "Cl"], [[0, 0, 0], [0, 0, 0.1]])
    heavy = Structure(lattice, ["Na", "Cm"], [[0, 0, 0], [0.5, 0.5, 0.5]])
    potential = RankingPotential("harmonic", harmonic(), frozenset({"Na", "Cl"}))
    samples = [Sample(id="", prompt="", text="", structure=s) for s in (close, heavy, None, apart)]
    scores = energy_scores(potential, samples)
    assert scores[:3] == [-math.inf] * 3 and scores[3] == pytest.approx(0, abs=1e-9)


def test_an_element_that_the_potential_has_not_learnt_is_refused(model: FlowLLM) -> None:
    pytest.importorskip("chgnet", reason="the extra [eval] is not installed")
    with pytest.raises(UserError, match="potential chgnet has not learnt Cm; rank by the prior"):
        model.sample(1, composition="CmO", best_of=2, rank="energy", refine=False)


def test_the_manifest_names_the_potential(tmp_path: Path, untested: None) -> None:
    pytest.importorskip("chgnet", reason="the extra [eval] is not installed")
    options: dict[str, Any] = {"composition": "NaCl", "best_of": 2, "seed": 2, "refine": False}
    sample = partial(run_sampling, 2, out=tmp_path / "run", device="cpu", rank="energy", **options)
    outcome = sample()
    manifest = RunFolder.open(outcome.folder).run
    assert manifest["potential"]["name"] == "chgnet" and len(outcome.crystals) == 2
    scores = pq.read_table(outcome.folder / "samples.parquet")["rank_score"].to_pylist()
    assert all(2 < score < 5 for score in scores)  # NaCl has -3.4 eV an atom
    with pytest.raises(UserError, match="potential"):
        sample(potential=f"{__name__}:harmonic")


def test_a_candidate_without_a_structure_never_stays_beside_one_with() -> None:
    structure = Structure(Lattice.cubic(3), ["Po"], [[0, 0, 0]])
    group = [
        Sample(id="a", prompt="", text=str(k), structure=s, attempts=2, rejects={"why": 1})
        for k, s in enumerate((None, structure, structure))
    ]
    ((chosen,),) = choose([group], [9.0, 1.0, 1.0])
    assert (chosen.text, chosen.attempts, chosen.rejects) == ("1", 6, {"why": 3})
    assert Counter(chosen.rejects).total() == 3


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch, untested: None) -> list[str]:
    """The names of the potentials that were loaded, in order."""
    names: list[str] = []
    load = RankingPotential.load

    def counted(name: str, **options: Any) -> RankingPotential:
        names.append(name)
        return load(name, **options)

    monkeypatch.setattr(RankingPotential, "load", counted)
    return names


def test_a_potential_is_loaded_once_and_ranks_only_if_requested(
    model: FlowLLM, loads: list[str]
) -> None:
    pair = FlowLLM(model.prior, model.refiner)
    options = {"composition": "NaCl", "best_of": 2, "seed": 2, "refine": False}
    name = f"{__name__}:harmonic"
    first = pair.sample(2, rank="energy", potential=name, **options)
    by_prior = pair.sample(2, **options)
    again = pair.sample(2, rank="energy", potential=name, **options)
    assert loads == [name]
    assert records(again) == records(first)
    assert records(by_prior) == records(model.sample(2, **options))


def test_a_run_loads_a_potential_only_to_rank_by_energy(tmp_path: Path, loads: list[str]) -> None:
    sample = partial(run_sampling, 2, device="cpu", composition="NaCl", refine=False, best_of=2)
    sample(out=tmp_path / "prior")
    assert loads == []
    name = f"{__name__}:harmonic"
    outcome = sample(out=tmp_path / "energy", rank="energy", potential=name)
    assert loads == [name]
    run = RunFolder.open(outcome.folder).run
    assert (run["rank"], run["potential"]) == ("energy", {"name": name})
    table = pq.read_table(outcome.folder / "samples.parquet").to_pylist()
    for row, made in zip(table, outcome.crystals, strict=True):
        off = made.structure.volume / len(made.structure) - 20
        assert row["rank_score"] == pytest.approx(-(off**2))
