"""The error that bad input to this library causes."""

from __future__ import annotations


class RefinerError(ValueError):
    """Bad input to the refiner. The message is one line that names the input and the fix."""
