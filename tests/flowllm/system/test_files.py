"""Atomic writing and hashes."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from flowllm.errors import UserError
from flowllm.system.files import (
    publish,
    publish_together,
    remove_temporaries,
    sha256_file,
    sha256_folder,
    write_atomic,
)
from support import ROOT


def make_model(folder: Path) -> Path:
    (folder / "tokenizer").mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "a.b").write_bytes(bytes(range(256)))
    (folder / "tokenizer" / "vocab.json").write_text('{"Na": 0}')
    return folder


def test_writing_replaces_the_whole_file_and_leaves_nothing_else(tmp_path: Path) -> None:
    write_atomic(tmp_path / "a.txt", "Ångström\n")
    assert (tmp_path / "a.txt").read_bytes() == "Ångström\n".encode()
    write_atomic(tmp_path / "a.txt", b"\0")
    assert (tmp_path / "a.txt").read_bytes() == b"\0"
    assert list(tmp_path.iterdir()) == [tmp_path / "a.txt"]


def test_a_failed_write_keeps_the_old_file(tmp_path: Path) -> None:
    write_atomic(tmp_path / "a.txt", "old")

    def fail(path: Path) -> None:
        path.write_text("ne")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        publish(tmp_path / "a.txt", fail)
    assert (tmp_path / "a.txt").read_text() == "old"
    assert list(tmp_path.iterdir()) == [tmp_path / "a.txt"]


def test_a_write_killed_half_way_keeps_the_old_file(tmp_path: Path) -> None:
    write_atomic(tmp_path / "a.txt", "old")
    program = """
import sys, time
from pathlib import Path
from flowllm.system.files import publish
def write(path):
    path.write_text("ne")
    print("half", flush=True)
    time.sleep(60)
publish(Path(sys.argv[1]), write)
"""
    command = [sys.executable, "-c", program, str(tmp_path / "a.txt")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stdout.readline() == b"half\n"
        process.kill()
    assert (tmp_path / "a.txt").read_text() == "old"
    assert len(list(tmp_path.iterdir())) == 2
    remove_temporaries(tmp_path)
    assert list(tmp_path.iterdir()) == [tmp_path / "a.txt"]


def test_a_published_file_is_as_readable_as_any_other(tmp_path: Path) -> None:
    (tmp_path / "plain").write_text("")
    write_atomic(tmp_path / "atomic", "")
    assert (tmp_path / "atomic").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_a_folder_with_content_is_never_replaced(tmp_path: Path) -> None:
    make_model(tmp_path / "model")
    with pytest.raises(OSError):
        publish(tmp_path / "model", lambda path: path.mkdir())
    assert (tmp_path / "model" / "config.json").read_text() == "{}"


def test_file_hash_is_the_published_test_vector(tmp_path: Path) -> None:
    (tmp_path / "abc").write_bytes(b"abc")  # FIPS 180-2, appendix B.1
    assert sha256_file(tmp_path / "abc") == (
        "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    )
    with pytest.raises(UserError, match="nothing: no such file"):
        sha256_file(tmp_path / "nothing")


@pytest.mark.skipif(not shutil.which("sha256sum"), reason="needs sha256sum of coreutils")
def test_folder_hash_is_what_sha256sum_gives(tmp_path: Path) -> None:
    folder = make_model(tmp_path / "model")
    command = "find . -type f -printf '%P\\n' | LC_ALL=C sort | xargs sha256sum | sha256sum"
    printed = subprocess.run(command, shell=True, cwd=folder, capture_output=True, check=True)
    assert sha256_folder(folder) == printed.stdout.decode().split()[0]


def test_folder_hash_depends_on_names_and_contents_and_not_on_the_place(tmp_path: Path) -> None:
    folder = make_model(tmp_path / "model")
    first = sha256_folder(folder)
    assert sha256_folder(shutil.copytree(folder, tmp_path / "copy")) == first

    blob = tmp_path / "blob"
    (folder / "config.json").rename(blob)
    (folder / "config.json").symlink_to(blob)
    assert sha256_folder(folder) == first

    (folder / "a.b").rename(folder / "a.c")
    renamed = sha256_folder(folder)
    (folder / "a.c").write_bytes(b"")
    assert len({first, renamed, sha256_folder(folder)}) == 3


def test_a_folder_without_files_has_no_hash(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="empty: the folder holds no files"):
        sha256_folder(tmp_path / "empty")
    with pytest.raises(UserError, match="nothing: no such folder"):
        sha256_folder(tmp_path / "nothing")


def test_the_first_of_several_files_appears_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write(folder: Path) -> None:
        for name in ("table", "frames"):
            (folder / name).write_text(name)

    def fail(source: Path, target: Path) -> None:
        if target.name == "table":
            raise OSError("killed here")
        replace(source, target)

    replace = os.replace
    monkeypatch.setattr("flowllm.system.files.os.replace", fail)
    with pytest.raises(OSError, match="killed here"):
        publish_together(tmp_path, ["table", "frames"], write)
    assert [path.name for path in tmp_path.iterdir()] == ["frames"]
