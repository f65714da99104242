"""Bad requests for a training are refused with one line, before torch is imported."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from flowllm.crystals.io import Crystal, write
from support import ROOT

# The CPU time includes the start of the interpreter.
SCRIPT = """
import json, sys, time
from flowllm.cli import cli
try:
    cli(sys.argv[1:], prog_name="flowllm")
except SystemExit as end:
    heavy = sorted({"torch", "transformers", "accelerate"} & sys.modules.keys())
    print(json.dumps({"code": end.code, "heavy": heavy, "seconds": time.process_time()}))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Crystals, somebody's thesis, and a place for new runs."""
    from training_support import UNSTABLE, random_structure, sample_row, write_evaluation, write_run

    folder = tmp_path_factory.mktemp("refusals")
    write([Crystal(id="x", structure=random_structure(0))], folder / "crystals.jsonl")
    (folder / "thesis").mkdir()
    (folder / "thesis" / "thesis.tex").write_text("my work")
    rows = [sample_row(seed, **UNSTABLE) for seed in range(3)]
    write_evaluation(folder / "judged", {write_run(folder / "run1", rows): rows})
    return folder


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("train-llm --config llm/none --data crystals.jsonl", "no config 'llm/none'; known are"),
        ("train-llm --config rfm/small --data crystals.jsonl", "rfm/small is a recipe for a refi"),
        ("train-llm --data crystals.jsonl training.epoch=3", "unknown key training.epoch; the"),
        ("train-llm --data crystals.jsonl training.epochs=0", "training.epochs is 0.0; give a nu"),
        ("train-llm --data crystals.jsonl model.name=x", "model needs exactly one of"),
        ("train-llm --data crystals.jsonl text.max_atoms=0", "text.max_atoms 0 is not"),
        ("train-llm --data crystals.jsonl tasks.infill=2", "task mix"),
        ("train-llm --data crystals.jsonl epochs", "override 'epochs' is not of the form"),
        ("train-llm --data nothing.csv", "there is no file or folder nothing.csv"),
        ("train-llm --data crystals.jsonl --validation no.csv", "no file or folder no.csv"),
        ("train-llm --data crystals.jsonl --merge", "no model.lora, so there is no adapter"),
        ("train-llm --data crystals.jsonl --out thesis", "thesis is not empty"),
        ("train-llm --data crystals.jsonl --device gpu", "unknown device 'gpu'; use cpu, cuda"),
        ("tune-llm --samples no --evaluation judged", "there is no file or folder no;"),
        ("tune-llm --samples thesis --evaluation judged", "thesis is not a run folder"),
        ("tune-llm --samples run1 --evaluation thesis", "thesis is no folder of flowllm evaluate"),
        ("tune-llm --samples run1 --evaluation judged", "no sample is below 0.1 eV/atom (unst"),
        ("tune-llm --samples run1 --evaluation judged loss.beta=0", "loss.beta is 0.0; give a n"),
        ("tune-llm --samples run1 --evaluation judged --config llm/small", "is a recipe for a pri"),
        ("train-rfm --config rfm/none --data crystals.jsonl", "no config 'rfm/none'"),
        ("train-rfm --config rfm/uniform --data nothing.csv", "no file or folder nothing.csv"),
        ("train-rfm --pairs pairs.parquet", "there is no file or folder pairs.parquet"),
        ("train-rfm --pairs crystals.jsonl base.kind=none", "unknown base 'none'"),
        ("train-rfm --pairs crystals.jsonl network.width=0", "width is 0"),
        ("train-rfm --pairs crystals.jsonl integration.steps=0", "steps is 0"),
        ("train-rfm --pairs crystals.jsonl loss.coord=-1", "coord is -1"),
        ("train-rfm --pairs crystals.jsonl training.match_steps=0", "training.match_steps is 0"),
        ("train-rfm --data crystals.jsonl", "which uses no data|give pairs"),
        ("pair crystals.jsonl --temperature -1", "temperature is -1"),
        ("pair crystals.jsonl --samples-per-target 0", "samples-per-target is 0"),
        ("pair nothing.csv", "nothing.csv: no such file or folder"),
        ("pair crystals.jsonl --samples nothing.csv", "nothing.csv: no such file or folder"),
        ("pair crystals.jsonl --samples crystals.jsonl --top-p 0.5", "take the place of a prior"),
        ("pair crystals.jsonl --templates bundled --seed 1", "place of a prior; leave out seed"),
        ("pair crystals.jsonl --device gpu", "unknown device 'gpu'; use cpu, cuda"),
        ("pair crystals.jsonl --out thesis", "thesis is not empty"),
    ],
)
def test_a_bad_request_is_one_line_and_imports_no_torch(
    folder: Path, arguments: str, message: str
) -> None:
    given = arguments.split()
    given += [] if "--out" in given else ["--out", "run"]
    ended = subprocess.run(
        [sys.executable, "-c", SCRIPT, *given],
        cwd=folder,
        env={"PYTHONPATH": str(ROOT), "PATH": "", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert ended.stderr.count("\n") == 1, ended.stderr
    assert any(part in ended.stderr for part in message.split("|")), ended.stderr
    result = json.loads(ended.stdout)
    assert (result["code"], result["heavy"]) == (2, [])
    assert result["seconds"] < 1.5
    assert not (folder / "run").exists()
    assert sorted(path.name for path in (folder / "thesis").iterdir()) == ["thesis.tex"]
