"""The text of one CIF data block, laid out as pymatgen's `CifFile` does it.

pymatgen's own writer takes 5 ms for a crystal, and a third of a second to import.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

_LONGEST = 70  # of a line


def block_text(name: str, items: Mapping[str, object], loops: Sequence[str | None]) -> str | None:
    """Return the text of a block.

    Args:
        name: of the block.
        items: values by key, before the loops.
        loops: texts of `loop_text`.

    Returns:
        The text with a newline at its end; None if a value or line is so long that it must be
        divided.
    """
    head = _joined([f"data_{name}", *(f"{key}   {quoted(value)}" for key, value in items.items())])
    parts = [part for part in (head, *loops) if part is not None]
    return None if len(parts) <= len(loops) else "".join(parts)


def loop_text(columns: Mapping[str, Iterable[object]]) -> str | None:
    """Return the text of a loop.

    Args:
        columns: values by key, all of one length.

    Returns:
        The text with a newline at its end; None if a line of it must be divided.
    """
    rows = zip(*columns.values(), strict=True)
    lines = ["".join(f"  {quoted(value)}" for value in row) for row in rows]
    return _joined(["loop_", *(f" {key}" for key in columns), *lines])


def quoted(value: object) -> str:
    """Return a value as it is written, in quotes if it needs some.

    Args:
        value: a number or text.
    """
    text = str(value)
    return text if text and " " not in text and text[0] != "_" else f"'{text}'"


def _joined(lines: list[str]) -> str | None:
    if max(map(len, lines)) >= _LONGEST - 2:
        return None
    return "\n".join(lines) + "\n"
