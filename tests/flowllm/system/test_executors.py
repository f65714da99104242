"""Work in this process and in spawned ones; `tests/flowllm/runs` kills the latter."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from flowllm.system.executors import for_each


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("two_threads")
def test_work_in_this_process_has_one_torch_thread_and_gives_the_others_back() -> None:
    seen = []
    for_each([0], lambda context, item: torch.get_num_threads(), lambda _, n: seen.append(n))
    assert seen == [1]
    assert torch.get_num_threads() == 2


def test_setup_runs_once_and_only_for_work() -> None:
    calls, results = [], {}

    def setup() -> int:
        calls.append("setup")
        return 10

    for_each([], lambda context, item: None, results.__setitem__, setup=setup)
    assert calls == []
    for_each([1, 2], lambda context, item: context + item, results.__setitem__, setup=setup)
    assert calls == ["setup"]
    assert results == {1: 11, 2: 12}
