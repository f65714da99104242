"""Executors that the tests name as `engines:FUNCTION`, each with two workers."""

from __future__ import annotations

import os
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


def parsl() -> Executor:
    """Parsl's high-throughput executor on this machine."""
    from parsl import Config, HighThroughputExecutor
    from parsl.concurrent import ParslPoolExecutor
    from parsl.providers import LocalProvider

    workers = HighThroughputExecutor(
        max_workers_per_node=2,
        cores_per_worker=0.5,
        address="127.0.0.1",
        heartbeat_period=1,  # seconds until a lost worker is noticed
        provider=LocalProvider(init_blocks=1, max_blocks=1),
    )
    config = Config(executors=[workers], run_dir=os.environ["PARSL_RUNS"], usage_tracking=0)
    return ParslPoolExecutor(config)


def dask() -> Executor:
    """A Dask cluster of two processes."""
    from distributed import Client

    client = Client(n_workers=2, threads_per_worker=1, dashboard_address=None)
    return client.get_executor()


def number() -> int:
    """No executor."""
    return 3


def broken() -> Executor:
    """No executor either."""
    raise RuntimeError("no such\ncluster")
