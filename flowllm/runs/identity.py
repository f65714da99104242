"""Ownership of a run folder: one process at a time, one run for good.

A run folder holds a file (`manifest.json`, `run.json`) with two sections: `run` is the identity of
the run, which a later start has to repeat; `info` (versions) is recorded and not compared.
"""

from __future__ import annotations

import contextlib
import errno
import json
import re
import shutil
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from flowllm.errors import UserError, one_line
from flowllm.system.documents import parse_json
from flowllm.system.files import is_temporary, remove_temporaries, write_atomic

JOIN_WAIT = 60.0  # seconds; the other parts hold the lock for moments

_LOCK = ".lock"
_NO_LOCKS = {errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP}


@contextlib.contextmanager
def claimed(
    out: str | Path,
    name: str,
    run: Mapping[str, Any],
    *,
    info: Mapping[str, Any],
    extendable: Collection[str] = (),
    replaceable: Collection[str] = (),
) -> Iterator[Path]:
    """Hold the folder `out` for a run, which is recorded in it or compared with the record.

    If the body raises before it has made a file, the record is taken back, so that the corrected
    call can use the folder.

    Args:
        out: the run folder; made if it does not exist.
        name: name of the file with the identity.
        run: identity of the run, plain JSON.
        info: recorded beside the identity and not compared.
        extendable: top-level keys of `run` that may be given later: where the record has None or
            lacks the key, a given value is added to it.
        replaceable: those of `extendable` whose recorded value may give way to another one, because
            nothing that stays in the folder depends on it.

    Yields:
        `out` as a path.

    Raises:
        UserError: if `out` is a file, holds another run or other files, is in use, or lies on a
            file system without locks.
    """
    out = Path(out)
    check_folder(out, name)
    out.mkdir(parents=True, exist_ok=True)
    with locked(out):
        remove_temporaries(out)
        given = json.loads(
            json.dumps(dict(run), allow_nan=False)
        )  # as JSON has it: lists, no tuples
        before = _files(out)
        replaced = _record(out, name, given, info, extendable, replaceable)
        try:
            yield out
        except BaseException:
            if replaced is not None and _files(out) == before:
                write_atomic(out / name, replaced)
            _give_back_if_empty(out, name)
            raise


def join(out: str | Path, name: str, run: Mapping[str, Any], *, info: Mapping[str, Any]) -> None:
    """Record a run in the folder `out`, or compare it with the record, as `claimed`, without hold.

    For parts of a run, which write files of different names at the same time.

    Args:
        out: the run folder; made if it does not exist.
        name: name of the file with the identity.
        run: identity of the run, plain JSON.
        info: recorded beside the identity and not compared.

    Raises:
        UserError: as for `claimed`.
    """
    out = Path(out)
    check_folder(out, name)
    out.mkdir(parents=True, exist_ok=True)
    with locked(out, wait=JOIN_WAIT):
        _record(out, name, json.loads(json.dumps(dict(run), allow_nan=False)), info, (), ())


def _record(
    out: Path,
    name: str,
    given: dict[str, Any],
    info: Mapping[str, Any],
    extendable: Collection[str],
    replaceable: Collection[str],
) -> bytes | None:
    """Write, compare or extend the identity; return the content that was replaced, if any."""
    file = out / name
    if not file.exists():
        write_atomic(file, _content(given, info))
        return None
    recorded, recorded_info = read_identity(out, name)
    extended = dict(recorded)
    for key in extendable:
        if recorded.get(key) is None:
            extended[key] = given.setdefault(key, None)
        elif key in replaceable and given.get(key) is not None:
            extended[key] = given[key]
    if differing := list(_differences(extended, given)):
        raise UserError(
            f"{out} holds another run ({'; '.join(differing)}); "
            "choose another folder, or repeat the arguments of that run to resume it"
        )
    if all(recorded.get(key) == extended[key] for key in extendable):
        return None
    replaced = file.read_bytes()
    write_atomic(file, _content(extended, recorded_info))
    return replaced


def _content(run: Mapping[str, Any], info: Mapping[str, Any]) -> str:
    return json.dumps({"run": run, "info": info}, indent=2, allow_nan=False) + "\n"


def _files(out: Path) -> set[Path]:
    return {path for path in out.rglob("*") if path.is_symlink() or not path.is_dir()}


def _give_back_if_empty(out: Path, name: str) -> None:
    """Remove the identity and the empty folders in `out`, unless there is any other file."""
    if any(path.name not in (name, _LOCK) for path in _files(out)):
        return
    for path in out.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
    (out / name).unlink()


def read_identity(folder: Path, name: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the sections `run` and `info` of the file with the identity.

    Args:
        folder: the run folder.
        name: name of the file.

    Returns:
        The two sections.

    Raises:
        UserError: if there is no such file, or it is damaged.
    """
    file = folder / name
    if not file.is_file():
        raise UserError(f"{folder} is not a run folder (it has no {name}); check the path")
    try:
        content = parse_json(file.read_bytes())
        run, info = dict(content["run"]), dict(content["info"])
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{file} is damaged or of another program; choose another folder") from None
    return run, info


def check_folder(out: str | Path, name: str) -> None:
    """Refuse a path that cannot be the folder of a run, before the first byte is written there.

    Args:
        out: the folder, which need not exist.
        name: name of the file with the identity.

    Raises:
        UserError: if `out` is a file, or a folder with files that do not belong to a run.
    """
    out = Path(out)
    if not out.exists():
        if out.is_symlink():
            raise UserError(f"{out} is a link to nothing; remove it, or choose another folder")
        return
    if not out.is_dir():
        raise UserError(f"{out} is a file; choose a new folder for the run")
    if (out / name).exists():
        read_identity(out, name)
        return
    others = sorted(p.name for p in out.iterdir() if p.name != _LOCK and not is_temporary(p))
    if others:
        raise UserError(
            f"{out} is not empty (it holds {others[0]}) and has no {name}; "
            "choose a new or empty folder for the run"
        )


@contextlib.contextmanager
def locked(folder: Path, *, wait: float = 0.0) -> Iterator[None]:
    """Hold the lock of a folder; the operating system releases it even after a kill.

    Args:
        folder: an existing folder; the lock is its file `.lock`, which stays.
        wait: seconds to wait for a process that holds it.

    Raises:
        UserError: if another process holds the lock, or the folder cannot be locked.
    """
    # A soft lock, filelock's way out on file systems without locks, would outlive a kill.
    lock = FileLock(folder / _LOCK, timeout=wait, fallback_to_soft=False)
    try:
        lock.acquire()
    except Timeout:
        raise UserError(
            f"{folder} is in use by another process; wait for its end or choose another folder"
        ) from None
    except IsADirectoryError:
        raise UserError(
            f"{folder} cannot be locked: its {_LOCK} is a folder; remove that, or choose another "
            "folder for the run"
        ) from None
    except (OSError, NotImplementedError) as error:
        problem = getattr(error, "strerror", None) or one_line(error)
        if getattr(error, "errno", None) in _NO_LOCKS:
            problem = "its file system has no locks"
        raise UserError(
            f"{folder} cannot be locked: {problem}; choose a folder on another file system"
        ) from error
    try:
        yield
    finally:
        lock.release()


def _differences(there: Any, here: Any, key: str = "") -> Iterator[str]:
    """Return one phrase for each key (nested ones dotted) in which two JSON values differ."""
    if isinstance(there, list) and isinstance(here, list) and len(there) == len(here):
        there, here = (dict(enumerate(values, start=1)) for values in (there, here))
    if isinstance(there, dict) and isinstance(here, dict):
        for kind in ("command", "stage"):  # all else differs with these
            if there.get(kind) != here.get(kind):
                yield f"it is of {there.get(kind)}, not of {here.get(kind)}"
                return
        if there.get("sha256") != here.get("sha256"):
            yield f"{key} is {_shown(there)} there, {_shown(here)} here"
            return
        for name in sorted(there.keys() | here.keys()):
            dotted = f"{key}.{name}" if key else name
            if name not in here:
                yield f"{dotted} is {_shown(there[name])} there, not given here"
            elif name not in there:
                yield f"{dotted} is not given there, {_shown(here[name])} here"
            else:
                yield from _differences(there[name], here[name], dotted)
    elif there != here:
        yield f"{key} is {_shown(there)} there, {_shown(here)} here"


def _shown(value: Any) -> str:
    """Return a value in few characters: a model or file as its name and a part of its hash."""
    if isinstance(value, dict):
        words = [_shown(value[name]) for name in ("name", "sha256") if name in value]
        return " ".join(words) or "given"
    if isinstance(value, list):
        return f"[{', '.join(map(_shown, value))}]"
    if isinstance(value, str) and re.fullmatch("[0-9a-f]{64}", value):
        return value[:8]
    if value is None:
        return "not given"
    text = json.dumps(value)
    return text if len(text) <= 100 else text[:97] + "..."
