"""Work spread over processes that compute with one thread each.

Two torch threads beside any other load are many times slower than one, and another number of
threads adds floats in another order, which changes their last bits. So parallel work here means
more processes, and one process alone computes exactly what many do.
"""

from __future__ import annotations

import contextlib
import functools
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

from flowllm.errors import UserError

Item = TypeVar("Item")
Result = TypeVar("Result")


def for_each(
    items: Iterable[Item],
    work: Callable[[Any, Item], Result],
    save: Callable[[Item, Result], None],
    *,
    setup: Callable[[], Any] | None = None,
    workers: int = 1,
) -> None:
    """Call `save(item, work(context, item))` for every item, in the order in which they end.

    Args:
        items: the work, one call each.
        work: computes the result of an item from the context and the item. With several workers it
            must be picklable (a top-level function or a `functools.partial` of one).
        save: takes an item and its result; always runs in this process. Called again for an item
            if an interrupt of this process has ended the first call.
        setup: makes the context, once per process and before its first item; picklable as `work`.
            None: the context is None.
        workers: number of processes. One is this process; several are spawned, and end at once when
            this one is killed.

    Raises:
        UserError: if a worker process was killed.
        Exception: the first that `setup` or `work` raises, with its type, or the
            `KeyboardInterrupt` of this process. No item is begun after it, but those that other
            workers have begun are finished and saved first.
    """
    if workers == 1:
        call = _Call(work, setup)
        for item in items:
            save(item, call(item))
        return

    waiting = iter(items)
    running: dict[Future[Result], Item] = {}
    failure: BaseException | None = None
    spawn = multiprocessing.get_context("spawn")
    with (
        _one_thread_in_children(),
        ProcessPoolExecutor(workers, spawn, _start_worker, (work, setup)) as pool,
    ):
        while True:
            try:
                # Never more items than workers: those queued in the pool could not be called back.
                while failure is None and len(running) < workers:
                    try:
                        item = next(waiting)
                    except StopIteration:
                        break
                    try:
                        running[pool.submit(_call_in_worker, item)] = item
                    except BrokenProcessPool as error:  # died between two items
                        failure = error
                if not running:
                    break
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    if (raised := future.exception()) is None:
                        save(running[future], future.result())
                    else:
                        failure = failure or raised
                    del running[future]
            except KeyboardInterrupt as error:
                if isinstance(failure, KeyboardInterrupt):  # the second: wait for nothing
                    raise
                failure = error
    if isinstance(failure, BrokenProcessPool):
        raise UserError(
            "a worker process ended without a result (killed, out of memory, or failed at its "
            "start: see above); all finished work is kept: run again to go on, with fewer workers "
            "if memory ran out"
        ) from failure
    if failure is not None:
        raise failure


class _Call:
    """`work` with its context, which is made at the first call.

    Not at the start of the process, because only an exception of an item reaches the caller with
    its type.
    """

    def __init__(self, work: Callable[[Any, Any], Any], setup: Callable[[], Any] | None) -> None:
        self.work = work
        self.setup = setup

    @functools.cached_property
    def context(self) -> Any:
        return self.setup() if self.setup else None

    def __call__(self, item: Any) -> Any:
        context = self.context
        with _one_torch_thread():
            return self.work(context, item)


_call: _Call  # of this worker process; the pool has no other place for it


def _start_worker(work: Callable[[Any, Any], Any], setup: Callable[[], Any] | None) -> None:
    global _call
    _call = _Call(work, setup)
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # at Ctrl-C one traceback is enough
    threading.Thread(target=end_with_parent, daemon=True).start()


def _call_in_worker(item: Any) -> Any:
    return _call(item)


def end_with_parent() -> None:
    """Wait in a thread of a spawned process for the end of its parent, then end this process."""
    parent = multiprocessing.parent_process()
    assert parent is not None, "only spawned processes call this"
    parent.join()
    os._exit(1)


@contextlib.contextmanager
def _one_thread_in_children() -> Iterator[None]:
    """Set OMP_NUM_THREADS, which OpenMP reads when a library loads, for processes spawned here."""
    before = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ["OMP_NUM_THREADS"]
        else:
            os.environ["OMP_NUM_THREADS"] = before


@contextlib.contextmanager
def _one_torch_thread() -> Iterator[None]:
    torch = sys.modules.get("torch")  # work without torch need not wait for its import
    if torch is None:
        yield
        return
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
