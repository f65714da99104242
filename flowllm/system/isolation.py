"""Work in a process of its own, which may hang or die without harm to anybody else."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any, Generic, TypeVar

from flowllm.errors import UserError

Item = TypeVar("Item")
Result = TypeVar("Result")

_SETUP_LIMIT = 600.0  # seconds


class Lost(Exception):
    """The process came to no result: why."""


class Isolated(Generic[Item, Result]):
    """`work(context, item)` in a spawned process, with the context that `setup()` makes there.

    The process computes with one thread. It starts at the first call, serves one call after the
    other, and is replaced after it was lost. Both functions must be picklable.
    """

    def __init__(
        self, setup: Callable[[], Any], work: Callable[[Any, Item], Result], *, what: str
    ) -> None:
        self._setup = setup
        self._work = work
        self._what = what
        self._process: multiprocessing.process.BaseProcess | None = None
        self._pipe: Connection

    def __call__(self, item: Item, *, time_limit: float) -> Result:
        """The result for one item.

        Raises:
            Lost: none after `time_limit` seconds (the process is killed), or the process died.
            UserError: no process could be set up.
        """
        if self._process is not None and not self._process.is_alive():
            self._stop()  # it died while it had nothing to do: no fault of this item
        if self._process is None:
            self._start()
        try:
            self._pipe.send(item)
            return self._receive(time_limit)
        except BrokenPipeError:
            raise Lost(self._stop()) from None

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            self._stop()

    def _start(self) -> None:
        spawn = multiprocessing.get_context("spawn")
        self._pipe, other = spawn.Pipe()
        self._process = spawn.Process(
            target=_serve, args=(other, self._setup, self._work), daemon=True
        )
        self._process.start()
        other.close()  # so that the end of the process is the end of the pipe
        try:
            self._receive(_SETUP_LIMIT)
        except Lost as error:
            raise UserError(
                f"{self._what} could not be loaded in a process of its own: {error}; see above, "
                "and use fewer workers if memory ran out"
            ) from error

    def _receive(self, time_limit: float) -> Any:
        try:
            if not self._pipe.poll(time_limit):
                self._stop()
                raise Lost(f"hung, killed after {time_limit:g} s")
            return self._pipe.recv()
        except (EOFError, ConnectionResetError):
            raise Lost(self._stop()) from None

    def _stop(self) -> str:
        """End the process; how it ended."""
        process, self._process = self._process, None
        self._pipe.close()
        process.join(1.0)  # one that died itself has its own exit code
        process.kill()
        process.join()
        code = process.exitcode
        process.close()
        if code < 0:
            return f"its process was killed by {signal.Signals(-code).name}"
        return f"its process ended with exit code {code}"


def _serve(pipe: Connection, setup: Callable[[], Any], work: Callable[[Any, Any], Any]) -> None:
    os.environ["OMP_NUM_THREADS"] = "1"  # before any library that reads it
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # at Ctrl-C the parent ends, and this one with it
    threading.Thread(target=_end_with_parent, daemon=True).start()
    context = setup()
    pipe.send(None)
    while True:
        try:
            item = pipe.recv()
        except EOFError:
            return
        pipe.send(work(context, item))


def _end_with_parent() -> None:
    multiprocessing.parent_process().join()
    os._exit(1)
