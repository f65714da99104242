"""Refusals of runs: before torch is imported, at little cost, and before a folder is made."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from support import ROOT, SALT, cif

# All refusals in one process that has not imported torch: each alone costs less than all.
PROGRAM = """
import sys, time
from flowllm import FlowLLMError, run_refinement, run_sampling
from flowllm.generation.mutation import mutate

def refused(function, *arguments, **options):
    try:
        function(*arguments, **({"out": "new"} | options))
    except FlowLLMError as error:
        print(error)
    else:
        raise AssertionError(options)
    assert not {"torch", "transformers"} & sys.modules.keys(), str(error)

refused(run_sampling, -1)
refused(run_sampling, 1, temperature=-1)
refused(run_sampling, 1, steps=0)
refused(run_sampling, 1, colour="red")
refused(run_sampling, 1, formula="NaXx")
refused(run_sampling, 1, spacegroup=300)
refused(run_sampling, 1, spacegroup="Fm-4m")
refused(run_sampling, 1, num_atoms="10-5")
refused(run_sampling, 1, best_of=2, rank="energy", potential="nonsense")
refused(run_sampling, 1, workers=0)
refused(run_sampling, 1, device="tpu")
refused(run_sampling, 1, prior="./nowhere")
refused(run_sampling, 1, refiner="./nowhere")
refused(run_sampling, 1, novel_to="nowhere.csv")
refused(run_sampling, 1, novel_to="salt.cif", formula="NaCl")
refused(run_sampling, 1, out="salt.cif")
refused(run_sampling, 1, out="thesis")
refused(run_refinement, "nowhere.cif")
refused(run_refinement, "notes.txt")
refused(run_refinement, "thesis")
refused(run_refinement, "salt.cif", steps=0)
refused(run_refinement, "salt.cif", limit=0)
refused(run_refinement, "salt.cif", workers=0)
refused(run_refinement, "salt.cif", device="tpu")
refused(run_refinement, "salt.cif", refiner="./nowhere")
refused(run_refinement, "salt.cif", out="thesis")
refused(mutate, "nowhere.cif", 1)
refused(mutate, "salt.cif", 1, device="tpu")
refused(mutate, "salt.cif", 1, prior="./nowhere")
refused(mutate, "salt.cif", 1, out="thesis")
print(time.process_time())
"""
MESSAGES = """
n is -1; give a whole number at least 0
temperature is -1; give a number at least 0
steps is 0; give a whole number at least 1
unknown condition or option 'colour'; known are
unknown element Xx in formula 'NaXx'; write it like NaCl
spacegroup 300 is not a whole number from 1 to 230
spacegroup 'Fm-4m' is not a whole number from 1 to 230 or a known Hermann-Mauguin symbol
num_atoms '10-5' is an empty range
unknown potential 'nonsense'
workers is 0; give a whole number at least 1
unknown device 'tpu'; use cpu, cuda, cuda:NUMBER or auto
there is no model folder ./nowhere
there is no model folder ./nowhere
nowhere.csv: no such file or folder; check the path
NaCl is among the known crystals
salt.cif is a file; choose a new folder for the run
thesis is not empty (it holds thesis.tex) and has no manifest.json
nowhere.cif: no such file or folder; check the path
notes.txt: cannot read '.txt' files
thesis: the folder holds no files of crystals and is not a run folder
steps is 0; give a whole number at least 1
limit is 0; give a whole number at least 1
workers is 0; give a whole number at least 1
unknown device 'tpu'
there is no model folder ./nowhere
thesis is not empty
nowhere.cif: no such file or folder; check the path
unknown device 'tpu'
there is no model folder ./nowhere
thesis is not empty
"""


def test_bad_requests_are_refused_before_torch_is_imported(tmp_path: Path) -> None:
    (tmp_path / "salt.cif").write_text(cif(SALT))
    (tmp_path / "notes.txt").write_text("notes")
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "thesis.tex").write_text("my work")
    before = sorted(tmp_path.rglob("*"))
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    result = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    *messages, seconds = result.stdout.splitlines()
    for message, expected in zip(messages, MESSAGES.strip().splitlines(), strict=True):
        assert message.startswith(expected)
    assert float(seconds) < 1.5
    assert sorted(tmp_path.rglob("*")) == before
