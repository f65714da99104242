"""The stand-in for the environment of vLLM, which tests of `llm_prior.serving` share."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from support import ROOT

STAND_IN = ROOT / "tests" / "vllm_stand_in"


def make_python(folder: Path, script: str | None = None) -> Path:
    """Write an executable in place of the Python of another environment.

    Args:
        folder: where it is written.
        script: the lines of a shell script; None: this Python with the stand-in for vLLM and the
            package that it needs for adapters.
    """
    folder.mkdir(exist_ok=True)
    if script is None:
        script = (
            f'export PYTHONPATH="{STAND_IN}${{PYTHONPATH:+:$PYTHONPATH}}"\n'
            f'exec "{sys.executable}" "$@"'
        )
    python = folder / "python"
    python.write_text(f"#!/bin/sh\n{script}\n")
    python.chmod(0o755)
    return python


def use_stand_in(folder: Path, monkeypatch: pytest.MonkeyPatch, script: str | None = None) -> Path:
    """Take the stand-in as the environment of vLLM; return its Python."""
    python = make_python(folder / "environment", script)
    monkeypatch.setenv("FLOWLLM_VLLM_PYTHON", str(python))
    monkeypatch.delenv("FLOWLLM_VLLM_OPTIONS", raising=False)
    return python
