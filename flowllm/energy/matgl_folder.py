"""Folders of matgl potentials: found here or on the hub, and checked before matgl loads them.

A folder holds `model.json`, `model.pt` (arguments of the constructors) and `state.pt` (weights).
matgl imports the module that the files name in `@module`, takes the attribute `@class` of it and
calls it with the arguments of the files, so a foreign folder could run any command. Here the
files are read as data, and every name in them has to be a model class of matgl.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence, Set
from pathlib import Path
from typing import Any

from flowllm.errors import UserError, one_line
from flowllm.system.documents import parse_json

_HUB = "materialyze"  # hub account where matgl publishes its potentials
_ARRAY_TYPES = ("float32", "float64", "int32", "int64")  # that matgl saves
_MODEL, _ARGUMENTS, _WEIGHTS = "model.json", "model.pt", "state.pt"
# The modules of matgl's models and potentials; those with an underscore are private parts, which
# matgl replaces by the public ones.
_MODULE = re.compile(r"matgl\.(models(\._\w+)?|apps\.(pes|_pes\w*))", re.ASCII)


def find_folder(name: str) -> Path:
    """Return the folder of a matgl potential, downloaded first if the name is a hub id.

    Args:
        name: a folder, a hub id, or the name of a potential that matgl publishes.

    Returns:
        The folder.

    Raises:
        UserError: if there is no such folder here or on the hub.
    """
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder
    check_place(name)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name if "/" in name else f"{_HUB}/{name}"))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise UserError(
            f"there is no potential folder {name}, and none on a hub that can be reached; "
            "give one with a model.json"
        ) from error


def check_place(name: str) -> None:
    """Check that a path leads to a folder; a name that may be a hub id passes.

    Args:
        name: see `find_folder`.

    Raises:
        UserError: if it is a path to no folder.
    """
    # Hub ids are NAME or ACCOUNT/NAME.
    is_path = Path(name).is_absolute() or name.startswith((".", "~")) or name.count("/") > 1
    if is_path and not Path(name).expanduser().is_dir():
        raise UserError(f"there is no potential folder {name}; give one with a model.json")


def check_folder(folder: Path) -> None:
    """Check `model.json`; nothing is imported.

    Args:
        folder: of a potential.

    Raises:
        UserError: if a file is missing, `model.json` is damaged, or it names a class that is not
            one of matgl's models.
    """
    for name in (_MODEL, _ARGUMENTS, _WEIGHTS):  # matgl would look for a missing one on the hub
        if not (folder / name).is_file():
            raise UserError(f"{folder} holds no matgl potential: it has no {name}; give another")
    content = _model(folder)
    if not isinstance(content, dict) or "@class" not in content or "@module" not in content:
        raise UserError(f"{folder / _MODEL} names no class of matgl; give another potential")
    _check_classes(content, folder / _MODEL)


def load_model(folder: Path) -> Any:
    """Return the potential that matgl loads from a folder.

    Args:
        folder: of a potential.

    Returns:
        A `matgl.apps.pes.Potential`.

    Raises:
        UserError: if the folder names a class that is not one of matgl's models, or holds no
            potential that this matgl can load.
    """
    check_folder(folder)
    documents = {_MODEL: _model(folder), _ARGUMENTS: _arguments(folder)}
    _check_classes(documents[_ARGUMENTS], folder / _ARGUMENTS)

    import matgl  # takes seconds
    from matgl.apps.pes import Potential

    for file, content in documents.items():
        for _, name in _classes(content):
            _check_model_class(name, folder / file)
    try:
        potential = matgl.load_model(str(folder))
    except (ValueError, RuntimeError) as error:
        reason = one_line(error.__cause__ or error)
        raise UserError(f"{folder} holds no matgl potential: {reason}; give another") from error
    if not isinstance(potential, Potential):
        raise UserError(
            f"{folder} holds a {type(potential).__name__}, not a potential; give another"
        )
    return potential


def element_types(folder: Path) -> frozenset[str] | None:
    """Return the elements that a potential was trained on.

    Args:
        folder: of a potential.

    Returns:
        Symbols; None if `model.json` does not list them where matgl 4 writes them.
    """
    try:
        return frozenset(_model(folder)["kwargs"]["model"]["init_args"]["element_types"])
    except (UserError, LookupError, TypeError):
        return None


def _model(folder: Path) -> Any:
    file = folder / _MODEL
    try:
        return parse_json(file.read_bytes())
    except (OSError, ValueError) as error:
        raise UserError(f"{file} is damaged: {one_line(error)}; give another potential") from error


def _arguments(folder: Path) -> Any:
    import numpy as np
    import torch
    from numpy._core.multiarray import _reconstruct

    arrays: list[Any] = [
        np.ndarray,
        np.dtype,
        _reconstruct,
        *map(type, map(np.dtype, _ARRAY_TYPES)),
    ]
    file = folder / _ARGUMENTS
    try:
        # Makes tensors, these arrays and plain containers, and refuses every other class.
        with torch.serialization.safe_globals(arrays):
            return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle raises almost anything
        raise UserError(
            f"{file} is damaged or no plain data: {one_line(error)}; give another potential"
        ) from error


def _check_classes(content: Any, file: Path) -> None:
    for module, name in _classes(content):
        if not (isinstance(module, str) and _MODULE.fullmatch(module) and isinstance(name, str)):
            raise UserError(
                f"{file} names the class {one_line(str(name))} of the module "
                f"{one_line(str(module))}, which is not one of matgl's models; loading it could "
                "run any command, so give another potential"
            )


def _check_model_class(name: str, file: Path) -> None:
    """Refuse what a module of matgl holds beside its models: functions, imported names."""
    from matgl import models
    from matgl.apps import pes
    from matgl.utils.io import IOMixIn
    from torch.nn import Module

    found = getattr(models, name, None) or getattr(pes, name, None)
    if not (isinstance(found, type) and issubclass(found, IOMixIn) and issubclass(found, Module)):
        raise UserError(
            f"{file} names {one_line(name)}, which is no model class of matgl; give another "
            "potential"
        )


def _classes(content: Any) -> Iterator[tuple[Any, Any]]:
    """Yield module and name of every class in nested containers, at any depth."""
    waiting, seen = [content], set()
    while waiting:
        item = waiting.pop()
        if id(item) in seen:  # a container of a pickle may hold itself
            continue
        seen.add(id(item))
        if isinstance(item, Mapping):
            if "@class" in item or "@module" in item:
                yield item.get("@module"), item.get("@class")
            waiting += item.values()
        elif isinstance(item, Sequence | Set) and not isinstance(item, str | bytes):
            waiting += item
