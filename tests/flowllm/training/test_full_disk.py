"""A training on a disk that gets full: one line, and `resume` goes on to the same weights."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from training_support import small_training, weights

from flowllm.errors import UserError
from flowllm.system.files import write_failure
from flowllm.training.checkpoints import complete_checkpoints


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """Let this process write no file beyond a size, which fails as a full disk does."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("name", ["llm", "rfm-uniform"])
@pytest.mark.parametrize("size", [4000, 8000])
def test_a_full_disk_ends_a_training_in_one_line_and_it_goes_on(
    name: str, size: int, files: Path, tmp_path: Path
) -> None:
    train = small_training(name, files)
    train(out=tmp_path / "whole")
    out = tmp_path / "full"
    with largest_file(size), pytest.raises(UserError) as caught:
        train(out=out)
    (line,) = str(caught.value).splitlines()
    assert "File too large" in line or "could not be written" in line, line
    assert not complete_checkpoints(out) and not (out / "model").exists()
    train(out=out, resume=(out / "run.json").exists())
    assert weights(out) == weights(tmp_path / "whole")


def test_errors_of_the_writers_are_known_and_others_are_not() -> None:
    assert write_failure(OSError(28, "No space left on device")) == "No space left on device"
    wrapped = RuntimeError("Error while serializing: I/O error: No space (os error 28)")
    assert write_failure(wrapped) == "No space left on device"
    outer = ValueError("outer")
    outer.__cause__ = wrapped
    assert write_failure(outer) == "No space left on device"
    assert write_failure(RuntimeError("os error 5")) is None
    assert write_failure(OSError(5, "Input/output error")) is None
