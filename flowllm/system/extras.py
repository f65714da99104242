"""Optional packages, which only the evaluation needs."""

from __future__ import annotations

import importlib
from types import ModuleType

from flowllm.errors import UserError


def require(module: str) -> ModuleType:
    """Import a module of the `[eval]` extra.

    Args:
        module: dotted name.

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
            f"this metric needs {error.name}, which is not installed; "
            "pip install 'flowllm-crystal[eval]'"
        ) from error
