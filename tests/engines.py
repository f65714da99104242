"""Executors that the tests name as `engines:FUNCTION`; `docs/clusters.md` has two more."""

from __future__ import annotations

from concurrent.futures import Executor, ThreadPoolExecutor


def threads() -> Executor:
    """Two threads of this process."""
    return ThreadPoolExecutor(2)


def executorlib() -> Executor:
    """executorlib's workers on this machine."""
    from executorlib import SingleNodeExecutor

    return SingleNodeExecutor(
        max_workers=2,
        block_allocation=True,
        disable_dependencies=True,
        hostname_localhost=True,
        restart_limit=3,
    )


def number() -> int:
    """No executor."""
    return 3


def broken() -> Executor:
    """No executor either."""
    raise RuntimeError("no such\ncluster")
