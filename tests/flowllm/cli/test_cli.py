"""The command line: results on stdout, one line for a mistake, nothing overwritten."""

from __future__ import annotations

import errno
import inspect
import json
import math
import re
import shutil
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from pymatgen.core import Lattice, Structure

import flowllm
from flowllm import doctor
from flowllm.cli import cli
from flowllm.cli.table import crystal_table
from flowllm.crystals import io as data
from flowllm.crystals.cif import cif_text
from flowllm.crystals.crystal import Crystal
from flowllm.evaluation.evaluate import evaluate
from flowllm.generation import sampling_run as runs
from flowllm.hub.locate import BUNDLED_PRIOR, BUNDLED_REFINER
from flowllm.training.pairing import run as pairing
from flowllm.training.prior import train_prior
from flowllm.training.refiner import train_refiner
from llm_prior import proposals
from llm_prior.prompts import ATTRIBUTES
from llm_prior.proposals import Question
from rfm import refining

# The function behind each command, and what the command cannot do without.
COMMANDS: dict[str, tuple[Callable[..., Any], str]] = {
    "train-llm": (train_prior, "--data x --out y"),
    "pair": (pairing.pair, "x --out y"),
    "train-rfm": (train_refiner, "--out y"),
    "sample": (runs.sample, "-n 1 --out y"),
    "refine": (runs.refine, "x --out y"),
    "evaluate": (evaluate, "x --out y"),
}
NACL = Structure.from_spacegroup(
    "Fm-3m", Lattice.cubic(5.69), ["Na", "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]]
)


def call(*arguments: object) -> Result:
    return CliRunner().invoke(cli, [str(a) for a in arguments], prog_name="flowllm")


def process(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "flowllm", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


def contents(folder: Path) -> dict[str, tuple[bytes, int]]:
    return {
        str(path.relative_to(folder)): (path.read_bytes(), path.stat().st_mtime_ns)
        for path in folder.rglob("*")
        if path.is_file() and path.name != ".lock"
    }


def disordered() -> Structure:
    return Structure(Lattice.cubic(4), [{"Na": 0.5, "K": 0.5}], [[0, 0, 0]])


def not_finite() -> dict[str, Any]:
    crystal = NACL.as_dict()
    crystal["lattice"]["matrix"][0][0] = float("nan")
    return crystal


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Good and bad input of every kind."""
    folder = tmp_path_factory.mktemp("files")
    texts = {
        "nacl.cif": cif_text(NACL),
        "large.cif": cif_text(NACL * (3, 1, 1)),
        "disorder.cif": disordered().to(fmt="cif"),
        "nothing.cif": "data_x\nnothing",
        "not_finite.json": json.dumps(not_finite()),
        "wrong_column.csv": "material_id,structure\nmp-1,x\n",
        "empty.csv": "material_id,cif\n",
        "run_of_mine": "text",
        "recipe.yaml": "model: {architecture: {}}\ntraining: {momentum: 3}\n",
    }
    for name, text in texts.items():
        (folder / name).write_text(text)
    (folder / "no_cifs").mkdir()
    (folder / "thesis").mkdir()
    (folder / "thesis" / "thesis.tex").write_text("my work")
    for model in (BUNDLED_PRIOR, BUNDLED_REFINER):
        for kind in ("missing", "cut"):
            # Without its card, which would say first that these are other weights.
            ignore = shutil.ignore_patterns("README.md")
            weights = Path(shutil.copytree(model, folder / f"{model.name}_{kind}", ignore=ignore))
            weights = weights / "model.safetensors"
            content = weights.read_bytes()
            weights.unlink()
            if kind == "cut":
                weights.write_bytes(content[: len(content) // 2])
    return folder


@pytest.fixture(scope="module")
def finished(files: Path) -> Path:
    """The run folder of another run."""
    assert call("sample", "-n", 1, "--formula", "NaCl", "--out", files / "run").exit_code == 0
    return files / "run"


# --- what there is -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(cli.commands))
def test_every_command_has_help(name: str) -> None:
    result = call(name, "--help")
    assert result.exit_code == 0 and result.stderr == ""
    assert result.stdout.startswith(f"Usage: flowllm {name} ")
    assert cli.commands[name].help.splitlines()[0][:40] in result.stdout


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_options_are_the_functions_arguments_with_their_defaults(name: str) -> None:
    function, needed = COMMANDS[name]
    arguments = inspect.signature(function).parameters
    known = {key for key, a in arguments.items() if a.kind is not inspect.Parameter.VAR_KEYWORD}
    if known < arguments.keys():  # **conditions
        known |= {attribute.name for attribute in ATTRIBUTES}
    values = cli.commands[name].make_context(name, needed.split()).params
    assert values.keys() == known - {"progress"}
    for key in values:
        default = arguments[key].default if key in arguments else None
        assert default is inspect.Parameter.empty or values[key] == default, key


def test_the_group_answers_at_once_and_imports_nothing_heavy() -> None:
    heavy = {"torch", "transformers", "pymatgen", "numpy", "pandas"}
    cheap = {"sample": {"torch", "transformers", "pandas"}, "data": heavy}
    for arguments, absent in [((), heavy), *(((name,), absent) for name, absent in cheap.items())]:
        code = (
            "import sys, time; from flowllm.cli import cli; "
            f"cli([*{arguments!r}, '--help'], standalone_mode=False); "
            "print(time.process_time(), *sorted({m.split('.')[0] for m in sys.modules}))"
        )
        ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert ran.returncode == 0, ran.stderr
        seconds, *modules = ran.stdout.splitlines()[-1].split()
        assert not absent & set(modules)
        assert float(seconds) < 2


def test_the_version_is_the_packages() -> None:
    assert call("--version").stdout.strip() == f"flowllm, version {flowllm.__version__}"


# --- results -------------------------------------------------------------------------------------


def test_a_real_process_keeps_results_and_log_apart(tmp_path: Path) -> None:
    out = tmp_path / "run"
    asked = ("sample", "-n", 3, "--formula", "NaCl", "--refine", "--steps", 2, "--out", out)
    ran = process(*asked)
    assert ran.returncode == 0, ran.stderr
    head, *rows, last = ran.stdout.splitlines()
    assert re.sub(" +", " ", head) == "id formula atoms a b c alpha beta gamma group"
    assert [row.split()[:2] for row in rows] == [[f"sample-{i:05d}", "NaCl"] for i in range(3)]
    assert last == f"3 of 3 crystals in {out}"
    for line in ran.stderr.splitlines():
        assert re.match(r"\d\d:\d\d:\d\d (INFO|WARNING) flowllm\.[\w.]+: ", line), line
    # The same again, here: the same files, not made anew.
    before = contents(out)
    again = call(*asked)
    assert (again.exit_code, again.stdout) == (0, ran.stdout)
    assert contents(out) == before


def test_conditions_and_settings_reach_the_function(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, Any] = {}

    def sample(n: int, **arguments: Any) -> runs.Outcome:
        seen.update(arguments, n=n)
        return runs.Outcome(Path("run"), [], runs.Counter())

    monkeypatch.setattr(runs, "sample", sample)
    asked = "-n 3 --elements Na,Cl --num-atoms 4 --spacegroup 225 --e-above-hull -0.1 --seed 7"
    asked += " --formation-energy-per-atom=-2 --band-gap 5 --temperature 1 --top-p 1 --workers 2"
    asked += " --no-constrain --exclude-elements Pb,Cd"
    assert call("sample", *asked.split(), "--out", "run").exit_code == 1
    given = {
        "n": 3,
        "elements": "Na,Cl",
        "num_atoms": "4",
        "spacegroup": "225",
        "e_above_hull": "-0.1",
        "formation_energy_per_atom": "-2",
        "band_gap": "5",
        "seed": 7,
        "temperature": 1.0,
        "top_p": 1.0,
        "workers": 2,
        "constrain": False,
        "exclude_elements": "Pb,Cd",
    }
    assert given.items() <= seen.items()
    assert not {"formula", "composition", "prior"} & seen.keys()


def no_crystals(_: object, queue: deque[Question], **__: Any) -> Iterator[tuple[int, str, bool]]:
    """In place of the prior."""
    while queue:
        yield queue.popleft().place, "none", True


def test_too_few_crystals_is_exit_code_1(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proposals, "generate_texts", no_crystals)
    out = tmp_path / "run"
    result = call("sample", "-n", 2, "--max-attempts", 2, "--out", out)
    assert result.exit_code == 1
    assert result.stdout == f"no crystals\n0 of 2 crystals in {out}\n"
    assert result.stderr.splitlines()[-1] == "failed: prior: line_count 2"


def test_refine_and_pair_print_what_they_made(files: Path, tmp_path: Path) -> None:
    result = call("refine", files / "nacl.cif", "--steps", 1, "--out", tmp_path / "refined")
    assert result.exit_code == 0
    assert result.stdout.splitlines()[1].split()[:3] == ["nacl", "NaCl", "8"]
    result = call("pair", files / "nacl.cif", "--max-attempts", 1, "--out", tmp_path / "pairs")
    assert result.exit_code == 0
    file, counts = result.stdout.splitlines()
    assert file == str(tmp_path / "pairs" / "pairs.parquet") and Path(file).is_file()
    assert re.fullmatch(r"(1|0) of 1 samples kept \(\1 at the first attempt\); refused: .+", counts)


def test_scored_crystals_have_a_column_more(
    files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quick = partial(refining.batch_log_likelihood, steps=3)
    monkeypatch.setattr(refining, "batch_log_likelihood", quick)
    asked = ("--steps", 1, "--method", "heun", "--trajectory", "--score", "--out", tmp_path / "r")
    result = call("refine", files / "nacl.cif", *asked)
    assert result.exit_code == 0
    head, row, _ = result.stdout.splitlines()
    assert head.split()[-1] == "log_likelihood" and math.isfinite(float(row.split()[-1]))
    assert (tmp_path / "r" / "trajectories" / "nacl.extxyz").is_file()


def test_data_converts_and_says_what_it_left_out(files: Path, tmp_path: Path) -> None:
    mixed = tmp_path / "mixed"
    mixed.mkdir()
    for name in ("nacl", "large", "disorder", "nothing"):
        shutil.copy(files / f"{name}.cif", mixed)
    out = tmp_path / "out.csv"
    result = call("data", mixed, out, "--skip-invalid", "--max-atoms", 20)
    assert result.exit_code == 0
    counts = "1 crystals written, left out: disorder 1, too_many_atoms 1, unreadable 1"
    assert result.stdout == f"{out}\n{counts}\n"
    before = contents(tmp_path)
    assert call("data", files / "nacl.cif", out).exit_code == 2
    assert contents(tmp_path) == before
    assert call("data", files / "nacl.cif", out, "--overwrite", "--no-reduce").exit_code == 0
    (crystal,) = data.read(out, reduce=False)
    assert np.allclose(crystal.structure.lattice.abc, 5.69)  # the cube, not the Niggli cell


def test_the_table_stays_a_table() -> None:
    crystals = [Crystal(id="x" * k, structure=NACL) for k in (1, 40)]
    head, *rows = crystal_table(crystals).splitlines()
    for column in ("formula", "atoms", "a b c", "alpha beta gamma", "group"):
        assert all(row[head.index(column) - 1] == " " for row in rows)
        assert all(row[head.index(column)] != " " for row in rows)
    assert all(row.endswith("5.69 5.69 5.69  90 90 90          Fm-3m") for row in rows)
    together = Structure(Lattice.cubic(3), ["Na", "Na"], [[0, 0, 0], [0.001, 0, 0]])
    assert crystal_table([Crystal(id="x", structure=together)]).endswith("?")
    assert crystal_table(crystals * 30).splitlines()[-1] == "... and 10 more"


# --- mistakes ------------------------------------------------------------------------------------

MISTAKES = [
    # files
    ("refine nowhere.cif", "nowhere.cif: no such file or folder; check the path"),
    ("refine wrong_column.csv", "wrong_column.csv: there is no column 'cif'; the columns are mat"),
    ("refine empty.csv", "empty.csv: holds no crystals"),
    ("refine no_cifs", "no_cifs: the folder holds no .cif files"),
    ("refine nothing.cif", "nothing.cif: file nothing.cif (id nothing): not a readable CIF"),
    ("refine disorder.cif", "disorder.cif (id disorder): site 1 is disordered"),
    ("refine not_finite.json", "the cell or a coordinate is not a finite number"),
    ("pair large.cif", "24 atoms, over max_atoms=20"),
    ("pair empty.csv", "empty.csv: holds no crystals"),
    ("train-llm --data large.cif", "24 atoms, over max_atoms=20"),
    ("train-llm --data nowhere.csv", "there is no file or folder nowhere.csv"),
    ("train-llm --data wrong_column.csv", "there is no column 'cif'"),
    ("train-rfm --pairs nowhere.parquet", "there is no file or folder nowhere.parquet"),
    ("train-rfm --pairs nacl.cif", "nacl.cif is no parquet file of pairs"),
    ("train-rfm", "rfm/small has base.kind"),
    ("refine nacl.cif --method leapfrog", "unknown integration method 'leapfrog'; choose one of"),
    # requests
    ("sample -n 1 --formula NaXx", "unknown element Xx in formula 'NaXx'"),
    ("sample -n 1 --formula Na11Cl10", "formula Na11Cl10 has 21 atoms, this model writes at most"),
    ("sample -n 1 --composition Na400Cl4", "composition Na400Cl4 has 404 atoms, this model writes"),
    ("sample -n 1 --band-gap -1", "band_gap '-1' is below 0 eV; give 0 or more"),
    ("sample -n 1 --spacegroup 231", "spacegroup '231' is not a whole number from 1 to 230"),
    ("sample -n 1 --formula NaCl --composition NaCl", "formula and composition exclude each other"),
    ("sample -n 1 --temperature -1", "temperature -1.0 is no number from 0"),
    ("sample -n 1 --temperature nan", "temperature nan is no number from 0"),
    ("sample -n 1 --top-p 2", "top_p 2.0 is not in (0, 1]"),
    ("sample -n 1 --steps 5", "steps is a setting of the refiner; ask for refine as well"),
    ("sample -n 1 --device tpu", "unknown device 'tpu'"),
    # models
    ("sample -n 1 --prior prior_missing", "prior_missing: Error no file named model.safetensors"),
    ("sample -n 1 --prior prior_cut", "the weights in {files}/prior_cut are damaged"),
    ("sample -n 1 --prior ./nowhere", "there is no model folder ./nowhere; give a folder or a hub"),
    ("sample -n 1 --prior nacl.cif", "nacl.cif is a file; give the folder of a model"),
    ("sample -n 1 --refine --refiner refiner_missing", "refiner_missing/model.safetensors is miss"),
    ("refine nacl.cif --refiner refiner_cut", "refiner_cut/model.safetensors is damaged"),
    # recipes
    ("train-llm --data nacl.cif training.momentum=3", "llm/small: unknown key training.momentum"),
    (
        "train-llm --data nacl.cif --config recipe.yaml",
        "recipe.yaml: unknown key training.momentum",
    ),
    (
        "train-llm --data nacl.cif --config rfm/small",
        "rfm/small is a recipe for a refiner",
    ),
    ("train-llm --data nacl.cif --config llm/huge", "there is no config 'llm/huge'; known are llm"),
    ("train-rfm --data nacl.cif base=uniform", "base"),
]


@pytest.mark.parametrize(("line", "message"), MISTAKES, ids=[line for line, _ in MISTAKES])
def test_a_mistake_is_one_line_and_changes_nothing(
    line: str, message: str, files: Path, tmp_path: Path
) -> None:
    words = [str(files / w) if (files / w).exists() else w for w in line.split()]
    before = contents(files)
    result = call(*words, "--out", tmp_path / "out")
    check_mistake(result, message.replace("{files}", str(files)))
    assert contents(files) == before
    assert contents(tmp_path) == {}


def check_mistake(result: Result, message: str) -> None:
    assert isinstance(result.exception, SystemExit), result.exception
    assert (result.exit_code, result.stdout) == (2, "")
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ") and message in line


def test_what_is_there_is_not_overwritten(finished: Path, files: Path) -> None:
    before = contents(files)
    other = 'holds another run (conditions.formula is "NaCl" there, not given here; seed is 0 there'
    for out, message in (
        (finished, other),
        (files / "thesis", "thesis is not empty (it holds thesis.tex) and has no manifest.json"),
        (files / "run_of_mine", "run_of_mine is a file; choose a new folder"),
        (files / "run_of_mine" / "x", "run_of_mine/x: Not a directory"),
    ):
        check_mistake(call("sample", "-n", 1, "--seed", 1, "--out", out), message)
    refined = call("refine", files / "nacl.cif", "--out", finished)
    check_mistake(refined, "holds another run (it is of sample, not of refine)")
    trained = call("train-llm", "--data", files / "nacl.cif", "--out", files / "thesis")
    check_mistake(trained, "thesis is not empty")
    check_mistake(call("data", files / "nacl.cif", files / "empty.csv"), "empty.csv exists; choose")
    assert contents(files) == before


def test_a_real_process_ends_with_code_2_and_no_traceback(tmp_path: Path) -> None:
    ran = process("data", "nowhere.csv", tmp_path / "out.csv")
    assert (ran.returncode, ran.stdout) == (2, "")
    assert ran.stderr == "error: nowhere.csv: no such file or folder; check the path\n"


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EACCES])
def test_a_place_that_takes_no_files_is_one_line(
    files: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def write(*_: Any, **__: Any) -> None:
        raise OSError(number, "no room", "/full/out.csv")

    monkeypatch.setattr(data, "write", write)
    check_mistake(call("data", files / "nacl.cif", "out.csv"), "/full/out.csv: no room")


@pytest.mark.parametrize("error", [ValueError("a bug"), OSError(errno.EIO, "a bug")])
def test_an_error_that_is_nobodys_mistake_is_not_hidden(
    files: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def write(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(data, "write", write)
    assert call("data", files / "nacl.cif", "out.csv").exception is error


# --- doctor --------------------------------------------------------------------------------------


def test_the_doctor_finds_a_sound_installation() -> None:
    result = call("doctor")
    assert result.exit_code == 0, result.stdout
    lines = result.stdout.splitlines()
    assert "ok: no other package claims the name flowllm" in lines
    assert {"ok: bundled prior", "ok: bundled refiner"} <= set(lines)
    assert any(re.fullmatch(r"torch \d.*", line) for line in lines)


def test_the_doctor_finds_the_unrelated_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    info = tmp_path / "flowllm-0.3.1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: flowllm\nVersion: 0.3.1\n")
    monkeypatch.syspath_prepend(tmp_path)
    result = call("doctor")
    assert result.exit_code == 1
    (problem,) = [line for line in result.stdout.splitlines() if line.startswith("problem")]
    assert "unrelated package flowllm 0.3.1" in problem and "pip uninstall flowllm" in problem


def test_the_doctor_misses_the_weights(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "BUNDLED_PRIOR", files / "prior_missing")
    lines, healthy = doctor.diagnose()
    assert not healthy
    assert "problem: the bundled prior_missing is missing; reinstall the package" in lines
