"""Commands in other environments: without docstrings, with little memory, with noisy libraries."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import pytest
from cli_support import check_mistake, process
from pymatgen.core import Lattice, Structure

from flowllm.crystals import io
from flowllm.crystals.io import write
from support import run_command


def test_without_docstrings_it_is_one_line(files: Path) -> None:
    ended = process("sample", "-n", "1", cwd=files, PYTHONOPTIMIZE="2")
    assert (ended.code, ended.stdout) == (2, "")
    (line,) = ended.stderr.splitlines()
    assert "Python runs without docstrings (-OO or PYTHONOPTIMIZE=2)" in line
    assert process("data", "nacl.cif", "out.csv", cwd=files, PYTHONOPTIMIZE="1").code == 0


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (MemoryError(), "memory ran out; give fewer or smaller crystals"),
        (IsADirectoryError(errno.EISDIR, "Is a directory", "w/x"), "w/x: Is a directory; choose"),
        (FileExistsError(errno.EEXIST, "File exists", "w"), "w: File exists; choose"),
        (UnicodeEncodeError("utf-8", "w\udcff", 1, 2, "no"), r"w\udcff cannot be a file name"),
    ],
)
def test_what_the_system_refuses_is_one_line(
    error: Exception, message: str, files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(io, "write", write)
    check_mistake(run_command("data", files / "nacl.cif", files / "out.csv"), message)


@pytest.mark.parametrize("command", ["score", "ipt", "data"])
def test_warnings_of_libraries_do_not_reach_the_screen(command: str, tmp_path: Path) -> None:
    argon = Structure(Lattice.cubic(4.1), ["Ar", "F"], [[0, 0, 0], [0.5, 0.5, 0.5]])
    file = write(argon, tmp_path / "argon.json")
    out = [str(tmp_path / "out.csv")] if command == "data" else []
    ended = process(command, file, *out, PYTHONWARNINGS="default")
    assert (ended.code, ended.stderr) == (0, "")
