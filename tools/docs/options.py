"""Extension of griffe: fields of config classes have their help and default in the API reference.

A field `steps: int = option(50, "Steps of the integration.")` shows as `steps: int = 50` with this
sentence and its unit.
"""

from __future__ import annotations

import importlib
from typing import Any

from griffe import Attribute, Docstring, ExprCall, Extension

from flowllm.system.options import specs


class OptionFields(Extension):
    """Reads the fields that `flowllm.system.options.option` declares."""

    def on_attribute_instance(self, *, attr: Attribute, **_: Any) -> None:
        """Replace the value and the docstring of such a field.

        Args:
            attr: an attribute of a module or class.
        """
        call, parent = attr.value, attr.parent
        if not isinstance(call, ExprCall) or str(call.function) != "option" or parent is None:
            return
        cls = getattr(importlib.import_module(parent.module.path), parent.name)
        attr.value = call.arguments[0]
        attr.docstring = Docstring(specs(cls)[attr.name][1].full_help, parent=attr)
