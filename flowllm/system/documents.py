"""JSON and YAML from files that anybody may have written.

Both are read as plain data: no class is made, and damaged or hostile content raises `ValueError`.
"""

from __future__ import annotations

import json
from typing import Any

import yaml

_TOO_DEEP = "lists and objects are nested too deeply"
_LARGEST_YAML = 1_000_000  # characters; a recipe has about a thousand


def parse_json(text: str | bytes) -> Any:
    """Return the content of a JSON document.

    Args:
        text: the document; bytes are UTF-8, UTF-16 or UTF-32.

    Returns:
        Plain lists, dicts, strings and numbers.

    Raises:
        ValueError: if it is not JSON, or nested too deeply for Python.
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError(_TOO_DEEP) from None


def parse_yaml(text: str | bytes) -> Any:
    """Return the content of a YAML document.

    References to other places of the document (`*name`) are refused: a few lines of them stand for
    billions of values.

    Args:
        text: the document; bytes are UTF-8 or UTF-16.

    Returns:
        Plain lists, dicts, strings, numbers, dates and None.

    Raises:
        ValueError: if it is not YAML, names a class, holds a reference, is nested too deeply, or
            has more than a million characters.
    """
    if len(text) > _LARGEST_YAML:
        raise ValueError(f"{len(text)} characters, over {_LARGEST_YAML}")
    try:
        return yaml.load(text, Loader=_PlainLoader)
    except RecursionError:
        raise ValueError(_TOO_DEEP) from None
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from error


class _PlainLoader(yaml.SafeLoader):
    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            event = self.get_event()
            raise yaml.composer.ComposerError(
                None, None, f"a reference (*{event.anchor}) is not allowed", event.start_mark
            )
        return super().compose_node(parent, index)
