"""What a run ends with."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from flowllm.crystals.io import Crystal, write

_LONGEST_NAME = 100  # of a CIF; file systems take 255 bytes


@dataclass(frozen=True)
class Outcome:
    """A finished run: its folder, the crystals it made, the failures by reason, and the prior's
    answers that were refused by reason, those of crystals made in the end included."""

    folder: Path
    crystals: list[Crystal]
    failures: Counter[str]
    rejects: Counter[str] = field(default_factory=Counter)


def write_cifs(crystals: Sequence[Crystal], path: Path) -> None:
    """A folder with a CIF for each crystal, named by its id as far as file systems take it."""
    names = file_names([crystal.id for crystal in crystals])
    write(
        [Crystal(id=n, structure=c.structure) for n, c in zip(names, crystals, strict=True)], path
    )


def file_names(ids: Sequence[str]) -> list[str]:
    """A name for each id that every file system takes, each its own."""
    names: list[str] = []
    taken: set[str] = set()
    for number, name in enumerate(ids):
        plain = re.sub(r"[^A-Za-z0-9._-]", "_", name)[:_LONGEST_NAME]
        plain = plain if re.match(r"\w", plain) else f"_{plain}"
        while plain.casefold() in taken:  # some file systems do not tell CO from Co
            plain = f"{plain}_{number}"
        taken.add(plain.casefold())
        names.append(plain)
    return names
