"""Errors that bad input causes.

Every error of this project that a user can fix derives from `FlowLLMError`. Its message is one line
that names the input, the problem and what to do; the command line prints it and exits with code 2.
"""

from __future__ import annotations

from llm_prior.errors import PriorError
from rfm.errors import RefinerError


class FlowLLMError(ValueError):
    """Base class of all errors that bad input causes, also in `llm_prior` and `rfm`."""

    __slots__ = ()  # so that it can become the base of classes that derive from `ValueError`


# The two libraries do not import `flowllm`, so their errors join the hierarchy from here.
PriorError.__bases__ = (FlowLLMError,)
RefinerError.__bases__ = (FlowLLMError,)


class UserError(FlowLLMError):
    """Bad input to `flowllm`: an argument, a file, a folder or a setting."""


class InvalidCrystal(UserError):
    """A crystal that cannot be used.

    Attributes:
        reason: code to count by: `unreadable`, `wrong_formula`, `wrong_symmetry`, `disorder`,
            `unknown_element`, `bad_cell`, `not_periodic`, `coinciding_atoms`, `too_many_atoms`,
            `no_reduced_cell`, `duplicate_id`, `dead_link`, or `failed` for a crystal
            that a run lists as failed.
        detail: the message.
    """

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(reason, detail)
        self.reason = reason
        self.detail = detail

    def __str__(self) -> str:
        return self.detail


def one_line(error: BaseException | str) -> str:
    """Return the message of an error on one line of at most 200 characters.

    Args:
        error: the error, or its message.

    Returns:
        The message; the name of the class if the error has none.
    """
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 200 else text[:197] + "..."
