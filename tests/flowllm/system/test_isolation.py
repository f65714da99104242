"""A process of its own that fails, dies or is interrupted."""

from __future__ import annotations

import functools
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from flowllm.errors import UserError
from flowllm.system.isolation import Isolated, Lost


def count(start: int, item: int) -> Iterator[int]:
    """Yield two numbers; none for 13, and 60 hangs between them."""
    if item == 13:
        os._exit(7)
    yield start + item
    if item == 60:
        time.sleep(item)
    yield start + item + 1


def test_a_process_that_cannot_be_set_up_is_an_error(capfd: pytest.CaptureFixture) -> None:
    isolated = Isolated(functools.partial(int, "x"), count, what="potential x")
    with pytest.raises(UserError, match="potential x could not be loaded .* exit code 1"):
        list(isolated(1, time_limit=10))


def killed_once(marker: Path) -> int:
    """A context whose process is killed while it is made, the first time."""
    if not marker.exists():
        marker.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return 1


def killed() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_process_that_is_killed_while_it_is_set_up_is_replaced_once(tmp_path: Path) -> None:
    setup = functools.partial(killed_once, tmp_path / "marker")
    isolated = Isolated(setup, count, what="potential x")
    assert list(isolated(2, time_limit=60)) == [3, 4]
    isolated.close()
    with pytest.raises(UserError, match="x could not be loaded .*: its process was killed by SIGK"):
        list(Isolated(killed, count, what="potential x")(1, time_limit=10))


def test_a_process_that_died_between_two_crystals_is_replaced() -> None:
    isolated = Isolated(functools.partial(int, "1"), count, what="potential x")
    assert list(isolated(2, time_limit=60)) == [3, 4]
    isolated._process.kill()
    isolated._process.join()
    assert list(isolated(3, time_limit=60)) == [4, 5]
    isolated.close()


def test_results_before_the_end_of_a_process_are_kept() -> None:
    isolated = Isolated(functools.partial(int, "1"), count, what="potential x")
    with pytest.raises(Lost, match="exit code 7"):
        list(isolated(13, time_limit=60))
    found = []
    with pytest.raises(Lost, match="hung, killed after 1 s"):
        for number in isolated(60, time_limit=1):
            found.append(number)
    assert found == [61]
    assert list(isolated(3, time_limit=60)) == [4, 5]
    isolated.close()


def test_results_that_nobody_took_do_not_reach_the_next_item() -> None:
    isolated = Isolated(functools.partial(int, "1"), count, what="potential x")
    first = isolated(2, time_limit=60)
    assert next(first) == 3
    first.close()
    assert list(isolated(5, time_limit=60)) == [6, 7]
    isolated.close()


def test_an_interrupted_process_is_replaced() -> None:
    isolated = Isolated(functools.partial(int, "1"), count, what="a sleeper")
    assert list(isolated(1, time_limit=60)) == [2, 3]
    process = isolated._process
    assert process is not None
    threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()
    with pytest.raises(KeyboardInterrupt):
        list(isolated(60, time_limit=120))
    assert isolated._process is None
    assert list(isolated(1, time_limit=60)) == [2, 3]
    isolated.close()
