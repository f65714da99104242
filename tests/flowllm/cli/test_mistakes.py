"""Mistakes of the user: one line with exit code 2, and nothing is changed."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import pytest
from cli_support import check_mistake, contents

from flowllm.crystals import io
from support import run_command

MISTAKES = [
    # files
    ("refine nowhere.cif", "nowhere.cif: no such file or folder; check the path"),
    ("refine wrong_column.csv", "wrong_column.csv: there is no column 'cif'; the columns are mat"),
    ("refine empty.csv", "empty.csv: holds no crystals"),
    ("refine no_cifs", "no_cifs: the folder holds no files of crystals"),
    ("refine nothing.cif", "nothing.cif: file nothing.cif (id nothing): not a readable CIF"),
    ("refine disorder.cif", "disorder.cif (id disorder): block K0.5Na0.5: site K0 is di"),
    ("refine not_finite.json", "the cell or a coordinate is not a finite number"),
    ("pair large.cif", "24 atoms, over max_atoms=20"),
    ("pair empty.csv", "empty.csv: holds no crystals"),
    ("train-llm --data large.cif", "24 atoms, over max_atoms=20"),
    ("train-llm --data nowhere.csv", "there is no file or folder nowhere.csv"),
    ("train-llm --data wrong_column.csv", "there is no column 'cif'"),
    ("train-rfm --pairs nowhere.parquet", "there is no file or folder nowhere.parquet"),
    ("train-rfm --pairs nacl.cif", "nacl.cif is no parquet file of pairs"),
    ("train-rfm", "rfm/small has base.kind"),
    ("refine nacl.cif --method leapfrog", "'--method': 'leapfrog' is not one of 'euler', 'midp"),
    # requests
    ("sample -n 1 --formula NaXx", "unknown element Xx in formula 'NaXx'"),
    ("sample -n 1 --formula Na11Cl10", "formula Na11Cl10 has 21 atoms, this model writes at most"),
    ("sample -n 1 --composition Na400Cl4", "composition Na400Cl4 has 404 atoms, this model writes"),
    ("sample -n 1 --band-gap -1", "band_gap '-1' is below 0 eV; give 0 or more"),
    ("sample -n 1 --spacegroup 231", "spacegroup '231' is not a whole number from 1 to 230"),
    ("sample -n 1 --formula NaCl --composition NaCl", "formula and composition exclude each other"),
    ("sample -n 1 --temperature -1", "--temperature is -1.0; give a number at least 0"),
    ("sample -n 1 --temperature nan", "--temperature is nan; give a number at least 0"),
    ("sample -n 1 --top-p 2", "--top-p is 2.0; give a number above 0 and at most 1"),
    (
        "sample -n 1 --no-refine --steps 5",
        "steps is an option of refining; leave it out, or refine",
    ),
    ("sample -n 1 --device tpu", "unknown device 'tpu'"),
    # predictions
    ("predict NaXx", "unknown element Xx in formula 'NaXx'"),
    ("predict nowhere.txt", "nowhere.txt: no such file; give a formula, such as NaCl, or a file"),
    ("predict NaCl --z 11", "NaCl: 11 formula units have 22 atoms, more than 20; raise max_atoms"),
    ("predict NaCl --z 0", "--z is '0'; give whole numbers from 1 on, such as 1,2,4"),
    ("predict NaCl -n 0", "n is 0; give a whole number at least 1"),
    ("predict NaCl --templates nowhere.parquet", "nowhere.parquet: no such template library"),
    ("predict NaCl --templates nacl.cif", "nacl.cif is not a template library, or is damaged"),
    ("predict NaCl --hull hull.csv", "hull needs a potential; give potential (--potential) as"),
    ("predict NaCl --spacegroup 300", "spacegroup '300' is not a whole number from 1 to 230"),
    ("predict NaCl --spacegroup 1 --crystal-system cubic", "spacegroup and crystal_system exclude"),
    ("predict NaCl --num-samples 0 --prior x", "a prior is given, but num_samples is 0"),
    ("predict NaCl --num-samples 0 --num-templates 0", "are both 0, which leaves no candidate"),
    ("predict NaCl --potential emt", "unknown potential 'emt'"),
    ("predict", "Missing argument 'FORMULA...'; see flowllm predict --help"),
    # models
    ("sample -n 1 --prior prior_missing", "prior_missing: Error no file named model.safetensors"),
    ("sample -n 1 --prior prior_cut", "the weights in {files}/prior_cut are damaged"),
    ("sample -n 1 --prior ./nowhere", "there is no model folder ./nowhere; give a folder or a hub"),
    ("sample -n 1 --prior nacl.cif", "nacl.cif is a file; give the folder of a model"),
    ("sample -n 1 --refiner refiner_missing", "refiner_missing/model.safetensors is miss"),
    ("refine nacl.cif --refiner refiner_cut", "refiner_cut/model.safetensors is damaged"),
    # recipes
    ("train-llm --data nacl.cif training.momentum=3", "llm/small: unknown key training.momentum"),
    (
        "train-llm --data nacl.cif --config recipe.yaml",
        "recipe.yaml: unknown key training.momentum",
    ),
    ("train-llm --data nacl.cif --config rfm/small", "rfm/small is a recipe for a refiner"),
    ("train-llm --data nacl.cif --config llm/huge", "there is no config 'llm/huge'; known are llm"),
    ("train-rfm --data nacl.cif base=uniform", "base"),
    # usage
    ("sample", "Missing option '-n'; see flowllm sample --help"),
    ("sample -n 1 --colour red", "No such option '--colour'"),
    ("train-llm --data nacl.cif --out", "Option '--out' requires an argument"),
]


@pytest.mark.parametrize(("line", "message"), MISTAKES, ids=[line for line, _ in MISTAKES])
def test_a_mistake_is_one_line_and_changes_nothing(
    line: str, message: str, files: Path, tmp_path: Path
) -> None:
    words = [str(files / w) if (files / w).exists() else w for w in line.split()]
    before = contents(files)
    words += [] if "--out" in words else ["--out", str(tmp_path / "out")]
    check_mistake(run_command(*words), message.replace("{files}", str(files)))
    assert contents(files) == before
    assert contents(tmp_path) == {}


def test_existing_results_and_foreign_files_are_not_overwritten(
    files: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    assert run_command("sample", "-n", 1, "--formula", "NaCl", "--out", run).exit_code == 0
    before = contents(files), contents(run)
    other = 'holds another run (conditions.formula is "NaCl" there, not given here; seed is 0 there'
    for out, message in (
        (run, other),
        (files / "thesis", "thesis is not empty (it holds thesis.tex) and has no manifest.json"),
        (files / "run_of_mine", "run_of_mine is a file; choose a new folder"),
        (files / "run_of_mine" / "x", "run_of_mine/x: Not a directory"),
    ):
        check_mistake(run_command("sample", "-n", 1, "--seed", 1, "--out", out), message)
    salt = files / "nacl.cif"
    for command, out, message in (
        (("refine", salt), run, "holds another run (it is of sample, not of refine)"),
        (("train-llm", "--data", salt), files / "thesis", "thesis is not empty"),
        (("evaluate", salt), files / "thesis", "thesis is not empty"),
        (("relax", salt), files / "thesis", "thesis is not empty"),
        (("score", salt), files / "empty.csv", "empty.csv exists; choose"),
    ):
        check_mistake(run_command(*command, "--out", out), message)
    check_mistake(run_command("data", salt, files / "empty.csv"), "empty.csv exists; choose")
    assert (contents(files), contents(run)) == before


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EACCES, errno.ENAMETOOLONG])
def test_a_place_that_takes_no_files_is_one_line(
    files: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def write(*_: Any, **__: Any) -> None:
        raise OSError(number, "no room", "/full/out.csv")

    monkeypatch.setattr(io, "write", write)
    check_mistake(run_command("data", files / "nacl.cif", "out.csv"), "/full/out.csv: no room")


def test_a_full_disk_without_a_file_name_is_one_line(
    files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(io, "write", write)
    check_mistake(run_command("data", files / "nacl.cif", "out.csv"), "error: No space left on dev")


@pytest.mark.parametrize("error", [ValueError("a bug"), OSError(errno.EIO, "a bug")])
def test_an_error_that_is_nobodys_mistake_is_not_hidden(
    files: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def write(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(io, "write", write)
    assert run_command("data", files / "nacl.cif", "out.csv").exception is error
