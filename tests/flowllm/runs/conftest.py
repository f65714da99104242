"""A job of its own module, run in this process and in others."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType

import pytest

from run_jobs import JOB


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("job") / "slow_job_of_test.py"
    path.write_text(JOB)
    return path


@pytest.fixture
def job(script: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(script.parent))
    return importlib.import_module(script.stem)
