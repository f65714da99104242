"""Ctrl-C: exit code 130 and one line with the command that goes on."""

from __future__ import annotations

import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cli_support import contents, environment
from training_support import ARCHITECTURE

from flowllm.crystals import io
from flowllm.crystals.io import Crystal, write
from flowllm.training import prior
from flowllm.training.folder import RUN_FILE
from support import SALT, run_command


def interrupted(
    words: list[str], cwd: Path, started: Callable[[], bool]
) -> tuple[int, str, list[str]]:
    """Start a command, press Ctrl-C when its work has begun; return code, stdout and stderr."""
    process = subprocess.Popen(
        [sys.executable, "-m", "flowllm", *words],
        cwd=cwd,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    end = time.monotonic() + 200
    while not started():
        assert process.poll() is None and time.monotonic() < end, process.communicate()
        time.sleep(0.005)
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=100)
    return process.returncode, stdout, stderr.splitlines()


def test_a_run_of_sampling_goes_on_with_the_printed_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["sample", "-n", "60", "--no-refine", "--formula", "NaCl", "--batch-size", "2"]
    code, stdout, stderr = interrupted(
        words, tmp_path, lambda: any(tmp_path.glob("*/shards/*.jsonl"))
    )
    assert (code, stdout) == (130, "")
    (folder,) = tmp_path.iterdir()
    assert stderr[-1] == f"interrupted; to go on: flowllm {' '.join(words)} -o {folder.name}"
    assert not [line for line in stderr[:-1] if " INFO " not in line]
    shards = contents(folder / "shards")
    assert 1 <= len(shards) < 30
    monkeypatch.chdir(tmp_path)
    _, *again = shlex.split(stderr[-1].partition("to go on: ")[2])
    result = run_command(*again)
    assert result.stdout.splitlines()[-1] == f"60 of 60 crystals in {folder.name}"
    assert shards.items() <= contents(folder / "shards").items()  # none is made again


def test_a_training_goes_on_with_the_printed_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    write([Crystal(id="salt", structure=SALT)], tmp_path / "salt.jsonl")
    settings = ["training.epochs=60", "training.batch_size=1", "training.save_steps=10"]
    settings += ARCHITECTURE
    words = ["train-llm", "--data", "salt.jsonl", "--out", "my run", "--device", "cpu", *settings]
    code, stdout, stderr = interrupted(
        words, tmp_path, lambda: any(tmp_path.glob("my run/checkpoint-*/COMPLETE"))
    )
    assert (code, stdout) == (130, "")
    assert stderr[-1] == f"interrupted; to go on: flowllm {shlex.join(words)} --resume"
    monkeypatch.chdir(tmp_path)
    _, *again = shlex.split(stderr[-1].partition("to go on: ")[2])
    result = run_command(*again)
    assert result.stdout == "my run/model\n", result.output
    assert "resuming from my run/checkpoint-" in caplog.text


@pytest.mark.parametrize(
    ("given", "printed"),
    [
        (["--out", "run"], ["--out", "run", "--resume"]),
        (["--out", "run", "--resume"], ["--out", "run", "--resume"]),
        (["--out", "run", "--", "a=b"], ["--out", "run", "--resume", "--", "a=b"]),
        (["-v", "a=b c"], ["-v", "a=b c", "-o", "NAME", "--resume"]),
    ],
)
def test_the_printed_command_has_the_options_that_it_needs(
    given: list[str], printed: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def train_prior(*, out: Path, **_: Any) -> None:
        out.mkdir()
        (out / RUN_FILE).write_text("{}")
        raise KeyboardInterrupt

    monkeypatch.setattr(prior, "train_prior", train_prior)
    monkeypatch.chdir(tmp_path)
    result = run_command("train-llm", "--data", "x", *given)
    (folder,) = tmp_path.iterdir()
    words = [folder.name if word == "NAME" else word for word in printed]
    assert result.exit_code == 130
    assert result.stderr == (
        f"interrupted; to go on: {shlex.join(['flowllm', 'train-llm', '--data', 'x', *words])}\n"
    )


def test_an_interruption_before_anything_is_written_says_so(
    files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(io, "read", read)
    result = run_command("data", files / "nacl.cif", "out.csv")
    assert (result.exit_code, result.stdout) == (130, "")
    assert result.stderr == "interrupted; nothing was written\n"
