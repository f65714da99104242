"""Refusals of real processes: at once, in one line, without torch."""

from __future__ import annotations

from pathlib import Path

import pytest
from cli_support import contents, process

CASES = [
    ("sample -n 1 --spacegroup 300", "spacegroup '300' is not a whole number from 1 to 230"),
    ("sample -n 1 --temperature -1", "--temperature is -1.0; give a number at least 0"),
    ("sample -n 1 --guidance 2", "guidance 2 weighs conditions, and the request has none; give"),
    ("sample -n 1 --guidance nan --band-gap 1", "--guidance is nan; give a number at least 0 and"),
    (
        "sample -n 1 --guidance 2 --num-atoms 3-8",
        "guidance 2 weighs the conditions of the prompt, which has no ranges and sets (num_atoms)",
    ),
    (
        "sample -n 1 --guidance 2 --crystal-system cubic",
        "guidance 2 weighs the conditions of the prompt, which has no ranges and sets (crystal_sys",
    ),
    ("sample -n 1 --formula NaXx", "unknown element Xx in formula 'NaXx'"),
    ("sample -n 1 --formula NaCl --num-atoms 3", "3 atoms are no whole number of formula units"),
    ("sample -n 1 --formula Na11Cl10", "formula Na11Cl10 has 21 atoms, this model writes at most"),
    ("sample -n 1 --spacegroup 225,Fm-5m", "spacegroup 'Fm-5m' is not a whole number from 1"),
    ("sample -n 1 --crystal-system cubical", "'cubical' is not one of 'triclinic', 'monoclinic'"),
    ("sample -n 1 --crystal-system cubic --spacegroup 1", "spacegroup and crystal_system exclude"),
    ("sample -n 1 --composition Na20Cl2", "composition Na20Cl2 has 22 atoms, this model writes at"),
    (
        "sample -n 1 --composition SrTiO3 --spacegroup 230",
        "has exactly space group 230; groups that can: 1-3,",
    ),
    ("sample -n 0", "-n is 0; give a whole number at least 1"),
    ("sample -n x", "Invalid value for '-n': 'x' is not a valid integer; see flowllm sample --h"),
    ("sample -n 1 --rank energy --best-of 2 --potential mace", "unknown potential 'mace'"),
    ("sample -n 1 --device tpu", "unknown device 'tpu'; use cpu, cuda, cuda:NUMBER or auto"),
    ("sample -n 1 --part 5/4 -o run", "--part is '5/4'; give I/N with I from 1 to N, such as 1/4"),
    ("sample -n 1 --part 1/4", "--part shares a folder with others; give it with --out; see flow"),
    ("sample -n 1 --executor mpi", "unknown executor 'mpi'; write local, slurm or MODULE:FACTORY"),
    ("sample -n 1 --executor slurm", "executor slurm needs a"),
    (
        "sample -n 1 --executor nowhere:it",
        "executor nowhere:it: No module named 'nowhere'; correct",
    ),
    ("relax nacl.cif --part 0/4 -o run", "--part is '0/4'; give I/N"),
    ("relax nacl.cif --executor mpi", "unknown executor 'mpi'"),
    ("refine nacl.cif --executor mpi", "unknown executor 'mpi'"),
    ("mutate nacl.cif -n 1 --executor mpi", "unknown executor 'mpi'"),
    ("pair nacl.cif --executor mpi", "unknown executor 'mpi'"),
    ("evaluate nacl.cif --executor mpi", "unknown executor 'mpi'"),
    ("merge thesis", "thesis is not a run folder (it has no manifest.json); check the path"),
    ("sample -n 1 --out thesis", "thesis is not empty (it holds thesis.tex)"),
    ("relax nacl.cif --potential mace", "unknown potential 'mace'"),
    ("relax nacl.cif --out thesis", "thesis is not empty"),
    ("evaluate nacl.cif --potential mace", "unknown potential 'mace'"),
    ("evaluate nacl.cif --out thesis", "thesis is not empty"),
    ("mutate nacl.cif -n 1 --potential mace", "unknown potential 'mace'"),
    ("mutate nacl.cif -n 1 --device tpu", "unknown device 'tpu'"),
    ("mutate nacl.cif -n 1 --out thesis", "thesis is not empty"),
    ("refine nacl.cif --device tpu", "unknown device 'tpu'"),
    ("refine nacl.cif --out thesis", "thesis is not empty"),
    ("score nacl.cif --device tpu", "unknown device 'tpu'"),
    ("train-llm --config llm/none --data nacl.cif", "there is no config 'llm/none'; known are"),
    ("train-llm --data nacl.cif --device tpu", "unknown device 'tpu'"),
    ("train-llm --data nacl.cif --out thesis", "thesis is not empty"),
    ("train-llm --data nacl.cif --resume", "give its folder with --out; see flowllm train-llm"),
    ("train-rfm --pairs nacl.cif --device tpu", "unknown device 'tpu'"),
    ("pair nacl.cif --device tpu", "unknown device 'tpu'"),
    ("export-vasp nacl.cif --out thesis", "thesis exists; choose another folder"),
    ("data nowhere.csv out.csv", "nowhere.csv: no such file or folder; check the path"),
    ("templates build nowhere.csv -o x.parquet", "nowhere.csv: no such file or folder"),
    ("templates build nacl.cif --out thesis", "thesis exists; choose another name"),
    ("templates build nacl.cif", "Missing option '-o' / '--out'; see flowllm templates build --h"),
    ("sampel", "No such command 'sampel'"),
    ("--seed 1", "No such option '--seed'; see flowllm --help"),
]


@pytest.mark.parametrize(("line", "message"), CASES, ids=[line for line, _ in CASES])
def test_a_bad_request_is_refused_within_a_second_and_a_half(
    line: str, message: str, files: Path
) -> None:
    before = contents(files)
    ended = process(*line.split(), cwd=files)
    assert (ended.code, ended.stdout) == (2, "")
    assert ended.stderr.startswith("error: ") and message in ended.stderr
    assert ended.stderr.count("\n") == 1
    assert not {"torch", "transformers"} & ended.modules
    assert ended.seconds < 1.5
    assert contents(files) == before
