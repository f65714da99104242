"""No process of an executor outlives a command that was killed.

Some engines start processes that wait for their parent for ever if it ends without a word
(SIGKILL, out of memory): Parsl's interchange does, and with it its workers. A guard, which is this
file run as a script, waits for the end of the command and ends what is left.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import subprocess
import sys
import time
from collections.abc import Collection, Iterator

import psutil

_MARK = "FLOWLLM_COMMAND"  # in the environment of all that the command starts
_POLL = 0.5  # seconds; a look takes a few milliseconds
_LONGEST = 60  # seconds for what cannot be ended


@contextlib.contextmanager
def no_orphans() -> Iterator[None]:
    """End what this process starts, and what that starts, if this process is killed.

    Processes of this machine are found by their environment, as some leave their parent and its
    session, and as descendants, as some overwrite their environment by a title. Processes that this
    one had started before, and theirs, are left alone. At the end of the context nothing is ended.
    """
    mark = f"{os.getpid()}-{secrets.token_hex(8)}"
    others = [str(process.pid) for process in psutil.Process().children()]
    guard = subprocess.Popen(
        [sys.executable, "-B", __file__, str(os.getpid()), mark, *others],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,  # Ctrl-C, or the end of the group, is not for the guard
    )
    os.environ[_MARK] = mark
    try:
        yield
    finally:
        os.environ.pop(_MARK, None)
        guard.terminate()
        guard.wait()


def _guard(parent: int, mark: str, others: Collection[int]) -> None:
    """Wait for the end of a process, then end its descendants and all that have a mark.

    Args:
        parent: the process.
        mark: in the environment of what it starts.
        others: children of it that are left alone, with all that they start.
    """
    me = psutil.Process()
    found: set[psutil.Process] = set()
    while os.getppid() == parent:
        with contextlib.suppress(psutil.Error):
            for child in psutil.Process(parent).children():
                if child.pid not in others:
                    found.update([child, *child.children(recursive=True)])
        found = {process for process in found if process != me and _lives(process)}
        time.sleep(_POLL)
    patience = time.monotonic() + _LONGEST
    while found := {process for process in found | _marked(mark) if _lives(process)}:
        if time.monotonic() > patience:
            return
        for process in found:
            with contextlib.suppress(psutil.Error):
                process.kill()
        time.sleep(_POLL)  # one may have started another meanwhile


def _marked(mark: str) -> set[psutil.Process]:
    found = set()
    for process in psutil.process_iter():
        # Those of other users are not ours to read; a zombie has no environment any more.
        with contextlib.suppress(psutil.Error, OSError):
            if process.environ().get(_MARK) == mark:
                found.add(process)
    return found


def _lives(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


if __name__ == "__main__":
    _guard(int(sys.argv[1]), sys.argv[2], {int(pid) for pid in sys.argv[3:]})
