"""Real processes that are killed or end by themselves."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import psutil
import pytest

# Starts a process that leaves its session, prints its id, and waits or ends.
COMMAND = """
import os, subprocess, sys, time
from flowllm.system.orphans import no_orphans

with no_orphans():
    left = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(120)"],
                            start_new_session=True, stdout=subprocess.DEVNULL)
    print(left.pid, flush=True)
    if sys.argv[1] == "wait":
        time.sleep(120)
print(os.environ.get("FLOWLLM_COMMAND"), flush=True)
left.returncode = 0  # no warning that it still runs
"""


@contextlib.contextmanager
def started(what: str) -> Iterator[tuple[subprocess.Popen[str], psutil.Process]]:
    """Give the command and the process that it has started."""
    command = subprocess.Popen(
        [sys.executable, "-c", COMMAND, what], stdout=subprocess.PIPE, text=True
    )
    assert command.stdout is not None
    left = psutil.Process(int(command.stdout.readline()))
    try:
        yield command, left
    finally:
        for process in (command, left):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        command.communicate()


def ended(process: psutil.Process, seconds: float) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if not process.is_running() or process.status() == psutil.STATUS_ZOMBIE:
            return True
        time.sleep(0.1)
    return False


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_what_a_killed_command_has_started_is_ended(number: signal.Signals) -> None:
    with started("wait") as (command, left):
        guards = [p for p in psutil.Process(command.pid).children() if p != left]
        assert len(guards) == 1 and left.is_running()
        os.kill(command.pid, number)
        assert ended(left, 60) and ended(guards[0], 60)


def test_nothing_is_ended_after_a_command_that_ends_by_itself() -> None:
    with started("end") as (command, left):
        assert command.wait(60) == 0
        assert command.stdout is not None and command.stdout.read() == "None\n"
        time.sleep(1.0)
        assert left.is_running() and left.status() != psutil.STATUS_ZOMBIE


def test_processes_that_were_there_before_are_left_alone() -> None:
    code = COMMAND.replace(
        "with no_orphans():",
        "before = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(120)'])\n"
        "print(before.pid, flush=True)\nwith no_orphans():",
    )
    command = subprocess.Popen(
        [sys.executable, "-c", code, "wait"], stdout=subprocess.PIPE, text=True
    )
    assert command.stdout is not None
    before, left = (psutil.Process(int(command.stdout.readline())) for _ in range(2))
    try:
        time.sleep(2)  # the guard looks around
        command.kill()
        assert ended(left, 60)
        assert not ended(before, 2)
    finally:
        before.kill()
        command.communicate()
