"""Folders that are refused, locked, extended and given back."""

from __future__ import annotations

import errno
import fcntl
import json
import os
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from flowllm.errors import UserError
from flowllm.runs.identity import check_folder, claimed, read_identity
from flowllm.runs.sharded import RunFolder
from run_jobs import contents, run, start, wait_until

NAME = "run.json"


def test_two_processes_cannot_share_a_folder(script: Path, job: ModuleType, tmp_path: Path) -> None:
    out = tmp_path / "run"
    process = start(script, out, 1, 3)
    try:
        wait_until(lambda: len(list(out.glob("shards/*.jsonl"))) > 0)
        with pytest.raises(UserError, match="run is in use by another process"):
            run(job, out)
    finally:
        process.kill()
        process.wait()
    assert run(job, out).complete  # the lock went with the process


def test_another_run_is_refused_key_by_key(job: ModuleType, tmp_path: Path) -> None:
    models = {"prior": {"path": "a", "sha256": "00"}, "refiner": None}
    out = run(job, tmp_path / "run", manifest={"seed": 7, "models": models, "top_p": 0.9}).path
    before = contents(out)
    asked = {"seed": 8, "models": {"prior": {"path": "a", "sha256": "11"}, "refiner": None}}
    with pytest.raises(UserError) as caught:
        run(job, out, manifest=asked | {"formula": "NaCl"}, total=60)
    assert str(caught.value) == (
        f"{out} holds another run ("
        'formula is not given there, "NaCl" here; '
        'models.prior is "00" there, "11" here; '
        "seed is 7 there, 8 here; "
        "top_p is 0.9 there, not given here; "
        "total is 58 there, 60 here); "
        "choose another folder, or repeat the arguments of that run to resume it"
    )
    assert contents(out) == before


def test_a_tuple_in_the_manifest_is_the_list_that_json_makes_of_it(
    job: ModuleType, tmp_path: Path
) -> None:
    run(job, tmp_path / "run", manifest={"elements": ("Na", "Cl")})
    assert run(job, tmp_path / "run", manifest={"elements": ["Na", "Cl"]}).complete


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("thesis.tex", "text", r"is not empty \(it holds thesis.tex\)"),
        ("manifest.json", '{"name": "a web app"}', "manifest.json is damaged or of another"),
        ("manifest.json", '{"run": {"total": 5', "manifest.json is damaged or of another"),
        ("manifest.json", "[]", "manifest.json is damaged or of another"),
    ],
)
def test_a_foreign_folder_is_refused_and_untouched(
    job: ModuleType, tmp_path: Path, name: str, content: str, message: str
) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=message):
        run(job, tmp_path)
    assert contents(tmp_path) == {name: content.encode()}


@pytest.mark.parametrize("kind", ["file", "foreign"])
def test_a_folder_can_be_checked_before_anything_is_written(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "out"
    check_folder(path, NAME)
    assert not path.exists()
    if kind == "file":
        path.touch()
    else:
        path.mkdir()
        (path / "thesis.tex").touch()
    with pytest.raises(UserError, match="is a file|is not empty"):
        check_folder(path, NAME)


def test_a_file_and_a_folder_without_a_run_are_refused(job: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="file is a file; choose a new folder"):
        run(job, tmp_path / "file")
    with pytest.raises(UserError, match="is not a run folder"):
        RunFolder.open(tmp_path)


# Locks


def test_a_lock_that_is_a_folder_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "run" / ".lock").mkdir(parents=True)
    with (
        pytest.raises(
            UserError, match=f"{tmp_path / 'run'} cannot be locked: its .lock is a folder"
        ),
        claimed(tmp_path / "run", NAME, {}, info={}),
    ):
        pass
    assert contents(tmp_path) == {}


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_refused_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def no_locks(*_: object) -> None:
        raise OSError(number, "no locks here")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    with (
        pytest.raises(
            UserError, match=f"{tmp_path} cannot be locked: its file system has no locks"
        ),
        claimed(tmp_path, NAME, {}, info={}),
    ):
        pass
    assert not (tmp_path / NAME).exists()


@pytest.mark.parametrize("number", [errno.EIO, errno.EINVAL, errno.EACCES])
def test_a_lock_that_fails_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def fail(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", fail)
    with pytest.raises(UserError, match=f"{tmp_path} (cannot be locked|is in use)"):
        claim(tmp_path, {})
    assert not (tmp_path / NAME).exists()


def test_a_link_to_nothing_is_no_folder(tmp_path: Path) -> None:
    link = tmp_path / "run"
    link.symlink_to(tmp_path / "nowhere")
    with pytest.raises(UserError, match=f"{link} is a link to nothing"):
        claim(link, {})
    assert not (tmp_path / "nowhere").exists()
    (tmp_path / "nowhere").mkdir()
    claim(link, {}, make="shard")  # now it is a link to a folder
    assert (tmp_path / "nowhere" / "shard").exists()


# Keys that may be given later


def claim(out: Path, run: dict[str, Any], fail: bool = False, make: str = "") -> None:
    with claimed(out, NAME, run, info={"torch": "2.13"}, extendable=("potential",)):
        if make:
            (out / make).touch()
        if fail:
            raise RuntimeError("failed")


@pytest.mark.parametrize("before", [{"seed": 1}, {"seed": 1, "potential": None}])
def test_a_key_without_a_value_may_be_given_later(tmp_path: Path, before: dict[str, Any]) -> None:
    out = tmp_path / "run"
    claim(out, before, make="metrics.json")
    claim(out, {"seed": 1})
    assert read_identity(out, NAME) == (before, {"torch": "2.13"})
    given = {"seed": 1, "potential": {"name": "chgnet"}}
    claim(out, given)
    assert read_identity(out, NAME) == (given, {"torch": "2.13"})
    content = (out / NAME).read_bytes()
    claim(out, given)
    assert (out / NAME).read_bytes() == content
    for other in ({"seed": 1}, {"seed": 1, "potential": {"name": "matgl:x"}}):
        with pytest.raises(UserError, match="holds another run .*potential"):
            claim(out, other)
    with pytest.raises(UserError, match="seed is 1 there, 2 here"):
        claim(out, {**given, "seed": 2})
    assert (out / NAME).read_bytes() == content


def test_a_replaceable_key_may_get_another_value_and_not_lose_it(tmp_path: Path) -> None:
    def again(**run: Any) -> None:
        keys = ("hull", "potential")
        with claimed(tmp_path, NAME, run, info={}, extendable=keys, replaceable=("hull",)):
            (tmp_path / "relaxed").touch()

    again(seed=1, potential="chgnet", hull="a")
    again(seed=1, potential="chgnet", hull="b")
    assert read_identity(tmp_path, NAME)[0] == {"seed": 1, "potential": "chgnet", "hull": "b"}
    for other in ({"seed": 2, "hull": "c"}, {"seed": 1, "potential": "emt", "hull": "c"}):
        with pytest.raises(UserError, match="holds another run"):
            again(**other)
    with pytest.raises(UserError, match="hull is .*not given here"):
        again(seed=1, potential="chgnet")
    assert read_identity(tmp_path, NAME)[0]["hull"] == "b"


def test_other_keys_cannot_be_given_later(tmp_path: Path) -> None:
    claim(tmp_path / "run", {"train": None}, make="metrics.json")
    with pytest.raises(UserError, match='train is not given there, "x" here'):
        claim(tmp_path / "run", {"train": "x", "potential": "chgnet"})
    assert read_identity(tmp_path / "run", NAME)[0] == {"train": None}


def test_an_extension_that_fails_before_it_made_a_file_is_taken_back(tmp_path: Path) -> None:
    out = tmp_path / "run"
    claim(out, {"seed": 1}, make="metrics.json")
    before = contents(out)
    with pytest.raises(RuntimeError):
        claim(out, {"seed": 1, "potential": "wrong"}, fail=True)
    assert contents(out) == before
    with pytest.raises(RuntimeError):
        claim(out, {"seed": 1, "potential": "chgnet"}, fail=True, make="relaxed")
    assert read_identity(out, NAME)[0] == {"seed": 1, "potential": "chgnet"}


def test_a_claim_that_fails_before_it_made_a_file_is_taken_back(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError):
        claim(tmp_path / "run", {"seed": 1}, fail=True)
    claim(tmp_path / "run", {"seed": 2})
    manifest = json.loads((tmp_path / "run" / NAME).read_text())
    assert manifest == {"run": {"seed": 2}, "info": {"torch": "2.13"}}
