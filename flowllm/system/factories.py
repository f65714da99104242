"""Functions of the user's own packages, named as `MODULE:FACTORY`."""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable

from flowllm.errors import UserError, one_line

_FACTORY = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*")  # package.module:function


def is_factory(name: str) -> bool:
    """Return whether a text has the form `MODULE:FACTORY`."""
    return _FACTORY.fullmatch(name) is not None


def find_factory(what: str, name: str) -> Callable[[], object]:
    """Import a function.

    Args:
        what: the kind of thing that it makes, for error messages, such as `potential`.
        name: `MODULE:FACTORY`.

    Returns:
        The function.

    Raises:
        UserError: if it cannot be imported.
    """
    module, _, attribute = name.partition(":")
    try:
        found: Callable[[], object] = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise UserError(
            f"{what} {name}: {one_line(error)}; correct the name, or add "
            "the folder of the module to PYTHONPATH"
        ) from error
    return found


def call_factory(what: str, name: str) -> object:
    """Import a function and return what it makes.

    Args:
        what: the kind of thing that it makes, for error messages.
        name: `MODULE:FACTORY`; called without arguments.

    Returns:
        The result.

    Raises:
        UserError: if it cannot be imported, or raises.
    """
    factory = find_factory(what, name)
    try:
        return factory()
    except Exception as error:  # the user's code may raise anything
        raise UserError(
            f"{what} {name} cannot be made: {type(error).__name__}: {one_line(error)}; "
            "correct the function, which takes no arguments"
        ) from error
