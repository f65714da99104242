"""Fixtures of the evaluation tests."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep features and parsed files of a test in a folder of its own."""
    monkeypatch.setenv("FLOWLLM_CACHE", str(tmp_path / "cache"))
