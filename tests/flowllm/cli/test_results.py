"""Results on stdout, the log on stderr, and exit codes."""

from __future__ import annotations

import math
import re
import shutil
from collections import Counter, deque
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cli_support import contents, process
from pymatgen.core import Lattice, Structure

from flowllm.cli.table import crystal_table
from flowllm.crystals.crystal import Crystal
from flowllm.crystals.io import read
from flowllm.energy import relaxation
from flowllm.generation import sampling_run
from flowllm.runs.outputs import Outcome
from llm_prior import proposals
from llm_prior.proposals import Question
from rfm import refining
from support import SALT, run_command


def test_a_real_process_keeps_results_and_log_apart(tmp_path: Path) -> None:
    out = tmp_path / "run"
    words = ("sample", "-n", 3, "--formula", "NaCl", "--refine", "--steps", 2, "--out", out)
    ran = process(*words)
    assert ran.code == 0, ran.stderr
    head, *rows, last = ran.stdout.splitlines()
    assert re.sub(" +", " ", head) == "id formula atoms a b c alpha beta gamma group"
    assert [row.split()[:2] for row in rows] == [[f"sample-{i:05d}", "NaCl"] for i in range(3)]
    assert last == f"3 of 3 crystals in {out}"
    for line in ran.stderr.splitlines():
        assert re.match(r"\d\d:\d\d:\d\d (INFO|WARNING) flowllm\.[\w.]+: ", line), line
    # The same again, in this process and without the flag of the default: nothing is made anew.
    before = contents(out)
    again = run_command(*(word for word in words if word != "--refine"))
    assert (again.exit_code, again.stdout) == (0, ran.stdout)
    assert contents(out) == before


def test_conditions_and_settings_reach_the_function(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, Any] = {}

    def run_sampling(n: int, **arguments: Any) -> Outcome:
        seen.update(arguments, n=n)
        return Outcome(Path("run"), [], Counter())

    monkeypatch.setattr(sampling_run, "run_sampling", run_sampling)
    line = "-n 3 --elements Na,Cl --num-atoms 4 --spacegroup 225 --e-above-hull -0.1 --seed 7"
    line += " --formation-energy-per-atom=-2 --band-gap 5 --temperature 1 --top-p 1 --workers 2"
    line += " --guidance 2"
    line += " --no-constrain --exclude-elements Pb,Cd --rank PRIOR --method Heun --device CUDA"
    assert run_command("sample", *line.split(), "--out", "run").exit_code == 1
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
        "guidance": 2.0,
        "workers": 2,
        "constrain": False,
        "exclude_elements": "Pb,Cd",
        "rank": "prior",
        "method": "heun",
        "device": "cuda",
    }
    assert given.items() <= seen.items()
    assert not {"formula", "composition", "prior", "refine"} & seen.keys()


@pytest.mark.parametrize("flag", [(), ("--refine",), ("--no-refine",)])
def test_crystals_are_refined_unless_the_user_says_no(
    flag: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(proposals, "generate_texts", no_crystals)
    run_command("sample", "-n", 1, *flag, "--max-attempts", 1, "--out", tmp_path / "run")
    manifest = (tmp_path / "run" / "manifest.json").read_text()
    assert ('"refine": true' in manifest) == (flag != ("--no-refine",))


def no_crystals(_: object, queue: deque[Question], **__: Any) -> Iterator[tuple[int, str, bool]]:
    """Answer every question with a text that is no crystal."""
    while queue:
        yield queue.popleft().place, "none", True


def test_too_few_crystals_is_exit_code_1(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proposals, "generate_texts", no_crystals)
    out = tmp_path / "run"
    result = run_command("sample", "-n", 2, "--max-attempts", 2, "--out", out)
    assert result.exit_code == 1
    assert result.stdout == f"no crystals\n0 of 2 crystals in {out}\n"
    *_, rejects, failures = result.stderr.splitlines()
    assert rejects == "rejected texts: unknown_group 4"
    assert failures == "failed: prior: unknown_group 2"


def test_without_out_the_folder_is_named_by_command_and_time_and_printed(
    files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = run_command("refine", files / "nacl.cif", "--steps", 1)
    (folder,) = tmp_path.iterdir()
    assert re.fullmatch(r"refine-\d{8}-\d{6}", folder.name)
    assert result.stdout.splitlines()[-1] == f"1 of 1 crystals in {folder.name}"


@pytest.mark.parametrize("words", ["score", "ipt --num-translations 1", "infill --mask Na"])
def test_a_table_is_written_only_where_the_user_names_it(
    words: str, files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    command = (*words.split(), files / "nacl.cif")
    without = run_command(*command)
    assert without.exit_code == 0, without.output
    assert list(tmp_path.iterdir()) == []
    assert run_command(*command, "-o", "table.csv").stdout == without.stdout
    assert (tmp_path / "table.csv").read_text().splitlines()[1].startswith("nacl,")


def test_refine_and_pair_print_what_they_made(files: Path, tmp_path: Path) -> None:
    result = run_command("refine", files / "nacl.cif", "--steps", 1, "--out", tmp_path / "refined")
    assert result.exit_code == 0
    assert result.stdout.splitlines()[1].split()[:3] == ["nacl", "NaCl", "8"]
    result = run_command(
        "pair", files / "nacl.cif", "--max-attempts", 1, "--out", tmp_path / "pairs"
    )
    assert result.exit_code == 0
    file, counts = result.stdout.splitlines()
    assert file == str(tmp_path / "pairs" / "pairs.parquet") and Path(file).is_file()
    assert re.fullmatch(
        r"(1|0) of 1 samples kept \(\1 at the first attempt\); rejected: .+", counts
    )


def test_scored_crystals_have_a_column_more(
    files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quick = partial(refining.batch_log_likelihood, steps=3)
    monkeypatch.setattr(refining, "batch_log_likelihood", quick)
    words = ("--steps", 1, "--method", "heun", "--trajectory", "--score", "--out", tmp_path / "r")
    result = run_command("refine", files / "nacl.cif", *words)
    assert result.exit_code == 0
    head, row, _ = result.stdout.splitlines()
    assert head.split()[-1] == "log_likelihood" and math.isfinite(float(row.split()[-1]))
    assert (tmp_path / "r" / "trajectories" / "nacl.extxyz").is_file()


def test_data_converts_and_counts_what_it_left_out(files: Path, tmp_path: Path) -> None:
    mixed = tmp_path / "mixed"
    mixed.mkdir()
    for name in ("nacl", "large", "disorder", "nothing"):
        shutil.copy(files / f"{name}.cif", mixed)
    out = tmp_path / "out.csv"
    result = run_command("data", mixed, out, "--skip-invalid", "--max-atoms", 20)
    assert result.exit_code == 0
    counts = "1 crystals written, left out: disorder 1, too_many_atoms 1, unreadable 1"
    assert result.stdout == f"{out}\n{counts}\n"
    before = contents(tmp_path)
    assert run_command("data", files / "nacl.cif", out).exit_code == 2
    assert contents(tmp_path) == before
    assert run_command("data", files / "nacl.cif", out, "--overwrite", "--no-reduce").exit_code == 0
    (crystal,) = read(out, reduce=False)
    assert np.allclose(crystal.structure.lattice.abc, 5.69)  # the cube, not the Niggli cell


@pytest.mark.parametrize("name", ["chgnet", "CHGNet", "CHGNET"])
def test_the_name_of_a_potential_may_be_written_in_any_case(
    name: str, files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def relax_crystals(*_: Any, potential: str, **__: Any) -> Outcome:
        seen.append(potential)
        return Outcome(Path("run"), [], Counter())

    monkeypatch.setattr(relaxation, "relax_crystals", relax_crystals)
    words = (files / "nacl.cif", "--potential", name, "--out", tmp_path / "run")
    assert run_command("relax", *words).exit_code == 0
    assert seen == ["chgnet"]


def test_the_table_stays_a_table() -> None:
    crystals = [Crystal(id="x" * k, structure=SALT) for k in (1, 40)]
    head, *rows = crystal_table(crystals).splitlines()
    for column in ("formula", "atoms", "a b c", "alpha beta gamma", "group"):
        assert all(row[head.index(column) - 1] == " " for row in rows)
        assert all(row[head.index(column)] != " " for row in rows)
    assert all(row.endswith("5.69 5.69 5.69  90 90 90          Fm-3m") for row in rows)
    together = Structure(Lattice.cubic(3), ["Na", "Na"], [[0, 0, 0], [0.001, 0, 0]])
    assert crystal_table([Crystal(id="x", structure=together)]).endswith("?")
    assert crystal_table(crystals * 30).splitlines()[-1] == "... and 10 more"
