"""Work spread over processes that compute with one thread each.

Two torch threads beside any other load are many times slower than one, and another number of
threads adds floats in another order, which changes their last bits. So parallel work here means
more processes, and one process alone computes exactly what many do.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import pickle
import secrets
import sys
import threading
import traceback
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, CancelledError, Executor, Future, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from flowllm.errors import UserError, one_line
from flowllm.system.orphans import no_orphans
from flowllm.system.pools import LOCAL, MAX_ATTEMPTS, open_executor

logger = logging.getLogger(__name__)

Item = TypeVar("Item")
Result = TypeVar("Result")


def for_each(
    items: Iterable[Item],
    work: Callable[[Any, Item], Result],
    save: Callable[[Item, Result], None],
    *,
    setup: Callable[[], Any] | None = None,
    workers: int = 1,
    executor: str = LOCAL,
    device: str = "cpu",
    label: Callable[[Item], str] = lambda item: "a task",
) -> None:
    """Call `save(item, work(context, item))` for every item, in the order in which they end.

    An item whose worker process is lost (killed, or its machine failed) is computed again by
    another one, up to `MAX_ATTEMPTS` times.

    Args:
        items: the work, one call each.
        work: computes the result of an item from the context and the item. Unless `in_process`, it
            must be picklable (a top-level function or a `functools.partial` of one).
        save: takes an item and its result; always runs in this process. Called again for an item
            if an interrupt of this process has ended the first call.
        setup: makes the context, once per process and before its first item; picklable as `work`.
            None: the context is None.
        workers: number of items at work at a time. With the executor `local`, one is computed by
            this process; several by as many processes, which end at once when this one is killed.
        executor: see `flowllm.system.pools.check_executor`.
        device: of the work; with `cuda` each of several workers gets a GPU of its own.
        label: name of an item for messages.

    Raises:
        UserError: if the executor cannot be made, or an item has lost its worker too often.
        Exception: the first that `setup` or `work` raises, with its type, or the
            `KeyboardInterrupt` of this process. No item is begun after it, but those that other
            workers have begun are finished and saved first.
    """
    if in_process(workers, executor):
        call = _Call(work, setup)
        for item in items:
            save(item, call(item))
        return

    job = pickle.dumps((work, setup))
    key = secrets.token_hex(8)
    waiting = map(_Task, items)
    again: list[_Task[Item]] = []
    running: dict[Future[_Answer], _Task[Item]] = {}
    failure: BaseException | None = None
    with contextlib.ExitStack() as stack:
        stack.enter_context(_one_thread_in_children())
        pool: Executor | None = None

        def submit(task: _Task[Item], job: bytes | None) -> None:
            nonlocal pool
            if pool is None:  # not before there is work
                if executor != LOCAL:  # whose processes end with this one by themselves
                    stack.enter_context(no_orphans())
                pool = stack.enter_context(open_executor(executor, workers, device))
            try:
                future = pool.submit(_call_in_worker, key, job, task.item, task.losses)
            except Exception as error:  # an executor that takes no more work
                future = Future()
                future.set_exception(error)
            running[future] = task

        while True:
            try:
                # Never more items than workers: those queued in the pool could not be called back.
                while failure is None and len(running) < workers:
                    task = again.pop() if again else next(waiting, None)
                    if task is None:
                        break
                    submit(task, None)
                if not running:
                    break
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    task = running[future]
                    if (lost := _loss(future)) is not None:
                        task.losses += 1
                        logger.warning("%s has lost its worker process", label(task.item))
                        if task.losses == MAX_ATTEMPTS:
                            failure = failure or _too_many_losses(label(task.item), lost)
                        again.append(task)
                    elif (answer := future.result()).unknown_job:
                        submit(task, job)
                    elif answer.error is not None:
                        failure = failure or answer.error
                    else:
                        save(task.item, answer.result)
                    del running[future]
            except KeyboardInterrupt as error:
                if isinstance(failure, KeyboardInterrupt):  # the second: wait for nothing
                    raise
                failure = error
    if failure is not None:
        raise failure


def in_process(workers: int, executor: str) -> bool:
    """Return whether `for_each` does the work in this process.

    Args:
        workers: number of workers.
        executor: name of the executor.
    """
    return executor == LOCAL and workers == 1


@dataclass
class _Task(Generic[Item]):
    """An item on its way.

    Attributes:
        item: the item.
        losses: workers that were lost with it.
    """

    item: Item
    losses: int = 0


@dataclass
class _Answer:
    """What a worker returns; all else that reaches the caller comes from the executor.

    Attributes:
        result: of the item.
        error: raised by the work.
        unknown_job: the worker has not seen the job; send it along.
    """

    result: Any = None
    error: Exception | None = None
    unknown_job: bool = False


def _loss(future: Future[_Answer]) -> BaseException | None:
    """Return how the worker was lost, if it was."""
    return CancelledError("cancelled") if future.cancelled() else future.exception()


def _too_many_losses(label: str, lost: BaseException) -> UserError:
    how = "killed, out of memory, or failed at its start: see above"
    if not isinstance(lost, BrokenProcessPool):
        how = f"{type(lost).__name__}: {one_line(lost)}"
    error = UserError(
        f"{label}: a worker process ended without a result {MAX_ATTEMPTS} times ({how}); all "
        "finished work is kept: run again to go on, with fewer workers if memory ran out"
    )
    error.__cause__ = lost
    return error


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


# The job of this worker process, which executors have no place for, by its key. Its threads, if the
# executor has several in a process, take turns.
_calls: dict[str, _Call] = {}
_turn = threading.Lock()


def _call_in_worker(key: str, job: bytes | None, item: Any, attempt: int) -> _Answer:
    """Compute an item; `attempt` only tells the calls apart, as Dask knows them by their arguments.

    The job is sent when a worker asks for it, which is once for most workers: it may hold all
    crystals of the run.
    """
    with _turn:
        if key not in _calls:
            if job is None:
                return _Answer(unknown_job=True)
            _calls.clear()  # of an earlier run
            _calls[key] = _Call(*pickle.loads(job))
        try:
            return _Answer(result=_calls[key](item))
        except Exception as error:
            error.add_note("".join(traceback.format_exception(error)))  # the pickle has none
            return _Answer(error=error)


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
