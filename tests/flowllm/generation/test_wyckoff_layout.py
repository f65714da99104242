"""Commands with a prior of the layout `wyckoff`."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
from cli_support import check_mistake
from pymatgen.core import Lattice, Structure

from flowllm.evaluation.sets import read_generated
from flowllm.generation import pipeline
from flowllm.generation.infilling import infill
from flowllm.generation.mutation import mutate
from flowllm.generation.pipeline import FlowLLM
from flowllm.generation.sampling_run import run_sampling
from flowllm.generation.scoring import ipt, score
from flowllm.metrics.conditions import conditions_met
from flowllm.training.pairing.config import PairingConfig
from flowllm.training.pairing.prior_pairs import pair_prior
from llm_prior import BaseModel, Prior, PriorError, Proposal, TextFormat
from llm_prior.wyckoff import actual_group
from prior_support import TINY
from rfm import Refiner
from support import BUNDLED_REFINER, MP20_SAMPLE, perovskite, run_command, table

REQUEST = {"formula": "SrTiO3", "num_atoms": 5, "spacegroup": "Pm-3m"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("wyckoff") / "prior"
    prior = Prior.build(BaseModel(architecture=TINY), TextFormat(layout="wyckoff"))
    prior.save_pretrained(path)
    return path


@pytest.fixture
def perovskites(tmp_path: Path) -> Path:
    return table(
        tmp_path / "perovskites.csv",
        [{"material_id": f"p{k}", "cif": perovskite(3.8 + k / 10).to(fmt="cif")} for k in range(3)],
    )


def test_samples_have_the_requested_group(folder: Path, tmp_path: Path) -> None:
    outcome = run_sampling(
        6, out=tmp_path / "run", prior=folder, refine=False, device="cpu", progress=False, **REQUEST
    )
    assert outcome is not None
    rows = pd.read_parquet(tmp_path / "run" / "samples.parquet")
    assert len(rows) == 6 and all(text.startswith("221\n") for text in rows["text"])
    for row in rows.itertuples():
        assert row.spacegroup == 221
        orbits = {tuple(line.split()) for line in row.text.split("\n") if line[0].isalpha()}
        moved = {(element, dict(zip("abcd", "badc", strict=True))[x]) for element, x in orbits}
        written = {tuple(word.split(":")) for word in row.wyckoff.split()}
        assert written in (orbits, moved)  # the prior may have chosen the other origin
        cif = (tmp_path / "run" / "cif" / f"{row.id}.cif").read_text()
        assert "_space_group_IT_number   221\n" in cif


def test_a_refined_sample_keeps_the_group_of_its_text(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not the higher one that a search at the tolerance for rough crystals finds."""
    shifted = Structure(
        Lattice.tetragonal(3.9, 3.92),
        perovskite().species,
        [[0, 0, 0], [0.5, 0.5, 0.508], [0.5, 0.5, 0], [0.5, 0, 0.5], [0, 0.5, 0.5]],
    )
    assert [actual_group(shifted, symprec) for symprec in (0.01, 0.1)] == [99, 221]
    proposal = Proposal(prompt="", structure=shifted, attempts=1)
    monkeypatch.setattr(pipeline, "propose", lambda *_, **__: [proposal])
    refiner = Refiner.from_pretrained(BUNDLED_REFINER)
    model = FlowLLM(Prior.from_pretrained(folder), refiner)
    (sample,) = model.sample(1, steps=5)
    assert sample.structure is not None and actual_group(sample.structure, 1e-3) == 99
    (refined,) = model.refine([shifted], steps=5)
    assert refined.structure is not None and actual_group(refined.structure, 1e-3) == 221


def test_a_set_of_groups_is_recorded_and_judged(folder: Path, tmp_path: Path) -> None:
    request = {"composition": "SrTiO3", "crystal_system": "cubic"}
    run = tmp_path / "run"
    for options in ({}, {"best_of": 2}):
        run = tmp_path / f"run{len(options)}"
        run_sampling(
            4, out=run, prior=folder, refine=False, device="cpu", progress=False,
            **request, **options,
        )  # fmt: skip
        generated = read_generated(run)
        assert generated.conditions["spacegroup"] == "195-230"
        judged = [conditions_met(c.structure, generated.conditions) for c in generated.crystals]
        assert len(judged) == 4 and all(all(met.values()) for met in judged)
        texts = pd.read_parquet(run / "samples.parquet")["text"]
        assert all(195 <= int(text.split("\n")[0]) <= 230 for text in texts)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            "--composition Mg4Al8O16",
            "composition Mg4Al8O16 has 28 atoms, this model writes at most",
        ),
        (
            "--formula Mg4Al8O16 --num-atoms 28",
            "28 atoms are too many, this model writes at most 20",
        ),
        ("--composition SrTiO3 --spacegroup 230", "exactly space group 230; groups that can: 1-3"),
        ("--composition SrTiO3 --spacegroup 222-230", "one of the space groups 222-230; groups th"),
        (
            "--composition Na2Mg3ClO5 --crystal-system cubic",
            "one of the space groups 195-230; group",
        ),
    ],
)
def test_what_a_wyckoff_prior_cannot_write_is_refused_before_it_loads(
    folder: Path, tmp_path: Path, options: str, message: str
) -> None:
    words = ["sample", "-n", "1", "--no-refine", "--prior", str(folder), *options.split()]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Prior, "from_pretrained", None)
        check_mistake(run_command(*words, "--out", tmp_path / "out"), message)
    assert not (tmp_path / "out").exists()


def test_the_best_candidate_is_ranked_by_its_text(folder: Path) -> None:
    model = FlowLLM(Prior.from_pretrained(folder), None)
    samples = model.sample(2, refine=False, best_of=3, **REQUEST)
    for sample in samples:
        assert sample.structure is not None and sample.rank_score is not None
        assert sample.rank_score < 0
        assert actual_group(sample.structure) == 221


def test_a_group_that_cannot_hold_the_atoms_is_refused(folder: Path) -> None:
    model = FlowLLM(Prior.from_pretrained(folder), None)
    with pytest.raises(PriorError, match="exactly space group 230; groups that can: "):
        model.sample(1, refine=False, **{**REQUEST, "spacegroup": 230})


def test_crystals_are_scored_infilled_and_mutated(
    folder: Path, perovskites: Path, tmp_path: Path
) -> None:
    conditions = ("formula", "num_atoms")
    free = score(perovskites, prior=folder, conditions=conditions, progress=False)
    bound = score(perovskites, prior=folder, conditions=conditions, constrain=True, progress=False)
    assert all(a < b < 0 for a, b in zip(free.values, bound.values, strict=True))
    assert list(ipt(perovskites, prior=folder, progress=False).values) == [0.0] * 3
    assert len(infill(perovskites, "Ti", prior=folder)) == 3
    mutate(perovskites, 3, out=tmp_path / "mutations", prior=folder, device="cpu", progress=False)
    assert len(pd.read_parquet(tmp_path / "mutations" / "samples.parquet")) == 3


def test_crystals_are_paired_with_samples(folder: Path, tmp_path: Path) -> None:
    config = PairingConfig(limit=4, max_attempts=1)
    outcome = pair_prior(
        MP20_SAMPLE, folder, config, out=tmp_path / "pairs", workers=1, device="cpu", progress=False
    )
    assert outcome is not None and (tmp_path / "pairs" / "pairs.parquet").exists()
