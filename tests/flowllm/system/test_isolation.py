"""A process of its own that fails, dies or is interrupted."""

from __future__ import annotations

import functools
import operator
import os
import signal
import threading

import pytest

from flowllm.errors import UserError
from flowllm.system.isolation import Isolated


def test_a_process_that_cannot_be_set_up_is_an_error(capfd: pytest.CaptureFixture) -> None:
    isolated = Isolated(functools.partial(int, "x"), max, what="potential x")
    with pytest.raises(UserError, match="potential x could not be loaded .* exit code 1"):
        isolated(1, time_limit=10)


def test_a_process_that_died_between_two_crystals_is_replaced() -> None:
    isolated = Isolated(functools.partial(int, "1"), max, what="potential x")
    assert isolated(2, time_limit=60) == 2
    isolated._process.kill()
    isolated._process.join()
    assert isolated(3, time_limit=60) == 3
    isolated.close()


def test_an_interrupted_process_is_replaced() -> None:
    sleep = functools.partial(eval, "__import__('time').sleep")
    isolated = Isolated(sleep, operator.call, what="a sleeper")
    isolated(0, time_limit=60)
    process = isolated._process
    assert process is not None
    threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()
    with pytest.raises(KeyboardInterrupt):
        isolated(60, time_limit=120)
    assert isolated._process is None
    assert isolated(0, time_limit=60) is None
    isolated.close()
