"""A folder that belongs to one run: what was asked is written first, and compared ever after.

The file (`manifest.json`, `run.json`) has two sections: `run`, the identity, which a later start
must repeat to go on, and `info` (versions), which is recorded and not compared.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from flowllm.errors import UserError
from flowllm.system.files import is_temporary, remove_temporaries, write_atomic

_LOCK = ".lock"


@contextlib.contextmanager
def claimed(
    out: str | Path, name: str, run: Mapping[str, Any], *, info: Mapping[str, Any]
) -> Iterator[Path]:
    """Hold `out` for the run `run`: created and named by the file `name`, or recognised by it.

    A call that fails before anything is made gives the folder back: the mended one is another run.

    Raises:
        UserError: `out` is a file, holds another run or foreign files, or is in use.
    """
    out = Path(out)
    _refuse_foreign(out, name)
    out.mkdir(parents=True, exist_ok=True)
    with locked(out):
        identity = json.dumps({"run": run, "info": info}, indent=2, allow_nan=False)
        asked = json.loads(identity)["run"]  # as JSON gives it back: a tuple is a list
        remove_temporaries(out)
        if not (out / name).exists():
            write_atomic(out / name, identity + "\n")
        if differing := list(_differences(read_identity(out, name)[0], asked)):
            raise UserError(
                f"{out} holds another run ({'; '.join(differing)}); "
                "choose another folder, or repeat the arguments of that run to resume it"
            )
        try:
            yield out
        except BaseException:
            _give_back_if_empty(out, name)
            raise


def _give_back_if_empty(out: Path, name: str) -> None:
    """Take away the name and folders that hold no file; nothing if something has been made."""
    files = (path for path in out.rglob("*") if path.is_symlink() or not path.is_dir())
    if any(path.name not in (name, _LOCK) for path in files):
        return
    for path in out.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
    (out / name).unlink()


def read_identity(folder: Path, name: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The two sections, `run` and `info`, of the file `name` in a run folder.

    Raises:
        UserError: there is no such file, or it is damaged.
    """
    file = folder / name
    if not file.is_file():
        raise UserError(f"{folder} is not a run folder (it has no {name}); check the path")
    try:
        content = json.loads(file.read_bytes())
        run, info = dict(content["run"]), dict(content["info"])
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{file} is damaged or of another program; choose another folder") from None
    return run, info


def _refuse_foreign(out: Path, name: str) -> None:
    """Look before the first byte is written: other people's folders stay as they are."""
    if not out.exists():
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
def locked(folder: Path) -> Iterator[None]:
    """Hold the folder for this process; the operating system lets go even after a kill."""
    with open(folder / _LOCK, "ab") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"{folder} is in use by another process; wait for its end or choose another folder"
            ) from None
        yield


def _differences(there: Any, asked: Any, key: str = "") -> Iterator[str]:
    """One phrase for each key (nested ones dotted) in which two JSON values differ."""
    if isinstance(there, list) and isinstance(asked, list) and len(there) == len(asked):
        there, asked = (dict(enumerate(values, start=1)) for values in (there, asked))
    if isinstance(there, dict) and isinstance(asked, dict):
        for kind in ("command", "stage"):  # all else differs with these
            if there.get(kind) != asked.get(kind):
                yield f"it is of {there.get(kind)}, not of {asked.get(kind)}"
                return
        if there.get("sha256") != asked.get("sha256"):
            yield f"{key} is {_shown(there)} there, {_shown(asked)} here"
            return
        for name in sorted(there.keys() | asked.keys()):
            dotted = f"{key}.{name}" if key else name
            if name not in asked:
                yield f"{dotted} is {_shown(there[name])} there, not given here"
            elif name not in there:
                yield f"{dotted} is not given there, {_shown(asked[name])} here"
            else:
                yield from _differences(there[name], asked[name], dotted)
    elif there != asked:
        yield f"{key} is {_shown(there)} there, {_shown(asked)} here"


def _shown(value: Any) -> str:
    """A value as short as it can be told: a model or a file as its name and a piece of its hash."""
    if isinstance(value, dict):
        words = [_shown(value[name]) for name in ("name", "sha256") if name in value]
        return " ".join(words) or "given"
    if isinstance(value, list):
        return f"[{', '.join(map(_shown, value))}]"
    if isinstance(value, str) and re.fullmatch("[0-9a-f]{64}", value):
        return value[:8]
    text = json.dumps(value)
    return text if len(text) <= 100 else text[:97] + "..."
