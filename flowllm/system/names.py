"""Names of files as text: Python keeps bytes that it cannot decode as half characters."""

from __future__ import annotations


def printable(name: str) -> str:
    """Return a text that can be written as UTF-8, the same in every locale.

    Args:
        name: any string, such as a name of a file.

    Returns:
        The text with its undecoded bytes decoded as UTF-8 where they are, and escaped elsewhere: a
        file `caf<E9>` is `caf\\xe9`.
    """
    try:
        content = name.encode(errors="surrogateescape")
    except UnicodeEncodeError:  # half characters that stand for no byte, as JSON may have them
        content = name.encode(errors="backslashreplace")
    return content.decode(errors="backslashreplace")
