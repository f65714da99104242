"""Calls of the command line, and the checks of what they leave, that its tests share."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import click
from click.testing import Result

from flowllm.cli import cli
from support import ROOT

# Enough arguments for every command; `nacl.cif` is a file of the fixture `files`.
NEEDED = {
    "predict": "NaCl",
    "sample": "-n 1",
    "refine": "nacl.cif",
    "mutate": "nacl.cif -n 1",
    "evaluate": "nacl.cif",
    "score": "nacl.cif",
    "ipt": "nacl.cif",
    "infill": "nacl.cif --mask Na",
    "relax": "nacl.cif",
    "export-vasp": "nacl.cif",
    "train-llm": "--data nacl.cif",
    "tune-llm": "--samples run --evaluation report",
    "pair": "nacl.cif",
    "train-rfm": "--config rfm/uniform --data nacl.cif",
    "data": "nacl.cif out.csv",
    "show": "nacl.cif",
    "ui": "",
    "templates build": "nacl.cif --out library.parquet",
    "merge": "run",
    "doctor": "",
}


def commands() -> dict[str, click.Command]:
    """Return every command by name; that of a group within `flowllm` has two words."""
    found: dict[str, click.Command] = {}
    for name, command in cli.commands.items():
        if isinstance(command, click.Group):
            found |= {f"{name} {part}": inner for part, inner in command.commands.items()}
        else:
            found[name] = command
    return found


@dataclass(frozen=True)
class Ended:
    """A finished process of the command line.

    Attributes:
        code: exit code.
        stdout: its output.
        stderr: its log and errors.
        modules: the modules that it imported.
        seconds: of CPU, the start of the interpreter included.
    """

    code: int
    stdout: str
    stderr: str
    modules: frozenset[str]
    seconds: float


def environment(**variables: str) -> dict[str, str]:
    """Return the environment of a process that runs this source tree with one thread."""
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **variables}


def process(*arguments: object, cwd: Path | None = None, **variables: str) -> Ended:
    """Run a command in a process of its own."""
    command = [sys.executable, "-X", "importtime", "-m", "flowllm", *map(str, arguments)]
    before = _child_seconds()
    ran = subprocess.run(
        command, capture_output=True, text=True, timeout=300, cwd=cwd, env=environment(**variables)
    )
    imports, errors = [], []
    for line in ran.stderr.splitlines(keepends=True):
        (imports if line.startswith("import time:") else errors).append(line)
    return Ended(
        code=ran.returncode,
        stdout=ran.stdout,
        stderr="".join(errors),
        modules=frozenset(line.rpartition("|")[2].strip() for line in imports),
        seconds=_child_seconds() - before,
    )


def _child_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def contents(folder: Path) -> dict[str, tuple[bytes, int]]:
    """Return content and time of modification of all files in a folder but the lock."""
    return {
        str(path.relative_to(folder)): (path.read_bytes(), path.stat().st_mtime_ns)
        for path in folder.rglob("*")
        if path.is_file() and path.name != ".lock"
    }


def check_mistake(result: Result, message: str) -> None:
    """Check that a command ended with exit code 2, this message on one line, and nothing else."""
    assert isinstance(result.exception, SystemExit), result.exception
    assert (result.exit_code, result.stdout) == (2, "")
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ") and message in line, line
