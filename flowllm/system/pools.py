"""Where work is computed: processes of this machine, a Slurm allocation, or any other executor."""

from __future__ import annotations

import importlib.util
import multiprocessing
import os
import shutil
import signal
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from flowllm.errors import UserError
from flowllm.system.device import num_gpus
from flowllm.system.factories import call_factory, find_factory, is_factory

LOCAL = "local"
SLURM = "slurm"
MAX_ATTEMPTS = 3  # at an item whose worker is lost


def check_executor(executor: str) -> None:
    """Check the name of an executor; no process is started.

    Args:
        executor: `local` (processes of this machine), `slurm` (the present Slurm allocation,
            through executorlib) or `MODULE:FACTORY`, a function without arguments that returns a
            `concurrent.futures.Executor`.

    Raises:
        UserError: if the name has none of these forms, a package is not installed, there is no
            such function, or this process is in no Slurm allocation.
    """
    if executor == SLURM:
        _check_slurm()
    elif executor != LOCAL:
        if not isinstance(executor, str) or not is_factory(executor):
            raise UserError(
                f"unknown executor {executor!r}; write {LOCAL}, {SLURM} or MODULE:FACTORY"
            )
        find_factory("executor", executor)


def check_gpus(device: str, workers: int, executor: str = LOCAL) -> None:
    """Check that each local worker can have a GPU of its own.

    Args:
        device: of the work, as `flowllm.system.device.pick_device` returns it.
        workers: number of workers.
        executor: name; those other than `local` have GPUs that this process need not see.

    Raises:
        UserError: if there are more workers than GPUs.
    """
    count = num_gpus(device)
    if executor == LOCAL and count is not None and workers > count:
        raise UserError(
            f"workers is {workers}, more than the GPUs of device {device} ({count}); give "
            f"{count} or fewer, or another device"
        )


def open_executor(executor: str, workers: int, device: str) -> Executor:
    """Return a new executor.

    Args:
        executor: name, see `check_executor`.
        workers: processes of `local` and `slurm`; the other executors have their own number.
        device: of the work. For `cuda` each worker of `local` and `slurm` sees one GPU, another
            one each.

    Returns:
        The executor; its context ends it.

    Raises:
        UserError: as `check_executor`, and if the factory fails or returns something else.
    """
    check_executor(executor)
    if executor == LOCAL:
        return LocalPool(workers, visible_gpus() if device == "cuda" else ())
    if executor == SLURM:
        from executorlib import SlurmJobExecutor

        return SlurmJobExecutor(
            max_workers=workers,
            resource_dict={
                "cores": 1,
                "gpus_per_core": int(device.startswith("cuda")),
                "exclusive": True,  # srun --exact, so that workers share a node
            },
            block_allocation=True,  # a worker stays, with its models, until the end
            disable_dependencies=True,
            restart_limit=MAX_ATTEMPTS,
        )
    made = call_factory("executor", executor)
    if not isinstance(made, Executor):
        raise UserError(
            f"executor {executor} returns no concurrent.futures.Executor, but a "
            f"{type(made).__name__}; name another function"
        )
    return made


def _check_slurm() -> None:
    if importlib.util.find_spec("executorlib") is None:
        raise UserError(
            "executor slurm needs a package that is not installed; "
            "pip install 'flowllm-crystal[cluster]'"
        )
    if "SLURM_JOB_ID" not in os.environ or shutil.which("srun") is None:
        raise UserError(
            "executor slurm needs a Slurm allocation, and this process is in none; start it by "
            "sbatch or salloc, or take the executor local"
        )


def visible_gpus() -> list[str]:
    """Return the names that select each GPU of this process in `CUDA_VISIBLE_DEVICES`."""
    if (chosen := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        return [name.strip() for name in chosen.split(",") if name.strip()]
    import torch

    return [str(number) for number in range(torch.cuda.device_count())]


class LocalPool(Executor):
    """Spawned processes; one that dies harms no other and is replaced.

    Each process has a `ProcessPoolExecutor` of its own, since one with several processes ends all
    of them when one dies, and does not tell which call it was.

    Args:
        workers: number of processes. Each starts at its first call and ends at once when this
            process is killed.
        gpus: names for `CUDA_VISIBLE_DEVICES`, one for each process; empty: as this process.
    """

    def __init__(self, workers: int, gpus: Sequence[str] = ()) -> None:
        self._gpus = gpus
        self._pools = [self._new(slot) for slot in range(workers)]
        self._last: list[Future[Any] | None] = [None] * workers

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Call a function in an idle process; there must be one.

        Args:
            fn: picklable.
            *args: of the call, picklable.
            **kwargs: of the call, picklable.

        Returns:
            The future; `BrokenProcessPool` if the process dies.
        """
        slot = next(n for n, last in enumerate(self._last) if last is None or last.done())
        try:
            future = self._pools[slot].submit(fn, *args, **kwargs)
        except BrokenProcessPool:  # by the last call, or while it was idle
            self._pools[slot].shutdown()
            self._pools[slot] = self._new(slot)
            future = self._pools[slot].submit(fn, *args, **kwargs)
        self._last[slot] = future
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """End the processes.

        Args:
            wait: for the calls that have begun.
            cancel_futures: has no effect: every call has begun.
        """
        with ThreadPoolExecutor(len(self._pools)) as threads:  # all at once: each takes a moment
            for pool in self._pools:
                threads.submit(pool.shutdown, wait)

    def _new(self, slot: int) -> ProcessPoolExecutor:
        gpu = self._gpus[slot] if self._gpus else None
        spawn = multiprocessing.get_context("spawn")
        return ProcessPoolExecutor(1, spawn, _start_worker, (gpu,))


def _start_worker(gpu: str | None) -> None:
    if gpu is not None:  # before CUDA starts in this process and in those that it spawns
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # at Ctrl-C one traceback is enough
    threading.Thread(target=end_with_parent, daemon=True).start()


def end_with_parent() -> None:
    """Wait in a thread of a spawned process for the end of its parent, then end this process."""
    parent = multiprocessing.parent_process()
    assert parent is not None, "only spawned processes call this"
    parent.join()
    os._exit(1)
