"""Settings that all tests share: one torch thread, and interrupts that arrive."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest
import torch

# A background job of a shell ignores SIGINT, and so would the processes that tests interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Bits depend on the number of threads, and two beside other load are far slower than one."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
