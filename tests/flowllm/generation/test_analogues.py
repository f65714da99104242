"""`like`: crystals made from the user's own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from pymatgen.core import Structure

from flowllm import FlowLLM, UserError, run_sampling
from flowllm.crystals.io import Crystal, write
from flowllm.crystals.symmetry import symmetry_of
from flowllm.errors import PriorError
from flowllm.generation.analogues import Analogues
from flowllm.generation.config import SamplingConfig
from llm_prior.wyckoff.crystal import WyckoffCrystal
from support import perovskite, run_command, same_bits


@pytest.fixture(scope="module")
def known(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A perovskite and a rock salt."""
    salt = Structure.from_spacegroup(
        "Fm-3m", perovskite(5.64).lattice, ["Na", "Cl"], [[0] * 3, [0.5] * 3]
    ).get_primitive_structure()
    crystals = [Crystal(id="sto", structure=perovskite()), Crystal(id="salt", structure=salt)]
    return write(crystals, tmp_path_factory.mktemp("known") / "known.jsonl")


def test_the_elements_of_a_crystal_are_replaced(known: Path, tmp_path: Path) -> None:
    outcome = run_sampling(2, formula="BaZrO3", like=known, out=tmp_path / "run", refine=False)
    genes = []
    for crystal in outcome.crystals:
        assert crystal.structure.composition.reduced_formula == "BaZrO3"
        found = symmetry_of(crystal.structure, symprec=1e-3)
        assert found is not None
        genes.append(found.gene)
    assert genes == ["221 Ba:a Zr:b O:c", "221 Ba:a Zr:b O:d"]  # the large Ba among 12 O first
    assert outcome.crystals[0].structure.lattice.a == pytest.approx(4.2, abs=0.15)
    table = pd.read_parquet(tmp_path / "run" / "samples.parquet")
    assert table["template"].tolist() == ["sto", "sto"]
    assert "prompt" not in table
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())["run"]
    assert manifest["like"]["name"] == known.name and manifest["prior"] is None

    with pytest.raises(UserError, match="another run"):
        run_sampling(2, formula="BaTiO3", like=known, out=tmp_path / "run", refine=False)


def test_a_run_and_the_model_give_the_same_refined_crystals(known: Path, tmp_path: Path) -> None:
    run = run_sampling(1, formula="KBr", like=known, steps=3, out=tmp_path / "run", device="cpu")
    whole = FlowLLM.from_pretrained(device="cpu")
    model = FlowLLM(None, whole.refiner)  # no prior is needed
    (sample,) = model.sample(1, formula="KBr", like=known, steps=3)
    assert same_bits(sample.structure, run.crystals[0].structure)
    assert sample.prior_structure is not None and sample.structure is not None
    assert not same_bits(sample.structure, sample.prior_structure)
    found = symmetry_of(sample.structure, symprec=1e-4)
    assert found is not None and found.spacegroup == 225


def test_a_crystal_without_a_reduced_cell_is_a_failed_sample(
    known: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def primitive(crystal: WyckoffCrystal) -> Structure:
        raise PriorError("no Niggli cell")

    monkeypatch.setenv("FLOWLLM_CACHE", str(known.parent / "cache"))
    Analogues(SamplingConfig.of(formula="KBr", like=known))  # keeps the symmetry of the file
    monkeypatch.setattr(WyckoffCrystal, "primitive", primitive)
    (sample,) = FlowLLM(None, None).sample(1, formula="KBr", like=known, refine=False)
    assert sample.structure is None and sample.failure == "template: no_reduced_cell"


def test_conditions_choose_among_the_crystals(known: Path) -> None:
    model = FlowLLM(None, None)
    request: dict[str, Any] = {"formula": "KBr", "like": known, "refine": False}
    (sample,) = model.sample(1, **request, num_atoms="2-4", spacegroup="Fm-3m")
    assert sample.template == "salt"
    with pytest.raises(UserError, match="KBr with 2 atoms .* space group 225 only; ask for these"):
        model.sample(1, **request, spacegroup=221)
    with pytest.raises(UserError, match="KBr with 2 atoms"):
        model.sample(1, **request, num_atoms=4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, r"like replaces the elements .* as formula \(--formula\)"),
        ({"formula": "K2O"}, "known.jsonl holds no crystal with the amounts of K2O; give a"),
        ({"formula": "KBr", "temperature": 1.0}, "like uses no prior and so no temperature; leave"),
        ({"formula": "KBr", "band_gap": 1.0}, "like uses no prior and so no band_gap; leave"),
        ({"formula": "KBr", "volume": "prior"}, "like uses no prior and so no volume; leave"),
        ({"formula": "KBr", "best_of": 2}, "like uses no prior and so no best_of; leave"),
        ({"formula": "KBr", "prior": "bundled:sites"}, "like takes the place of a prior; leave"),
        ({"formula": "KBr", "like": "nothing.cif"}, "nothing.cif"),
    ],
)
def test_what_does_not_fit_is_refused(
    known: Path, tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        run_sampling(1, **{"like": known, **options}, out=tmp_path / "run", device="cpu")
    assert not (tmp_path / "run").exists()


def test_more_than_there_are_is_one_line(known: Path, tmp_path: Path) -> None:
    result = run_command(
        "sample", "-n", 3, "--like", known, "--formula", "BaZrO3", "-o", tmp_path / "run"
    )
    assert result.exit_code == 2
    assert "gives 2 of BaZrO3, not 3; ask for -n 2 or fewer" in result.output
    assert not (tmp_path / "run").exists()
