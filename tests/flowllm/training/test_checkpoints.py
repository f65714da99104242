"""Checkpoints: complete, cut off and damaged ones."""

from __future__ import annotations

from pathlib import Path

import pytest

from flowllm.errors import UserError
from flowllm.training.checkpoints import (
    MARKER,
    complete_checkpoints,
    mark_complete,
    newest_complete,
    remove_incomplete,
    verify_checkpoint,
)


def checkpoint(run: Path, step: int, *, complete: bool = True) -> Path:
    folder = run / f"checkpoint-{step}"
    (folder / "deeper").mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(bytes(range(256)))
    (folder / "deeper" / "state.json").write_text("{}")
    if complete:
        mark_complete(folder)
    return folder


def test_the_newest_is_that_of_the_highest_step(tmp_path: Path) -> None:
    folders = [checkpoint(tmp_path, step) for step in (1000, 90, 500)]
    assert complete_checkpoints(tmp_path) == [folders[1], folders[2], folders[0]]
    assert newest_complete(tmp_path) == folders[0]


def test_one_without_a_marker_does_not_count(tmp_path: Path) -> None:
    checkpoint(tmp_path, 2, complete=False)
    assert newest_complete(tmp_path) is None
    older = checkpoint(tmp_path, 1)
    assert newest_complete(tmp_path) == older


def test_an_intact_one_is_accepted_wherever_it_lies(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path, 1)
    verify_checkpoint(folder)
    verify_checkpoint(folder.rename(tmp_path / "checkpoint-2"))


@pytest.mark.parametrize("name", ["model.safetensors", "deeper/state.json"])
def test_a_damaged_file_is_refused_by_its_name(tmp_path: Path, name: str) -> None:
    folder = checkpoint(tmp_path, 1)
    content = (folder / name).read_bytes()
    for damaged in (content[:-1], content[:-1] + b"?", content + b"\0"):
        (folder / name).write_bytes(damaged)
        with pytest.raises(UserError, match=f"{folder / name} is missing or damaged; delete"):
            verify_checkpoint(folder)
    (folder / name).write_bytes(content)
    verify_checkpoint(folder)
    (folder / name).unlink()
    with pytest.raises(UserError, match=f"{folder / name} is missing or damaged; delete"):
        verify_checkpoint(folder)


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe\x00", b"[1, 2]", b"3"])
def test_a_damaged_marker_is_refused_by_its_name(tmp_path: Path, content: bytes) -> None:
    folder = checkpoint(tmp_path, 1)
    (folder / MARKER).write_bytes(content)
    with pytest.raises(UserError, match=f"{folder / MARKER} is damaged; delete"):
        verify_checkpoint(folder)


def test_only_checkpoints_that_were_cut_off_are_removed(tmp_path: Path) -> None:
    complete, cut = checkpoint(tmp_path, 1), checkpoint(tmp_path, 2, complete=False)
    other = tmp_path / "checkpoint-best"  # a copy that somebody keeps
    other.mkdir()
    (tmp_path / "checkpoint-3").write_text("a file")
    remove_incomplete(tmp_path)
    assert not cut.exists()
    assert complete.is_dir() and other.is_dir() and (tmp_path / "checkpoint-3").is_file()
    verify_checkpoint(complete)
