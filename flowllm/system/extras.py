"""Optional packages, which only some commands need."""

from __future__ import annotations

import importlib
from types import ModuleType

from flowllm.errors import UserError


def require(module: str, extra: str = "eval") -> ModuleType:
    """Import a module of an extra.

    Args:
        module: dotted name.
        extra: that installs it.

    Returns:
        The module.

    Raises:
        UserError: if its package is not installed.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name != module.partition(".")[0]:
            raise
        raise UserError(
            f"this needs {error.name}, which is not installed; "
            f"pip install 'flowllm-crystal[{extra}]'"
        ) from error
