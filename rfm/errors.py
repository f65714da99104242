"""The one error this library raises for something its user can mend."""

from __future__ import annotations


class RefinerError(ValueError):
    """An input, file or setting the refiner cannot work with; the message says how to mend it."""
