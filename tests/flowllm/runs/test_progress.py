"""Progress of a job: a bar on a terminal, log lines elsewhere."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys
import termios
from pathlib import Path
from types import ModuleType

import pytest

from flowllm.runs import sharded as jobs
from flowllm.runs.sharded import run_job
from run_jobs import run, start
from support import ROOT


def on_a_terminal(command: list[str]) -> str:
    """Run a command whose stderr is a terminal, and return what it shows there."""
    here, there = pty.openpty()
    termios.tcsetwinsize(there, (25, 100))
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, env=environment, stderr=there)
    process.wait()
    os.close(there)
    shown = b""
    try:
        while chunk := os.read(here, 4096):
            shown += chunk
    except OSError:  # how Linux says that the other end of a terminal is closed
        pass
    os.close(here)
    return shown.decode()


def test_the_bar_counts_resumed_records_and_shows_a_rate(
    script: Path, job: ModuleType, tmp_path: Path
) -> None:
    folder = run(job, tmp_path / "run")
    for index in range(10, 20):
        folder.shard(index).unlink()
    shown = on_a_terminal([sys.executable, str(script), str(folder.path), "1", "20"])
    first, *_, last = shown.strip().split("\r")
    assert "test" in first and "30/58" in first
    assert "58/58" in last and "crystals/s" in last


STEPWISE = """
import logging, sys
from flowllm.runs.sharded import run_job
import slow_job_of_test as job

if __name__ == "__main__":
    out, workers, configure = sys.argv[1:]
    if configure == "yes":
        logging.basicConfig(format="log: %(message)s")
    run_job(out, manifest={}, total=8, batch_size=4, work=job.stepwise, workers=int(workers))
"""


@pytest.mark.parametrize("configure", ["yes", "no"])
def test_the_bar_moves_record_by_record_and_log_lines_stand_above_it(
    script: Path, tmp_path: Path, configure: str
) -> None:
    main = script.parent / "stepwise_job_of_test.py"
    main.write_text(STEPWISE)
    command = [sys.executable, str(main), str(tmp_path / "run"), "1", configure]
    shown = on_a_terminal(command)
    states = {state for state in re.findall(r"(\d)/8", shown)}
    assert states >= {"2", "3", "6", "7"}  # within a batch of four
    prefix = "log: " if configure == "yes" else ""
    for number in range(8):
        # Alone on its line: the bar is wiped before it.
        assert re.search(rf"\r *\r{prefix}record {number} is done\r\n", shown), shown


def test_a_worker_moves_the_bar_by_shards(script: Path, tmp_path: Path) -> None:
    main = script.parent / "stepwise_job_of_test.py"
    main.write_text(STEPWISE)
    shown = on_a_terminal([sys.executable, str(main), str(tmp_path / "run"), "2", "yes"])
    assert set(re.findall(r"(\d)/8", shown)) == {"0", "4", "8"}


def test_without_a_terminal_the_log_tells_the_rate_now_and_then(
    job: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    arguments = {"manifest": {}, "total": 30, "batch_size": 10, "setup": job.setup}
    caplog.set_level("INFO")
    run_job(tmp_path / "quick", work=job.work, **arguments)
    assert not caplog.messages  # not every time
    monkeypatch.setattr(jobs, "_LOG_EVERY", 0.0)
    run_job(tmp_path / "slow", work=job.work, **arguments)
    rate = r"\d+\.\d/s, \d+ s left"
    for message, done in zip(caplog.messages, (10, 20, 30), strict=True):
        assert re.fullmatch(rf"{done} of 30 records, {rate}", message)
    caplog.clear()
    run_job(tmp_path / "quiet", work=job.work, progress=False, **arguments)
    assert not caplog.messages


def test_no_bar_without_a_terminal(script: Path, tmp_path: Path) -> None:
    process = start(script, tmp_path / "run", 1, 20, stderr=subprocess.PIPE)
    assert process.communicate()[1] == b""
    assert process.returncode == 0
