"""Devices by name."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

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


def test_auto_takes_a_gpu_if_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    assert pick_device("cpu") == "cpu"
    assert pick_device("auto") == ("cuda" if torch.cuda.is_available() else "cpu")
    for present, device in ((True, "cuda"), (False, "cpu")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda present=present: present)
        assert pick_device("auto") == device


def test_a_gpu_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="device cuda:99 is not there; use --device cpu"):
        pick_device("cuda:99")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert pick_device("cuda:1") == "cuda:1"
    with pytest.raises(UserError, match="cuda:2 is not there"):
        pick_device("cuda:2")


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
