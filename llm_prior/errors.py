"""What can go wrong in the text prior that its user can mend."""

from __future__ import annotations


class PriorError(ValueError):
    """A one-line message that names the thing that is wrong and how to mend it."""
