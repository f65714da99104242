"""FlowLLM: a language model proposes a crystal, Riemannian flow matching refines it."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from flowllm.errors import InvalidCrystal, UserError
    from flowllm.generation.pipeline import FlowLLM, Sample

__version__ = "0.1.0"
__all__ = ["FlowLLM", "InvalidCrystal", "Sample", "UserError", "__version__"]

_HOME = {
    "FlowLLM": "flowllm.generation.pipeline",
    "Sample": "flowllm.generation.pipeline",
    "InvalidCrystal": "flowllm.errors",
    "UserError": "flowllm.errors",
}


def __getattr__(name: str) -> Any:
    """Import the public names when they are first used: `import flowllm` stays instant."""
    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name]), name)
    raise AttributeError(f"module 'flowllm' has no attribute {name!r}")
