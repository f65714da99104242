"""Commands with a prior of the layout `wyckoff`."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq
import pytest
from cli_support import check_mistake
from pymatgen.core import Lattice, Structure

from flowllm.crystals.io import Crystal, read, write
from flowllm.evaluation.sets import read_generated
from flowllm.generation import pipeline
from flowllm.generation.infilling import infill
from flowllm.generation.mutation import mutate
from flowllm.generation.pipeline import FlowLLM
from flowllm.generation.sampling_run import run_sampling
from flowllm.generation.scoring import ipt, score
from flowllm.metrics.conditions import conditions_met
from flowllm.templates import volumes
from flowllm.training.pairing.config import PairingConfig
from flowllm.training.pairing.prior_pairs import pair_prior
from llm_prior import BaseModel, Prior, PriorError, Proposal, TextFormat
from llm_prior.wyckoff import actual_group, describe, space_group
from llm_prior.wyckoff.crystal import Orbit, WyckoffCrystal
from prior_support import TINY
from rfm import Refiner
from support import BUNDLED_REFINER, MP20_SAMPLE, SALT, perovskite, run_command, table

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


def test_the_symmetry_of_a_text_is_not_searched_again(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = FlowLLM(
        Prior.from_pretrained(folder, device="cpu"),
        Refiner.from_pretrained(BUNDLED_REFINER, device="cpu"),
    )
    before = model.sample(2, **REQUEST)

    def searched(*_: object) -> None:
        raise AssertionError("a search")

    monkeypatch.setattr("rfm.symmetry._search", searched)
    monkeypatch.setattr(volumes, "symmetry_of", searched)
    after = model.sample(2, **REQUEST)
    assert all(sample.crystal is not None for sample in after)
    assert [s.structure for s in before] == [s.structure for s in after]


@pytest.mark.parametrize(("constrain", "group"), [(True, 99), (False, 221)])
def test_only_a_text_under_the_grammar_is_believed(
    folder: Path, monkeypatch: pytest.MonkeyPatch, constrain: bool, group: int
) -> None:
    """This one states the group 99, and its crystal has 221."""
    orbits = [("Sr", "a", 0.0), ("Ti", "b", 0.5), ("O", "b", 0.0), ("O", "c", 0.5)]
    crystal = WyckoffCrystal(
        spacegroup=99,
        orbits=tuple(Orbit(element=e, letter=letter, coords=(z,)) for e, letter, z in orbits),
        cell=(3.9, 3.9),
    )
    proposal = Proposal(prompt="", structure=crystal.primitive(), crystal=crystal, attempts=1)
    monkeypatch.setattr(pipeline, "propose", lambda *_, **__: [proposal])
    kept = []
    monkeypatch.setattr(
        pipeline, "refine_structures", lambda *_, groups, **__: kept.extend(groups) or []
    )
    refiner = Refiner.from_pretrained(BUNDLED_REFINER)
    model = FlowLLM(Prior.from_pretrained(folder), refiner)
    with pytest.raises(ValueError, match="shorter"):  # nothing was refined
        model.sample(1, constrain=constrain)
    assert len(kept[0].rotations) == {99: 8, 221: 48}[group]


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


@pytest.mark.parametrize("layout", ["wyckoff", "sites"])
def test_a_swap_takes_whole_orbits_and_keeps_the_group(
    layout: str, folder: Path, tmp_path: Path
) -> None:
    """20 real crystals: group, letters, cell and positions stay, one element stands for another."""
    parents = {crystal.id: crystal.structure for crystal in read(MP20_SAMPLE)[::3][:20]}
    write([Crystal(id=name, structure=s) for name, s in parents.items()], tmp_path / "in.jsonl")
    prior = folder if layout == "wyckoff" else "bundled:sites"
    options = {"prior": prior, "device": "cpu", "cif": "p1"}
    mutate(
        tmp_path / "in.jsonl", 40, out=tmp_path / "swaps", swap_table=False, progress=False,
        **options,
    )  # fmt: skip
    infill(tmp_path / "in.jsonl", "O", structures=tmp_path / "filled", **options)
    rows = [
        row
        for run in ("swaps", "filled")
        for row in pq.read_table(tmp_path / run / "samples.parquet").to_pylist()
    ]
    assert len({row.get("parent") for row in rows}) > 10
    for row in rows:
        parent = parents[row.get("parent") or row["id"]]
        child = Structure.from_str(row["structure"], fmt="json")
        old, new = row["swap"].split("->")
        before, after = describe(parent), describe(child)
        assert after.spacegroup == before.spacegroup
        if new not in before.composition:  # else two elements may have become one
            swapped = {old: new}
            expected = sorted((swapped.get(e, e), letter) for e, letter in before.gene[1])
            assert list(after.gene[1]) == expected
        assert (child.frac_coords == parent.frac_coords).all()


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("sample -n 1 --spacegroup 231", "spacegroup '231' is not a whole number from 1 to 230"),
        ("sample -n 1 --spacegroup Fm-4m", "spacegroup 'Fm-4m' is not a whole number from 1"),
        ("sample -n 1 --spacegroup 225-231", "spacegroup '231' is not a whole number"),
        ("sample -n 1 --num-atoms 21", "21 atoms are too many, this model writes at most 20"),
    ],
)
def test_a_bad_request_of_symmetry_is_one_line(
    folder: Path, tmp_path: Path, command: str, message: str
) -> None:
    words = [*command.split(), "--prior", folder, "--no-refine", "--out", tmp_path / "out"]
    check_mistake(run_command(*words), message)
    assert not (tmp_path / "out").exists()


def test_a_letter_that_the_group_lacks_is_one_line() -> None:
    with pytest.raises(PriorError, match=r"225 \(Fm-3m\) has no Wyckoff letter 'm'; it has a to l"):
        space_group(225).position("m")


@pytest.mark.parametrize("command", ["score", "infill --mask Na", "ipt", "mutate -n 1 --out run"])
def test_a_crystal_whose_symmetry_search_fails_is_one_line(
    command: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llm_prior.wyckoff.analysis.symmetry_dataset", lambda *_, **__: None)
    monkeypatch.chdir(tmp_path)
    write([Crystal(id="salt", structure=SALT)], tmp_path / "salt.jsonl")
    name, *options = command.split()
    result = run_command(name, "salt.jsonl", *options, "--prior", folder)
    check_mistake(result, "spglib finds no symmetry of Na4 Cl4 at a symprec of 0.1 Angstrom")


def test_a_model_of_the_other_layout_is_no_run_to_resume_and_no_adapter(
    folder: Path, tmp_path: Path
) -> None:
    words = ["train-llm", "--data", MP20_SAMPLE, "--device", "cpu", "--out", tmp_path / "out"]
    for more in (["model.lora={r: 2}"], []):
        result = run_command(*words, f"model.name={folder}", "model.architecture=null", *more)
        check_mistake(result, "was trained with text.layout=wyckoff, the recipe has sites")
        assert not (tmp_path / "out" / "model").exists()


def test_crystals_are_paired_with_samples(folder: Path, tmp_path: Path) -> None:
    config = PairingConfig(limit=4, max_attempts=1)
    outcome = pair_prior(
        MP20_SAMPLE, folder, config, out=tmp_path / "pairs", workers=1, device="cpu", progress=False
    )
    assert outcome is not None and (tmp_path / "pairs" / "pairs.parquet").exists()
