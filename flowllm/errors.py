"""Errors a user can cause and mend."""

from __future__ import annotations


class UserError(ValueError):
    """A mistake the user can mend: one clear line that names the thing and the mend.

    The command line prints the line without a traceback and exits with code 2.
    """


class InvalidCrystal(UserError):
    """A crystal that cannot be used, with a reason code to count by.

    Reason codes: `unreadable`, `wrong_formula`, `disorder`, `unknown_element`, `bad_cell`,
    `not_periodic`, `too_many_atoms`, `no_reduced_cell`, `bad_property`, `duplicate_id`.
    """

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(reason, detail)
        self.reason = reason
        self.detail = detail

    def __str__(self) -> str:
        return self.detail


def one_line(error: BaseException | str) -> str:
    """What a library said, on one line of at most 200 characters."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 200 else text[:197] + "..."
