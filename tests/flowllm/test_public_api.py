"""The names that `flowllm` exports, its errors, and the examples of the README."""

from __future__ import annotations

import inspect
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import flowllm
from flowllm import (
    FlowLLMError,
    InvalidCrystal,
    PriorError,
    RefinerError,
    Sample,
    SamplingConfig,
    UserError,
)
from flowllm.system.options import OptionError
from rfm.config import IntegrationConfig
from support import ROOT

README_BLOCK = re.compile(r"```python\n(.*?)```", re.DOTALL)
NAMES = sorted(set(flowllm.__all__) - {"__version__"})


@pytest.mark.parametrize("name", NAMES)
def test_every_public_name_can_be_imported_and_is_documented(name: str) -> None:
    found = getattr(flowllm, name)
    assert found.__name__ == name
    assert inspect.isclass(found) or inspect.isfunction(found)
    assert found.__doc__ and len(found.__doc__.split()) >= 3
    if inspect.isfunction(found):
        assert "Args:" in found.__doc__ and "Raises:" in found.__doc__


@pytest.mark.parametrize("name", NAMES)
def test_every_argument_of_a_public_function_is_documented(name: str) -> None:
    found = getattr(flowllm, name)
    if inspect.isclass(found):
        found = found.__init__ if "Args:" in (found.__doc__ or "") else None
        text = getattr(flowllm, name).__doc__
    else:
        text = found.__doc__
    for argument in inspect.signature(found).parameters if found else ():
        if argument != "self":
            assert re.search(rf"^ +\**{argument}: ", text, re.MULTILINE), argument


def test_a_star_import_gives_the_public_names() -> None:
    assert len(set(flowllm.__all__)) == len(flowllm.__all__)
    names: dict[str, Any] = {}
    exec("from flowllm import *", names)
    assert set(flowllm.__all__) <= names.keys()
    with pytest.raises(AttributeError, match="module 'flowllm' has no attribute 'sampler'"):
        _ = flowllm.sampler


def test_the_import_of_the_package_is_instant() -> None:
    program = """
import sys, time
import flowllm
assert not {"torch", "transformers", "numpy", "pandas", "pymatgen"} & sys.modules.keys()
print(time.process_time())
"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", program]
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert float(result.stdout) < 0.5


# Errors


@pytest.mark.parametrize(
    "error", [UserError, PriorError, RefinerError, InvalidCrystal, OptionError]
)
def test_one_base_class_catches_every_error_of_bad_input(error: type[Exception]) -> None:
    assert issubclass(error, FlowLLMError) and issubclass(error, ValueError)


def test_errors_of_every_package_are_caught_by_one_clause() -> None:
    calls = (
        lambda: SamplingConfig(seed=-1),
        lambda: SamplingConfig.of(spacegroup=300),
        lambda: IntegrationConfig(steps=0),
        lambda: flowllm.read("nowhere.cif"),
    )
    kinds = []
    for call in calls:
        with pytest.raises(FlowLLMError) as error:
            call()
        kinds.append(type(error.value))
        assert len(str(error.value).splitlines()) == 1
    assert kinds == [OptionError, PriorError, RefinerError, UserError]


def test_the_libraries_raise_their_errors_without_flowllm() -> None:
    program = """
import sys
from llm_prior import PriorError
from rfm import RefinerError
assert issubclass(PriorError, ValueError) and issubclass(RefinerError, ValueError)
assert "flowllm" not in sys.modules
"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", program]
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


# README


def test_the_examples_of_the_readme_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = README_BLOCK.findall((ROOT / "README.md").read_text(encoding="utf-8"))
    assert blocks
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    for block in blocks:
        exec(re.sub(r"\.sample\(\d+,", ".sample(2,", block), names)
    assert [type(sample) for sample in names["samples"]] == [Sample, Sample]
    formulas = {sample.structure.composition.reduced_formula for sample in names["samples"]}
    assert formulas == {"NaCl"}
    assert names["best"].structure.composition.reduced_formula == "SrTiO3"
    assert (names["refined"].structure is None) != (names["refined"].failure is None)
