"""Work in a process of its own, which may hang or die without harm to the rest."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Generator, Iterable
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any, Generic, TypeVar

from flowllm.errors import UserError
from flowllm.system.pools import end_with_parent

Item = TypeVar("Item")
Result = TypeVar("Result")

_SETUP_LIMIT = 600.0  # seconds
_END = "end of the results"


class Lost(Exception):
    """The end of an isolated process before its last result; the message says how it ended.

    Attributes:
        killed: a signal from outside or a crash has ended it, which may not happen again; else it
            hung or ended itself.
    """

    def __init__(self, message: str, *, killed: bool = False) -> None:
        super().__init__(message)
        self.killed = killed


class SetupFailed(UserError):
    """The process could not be set up: a fault of the machine, not of an item."""


class Isolated(Generic[Item, Result]):
    """A function that runs in a spawned process, one item after the other.

    The process computes with one thread. It starts at the first call, and another one takes its
    place after it was lost.

    Args:
        setup: makes the context in the process; picklable.
        work: yields the results from the context and an item; picklable.
        what: name of the context for error messages.
    """

    def __init__(
        self, setup: Callable[[], Any], work: Callable[[Any, Item], Iterable[Result]], *, what: str
    ) -> None:
        self._setup = setup
        self._work = work
        self._what = what
        self._process: BaseProcess | None = None
        self._pipe: Connection

    def __call__(self, item: Item, *, time_limit: float) -> Generator[Result, None, None]:
        """Yield the results for one item as they come.

        Args:
            item: sent to the process; picklable.
            time_limit: seconds without a result after which the process is killed.

        Raises:
            Lost: if there is no further result within the time limit, or the process died.
            SetupFailed: if no process could be set up; one that is killed meanwhile is replaced
                once.
        """
        if self._process is not None and not self._process.is_alive():
            self._stop(self._process)  # it died between two items, which is no fault of this one
        try:
            process = self._process or self._start()
            try:
                self._pipe.send(item)
            except BrokenPipeError:
                raise self._stop(process) from None
            while (received := self._receive(process, time_limit)) != _END:
                [result] = received
                yield result
        except (KeyboardInterrupt, GeneratorExit):
            # The next item must not get the results of this one.
            if self._process is not None:
                self._process.kill()
                self._stop(self._process)
            raise

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            self._stop(self._process)

    def _start(self) -> BaseProcess:
        try:
            return self._start_once()
        except Lost as error:
            if error.killed:
                with contextlib.suppress(Lost):
                    return self._start_once()
            raise SetupFailed(
                f"{self._what} could not be loaded in a process of its own: {error}; see above, "
                "and use fewer workers if memory ran out"
            ) from error

    def _start_once(self) -> BaseProcess:
        spawn = multiprocessing.get_context("spawn")
        self._pipe, other = spawn.Pipe()
        process = spawn.Process(target=_serve, args=(other, self._setup, self._work), daemon=True)
        self._process = process
        process.start()
        other.close()  # so that the end of the process is the end of the pipe
        self._receive(process, _SETUP_LIMIT)
        return process

    def _receive(self, process: BaseProcess, time_limit: float) -> Any:
        try:
            if not self._pipe.poll(time_limit):
                self._stop(process)
                raise Lost(f"hung, killed after {time_limit:g} s")
            return self._pipe.recv()
        except (EOFError, ConnectionResetError):
            raise self._stop(process) from None

    def _stop(self, process: BaseProcess) -> Lost:
        """End the process and return how it ended."""
        self._process = None
        self._pipe.close()
        process.join(1.0)  # one that died itself has its own exit code
        process.kill()
        process.join()
        code = process.exitcode
        process.close()
        if code is not None and code < 0:
            return Lost(f"its process was killed by {signal.Signals(-code).name}", killed=True)
        return Lost(f"its process ended with exit code {code}")


def _serve(
    pipe: Connection, setup: Callable[[], Any], work: Callable[[Any, Any], Iterable[Any]]
) -> None:
    os.environ["OMP_NUM_THREADS"] = "1"  # before any library that reads it
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # at Ctrl-C the parent ends, and this one with it
    threading.Thread(target=end_with_parent, daemon=True).start()
    context = setup()
    pipe.send(None)
    while True:
        try:
            item = pipe.recv()
        except EOFError:
            return
        for result in work(context, item):
            pipe.send((result,))
        pipe.send(_END)
