"""`flowllm evaluate` on small sets of every kind, good and bad."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import pandas as pd
import pytest
from click.testing import CliRunner
from pymatgen.core import Lattice, Structure

import support
from flowllm.cli import cli
from flowllm.crystals.cif import cif_text
from flowllm.crystals.crystal import Crystal
from flowllm.crystals.io import read, write
from flowllm.errors import UserError
from flowllm.evaluation.evaluate import evaluate
from flowllm.runs.outputs import CORE_COLUMNS
from support import CSCL

pytest.importorskip("smact", reason="smact is not installed")
pytest.importorskip("matminer", reason="matminer is not installed")

SALT = support.SALT.get_primitive_structure()
SPLIT = Structure(Lattice.cubic(4.12), ["Na", "Na", "Cl"], [[0, 0, 0], [0.05, 0, 0], [0.5] * 3])


def stored(path: Path, *structures: Structure) -> Path:
    return write([Crystal(id=f"c{i}", structure=s) for i, s in enumerate(structures)], path)


def zipped(path: Path, files: dict[str, str]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in files.items():
            archive.writestr(name, text)
    return path


def run_folder(path: Path) -> Path:
    path.mkdir()
    pd.DataFrame(
        [
            {"id": "sample-00000", "cif": cif_text(SALT), "failure": None},
            {"id": "sample-00001", "cif": None, "failure": "no answer that decodes"},
        ]
    ).to_parquet(path / "samples.parquet")
    assert {"id", "cif", "failure"} <= set(CORE_COLUMNS)
    manifest = {"run": {"conditions": {"formula": "NaCl", "spacegroup": "225"}}, "info": {}}
    (path / "manifest.json").write_text(json.dumps(manifest))
    return path


def test_all_metrics_of_a_small_set(tmp_path):
    samples = stored(tmp_path / "samples.json", SALT, SALT, CSCL, SPLIT)
    known = stored(tmp_path / "known.json", SALT * [1, 1, 2])
    out = tmp_path / "out"
    result = evaluate(samples, out=out, train=known, reference=known, targets=known)
    values = {name: estimate.value for name, estimate in result.sets[0].metrics.items()}
    assert values["structural_validity"] == 0.75
    assert values["compositional_validity"] == 0.75  # Na2Cl
    assert values["valid"] == 0.75
    assert values["uniqueness"] == 0.75
    assert values["novelty"] == values["novelty[known.json]"] == 0.5
    assert values["valid_unique_novel"] == 0.25
    assert values["coverage_recall"] == 1
    assert values["metre"] == values["match_rate"] == 1
    content = json.loads((out / "metrics.json").read_text())["sets"][0]
    assert content["metrics"]["valid"]["successes"] == 3
    assert 0.75 > content["metrics"]["valid"]["low"] > 0
    table = pd.read_parquet(out / "structures.parquet")
    assert table["duplicate_of"].tolist() == [None, "c0", None, None]
    assert table["found_in"].tolist() == ["known.json: c0"] * 2 + [None] * 2
    assert len(read(out / "structures.parquet")) == 4  # a data set again
    assert table["spacegroup"].tolist()[:3] == [225, 225, 221]
    assert table["gene"].tolist()[:3] == ["225 Na:a Cl:b"] * 2 + ["221 Cs:a Cl:b"]
    assert values["gene_uniqueness"] == 0.75 and values["p1"] == 0
    assert values["gene_novelty"] == values["gene_novelty[known.json]"] == 0.5
    assert values["spacegroup_js_distance"] > values["spacegroup_js_distance_reference"] == 0
    again = evaluate(samples, out=out, train=known, reference=known, targets=known)
    assert again.sets[0].metrics == result.sets[0].metrics
    with pytest.raises(UserError, match="another run"):
        evaluate(samples, out=out)


def test_the_symmetry_of_known_crystals_is_that_of_the_reference(tmp_path):
    options = {"train": support.MP20_SAMPLE, "reference": support.MP20_SAMPLE}
    half = tmp_path / "half.parquet"
    pd.read_parquet(support.MP20_SAMPLE)[::2].to_parquet(half)
    (measured,) = evaluate(half, out=tmp_path / "out", **options).sets
    metrics = measured.metrics
    assert metrics["symmetry_found"].successes == metrics["symmetry_found"].count == 36
    assert metrics["gene_novelty"].value == 0 and metrics["p1_reference"].successes == 5
    for name in ("spacegroup_js_distance", "spacegroup_chi_square", "free_parameters_distance"):
        assert 0 < metrics[name].value < metrics[f"{name}_reference"].high
    content = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert content["settings"]["symprec"] == 0.1
    stored_reference = pd.read_parquet(tmp_path / "out" / "reference.parquet")
    rows = pd.DataFrame(measured.rows)
    assert set(rows["gene"]) <= set(stored_reference["gene"])
    mean = rows["free_parameters"].mean()
    assert metrics["free_parameters"].value == pytest.approx(mean)


def test_crystals_without_a_space_group_are_counted_and_named(tmp_path):
    piled = Structure(Lattice.cubic(4.12), ["Cs", "Cs"], [[0, 0, 0], [0, 0, 5e-3]])
    samples = stored(tmp_path / "samples.json", SALT, piled)
    (measured,) = evaluate(samples, out=tmp_path / "out", train=samples).sets
    assert measured.metrics["symmetry_found"].value == 0.5
    assert measured.metrics["gene_uniqueness"].count == measured.metrics["p1"].count == 1
    assert measured.rows[1]["gene"] is measured.rows[1]["spacegroup"] is None
    (note,) = [note for note in measured.notes if "no space group" in note]
    assert note.startswith("1 crystals") and "(c1)" in note


def test_sets_of_every_kind_are_compared(tmp_path):
    folder = stored(tmp_path / "cifs", SALT)
    texts = {"a/x.cif": cif_text(SALT), "b/x.cif": cif_text(CSCL), "b/y.cif": "no crystal"}
    archive = zipped(tmp_path / "set.zip", {**texts, "__MACOSX/b/._y.cif": "", "notes.txt": ""})
    sets = [folder, archive, run_folder(tmp_path / "run"), stored(tmp_path / "s.extxyz", CSCL)]
    ran = CliRunner().invoke(cli, ["evaluate", *map(str, sets), "--out", str(tmp_path / "out")])
    assert ran.exit_code == 0, ran.output
    content = json.loads((tmp_path / "out" / "metrics.json").read_text())["sets"]
    assert [s["name"] for s in content] == ["cifs", "set.zip", "run", "s.extxyz"]
    assert [s["metrics"]["valid"]["successes"] for s in content] == [1, 2, 1, 1]
    assert content[1]["failures"] == {"unreadable": 1}
    assert "are missing or unreadable: unreadable 1 (y)" in content[1]["notes"][0]
    run = content[2]
    assert run["failures"] == {"no answer that decodes": 1}
    assert run["metrics"]["valid"]["value"] == run["metrics"]["meets_formula"]["value"] == 0.5
    for name in ("meets_spacegroup", "meets_spacegroup_0.1"):
        assert run["metrics"][name]["successes"] == 1 and run["metrics"][name]["count"] == 2
    assert "1 of 2 crystals are missing" in run["notes"][0]
    table = pd.read_parquet(tmp_path / "out" / "structures.parquet")
    assert table["id"].tolist()[1:4] == ["a/x", "b/x", "y"]
    assert "cifs" in ran.stdout and "compositional_validity" in ran.stdout


def test_copies_of_a_noble_gas_are_one_crystal(tmp_path):
    helium = Structure(Lattice.cubic(4), ["He"], [[0, 0, 0]])
    copies = stored(tmp_path / "copies.json", *[helium] * 20)
    result = evaluate(copies, out=tmp_path / "out", train=copies, reference=copies)
    (measured,) = result.sets
    assert measured.metrics["uniqueness"].value == 1 / 20
    assert "all crystals are the same one" in measured.notes
    assert any("no crystal is novel" in note for note in measured.notes)


def test_bad_input_is_refused_in_one_line(tmp_path):
    samples = stored(tmp_path / "samples.json", SALT)
    (tmp_path / "empty").mkdir()
    for arguments, words in (
        ([tmp_path / "empty"], "holds no files of crystals"),
        ([tmp_path / "absent"], "no such file"),
        ([samples, "--reference", tmp_path / "absent.csv"], "no such file"),
        ([samples, "--oxidation-states", "mine"], "not one of 'smact14'"),
        ([samples, "--feature-novelty"], "--train"),
        ([samples, "--composition-scale", samples], "--reference"),
        ([samples, "--hull", samples], "--potential"),
        ([samples, "--potential", "none"], "unknown potential"),
        ([samples, "--min-elements", 0], "min"),
        ([zipped(tmp_path / "none.zip", {"a.txt": ""})], "holds no crystals"),
    ):
        ran = CliRunner().invoke(
            cli, ["evaluate", *map(str, arguments), "--out", str(tmp_path / "out")]
        )
        assert ran.exit_code == 2 and words in ran.stderr, ran.stderr
    assert not (tmp_path / "out").exists()
    (tmp_path / "bad.zip").write_bytes(b"PK no archive")
    with pytest.raises(UserError, match="not a readable .zip"):
        read(tmp_path / "bad.zip")


def test_an_unfinished_run_is_refused_and_an_evaluation_can_be_evaluated_again(tmp_path):
    run = run_folder(tmp_path / "run")
    evaluate(run, out=tmp_path / "one", progress=False)
    (again,) = evaluate(tmp_path / "one", out=tmp_path / "two", progress=False).sets
    assert again.num_generated == 2 and again.failures == {"no answer that decodes": 1}
    (run / "samples.parquet").unlink()
    with pytest.raises(UserError, match="the run is not finished"):
        evaluate(run, out=tmp_path / "three", progress=False)


def test_an_error_that_shows_late_leaves_the_folder_free(tmp_path):
    samples = stored(tmp_path / "samples.json", SALT)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "samples.txt").write_text("no crystals")
    for train, code in (("run", 2), ("samples.json", 0)):
        arguments = [samples, "--train", tmp_path / train, "--out", tmp_path / "out"]
        ran = CliRunner().invoke(cli, ["evaluate", *map(str, arguments)])
        assert ran.exit_code == code, ran.stderr


def test_the_scale_of_compositions_comes_from_the_reference_or_a_file(tmp_path):
    samples = stored(tmp_path / "samples.json", SALT, CSCL)
    scale = tmp_path / "scale.json"
    scale.write_text(json.dumps({"means": [0.0] * 132, "stds": [1e6] * 132}))
    own = evaluate(samples, out=tmp_path / "a", reference=samples)
    given = evaluate(samples, out=tmp_path / "b", reference=samples, composition_scale=scale)
    sources = [e.sets[0].composition_scale for e in (own, given)]
    assert sources == ["mean and standard deviation over samples.json", "scale.json"]
    distances = [e.sets[0].metrics["compositional_diversity"].value for e in (own, given)]
    assert distances[0] > 2 > 1e-2 > distances[1] > 0
    settings = json.loads((tmp_path / "b" / "metrics.json").read_text())["settings"]
    assert settings["composition_scale"]["name"] == "scale.json"
