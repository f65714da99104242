"""Executors by name, and the GPUs of their workers."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import pytest
import torch

from flowllm.errors import UserError
from flowllm.system.pools import check_executor, check_gpus, open_executor


@pytest.mark.parametrize(
    ("device", "workers", "executor"),
    [("cuda", 2, "local"), ("cuda:1", 1, "local"), ("cpu", 9, "local"), ("cuda", 9, "slurm")],
)
def test_as_many_workers_as_gpus(
    monkeypatch: pytest.MonkeyPatch, device: str, workers: int, executor: str
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    check_gpus(device, workers, executor)


@pytest.mark.parametrize(
    ("device", "workers", "count"), [("cuda", 3, 2), ("cuda:1", 2, 1), ("cuda", 100, 2)]
)
def test_more_workers_than_gpus_are_refused(
    monkeypatch: pytest.MonkeyPatch, device: str, workers: int, count: int
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    message = (
        rf"workers is {workers}, more than the GPUs of device {device} \({count}\); give {count}"
    )
    with pytest.raises(UserError, match=message):
        check_gpus(device, workers)


def test_slurm_needs_its_package_and_an_allocation(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="not installed; pip install 'flowllm-crystal.cluster.'"):
        check_executor("slurm")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    with pytest.raises(UserError, match="needs a Slurm allocation, and this process is in none"):
        open_executor("slurm", 2, "cpu")
    (tmp_path / "srun").touch(mode=0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    check_executor("slurm")
