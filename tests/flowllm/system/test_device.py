"""Devices by name."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from flowllm.errors import UserError
from flowllm.system.device import check_device, pick_device
from support import ROOT


@pytest.mark.parametrize("name", ["auto", "cpu", "cpu:0", "cuda", "cuda:12"])
def test_a_known_name_passes_the_check(name: str) -> None:
    assert check_device(name) == name


@pytest.mark.parametrize("name", ["", "gpu", "CPU", "cuda:", "cuda:-1", "cuda:x", "mps", "meta"])
def test_an_unknown_name_is_refused(name: str) -> None:
    for function in (check_device, pick_device):
        with pytest.raises(UserError, match=f"unknown device '{name}'; use cpu, cuda, cuda:NUMBER"):
            function(name)


def test_torch_is_imported_only_for_auto_and_a_gpu() -> None:
    program = """
import sys
from flowllm.errors import UserError
from flowllm.system.device import pick_device
try:
    pick_device("gpu")
except UserError:
    assert pick_device("cpu") == "cpu"
    assert "torch" not in sys.modules
    assert pick_device("auto") in ("cpu", "cuda")
    assert "torch" in sys.modules
    print("done")
"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", program]
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert result.stdout == "done\n", result.stderr
