"""Descriptions of crystals as a text layout writes them, cached on disk.

The layout `wyckoff` searches the symmetry of every crystal, which takes about 10 ms.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Mapping, Sequence
from typing import Any

from pymatgen.core import Structure

from flowllm.crystals.cache import cache_folder, structure_key
from flowllm.errors import UserError
from flowllm.system.key_value import KeyValueStore
from flowllm.system.progress import progress_bar
from llm_prior import PriorError, TextFormat
from llm_prior.layouts import Description, layout_of

logger = logging.getLogger(__name__)

_FILE = "descriptions-1.sqlite"
_AT_ONCE = 256  # crystals that are computed before they are stored

CrystalRow = tuple[str, Structure, Mapping[str, Any]]


def describe_crystals(
    rows: Sequence[CrystalRow], fmt: TextFormat, *, skip_invalid: bool
) -> tuple[list[CrystalRow], list[Description]]:
    """Return the crystals that a text format can write, with their descriptions.

    Args:
        rows: (id, structure, properties) of each crystal.
        fmt: text format of the model.
        skip_invalid: leave out crystals that cannot be written, and log their number.

    Raises:
        UserError: if a crystal cannot be written and `skip_invalid` is False.
    """
    layout = layout_of(fmt)
    kept: list[CrystalRow] = []
    described: list[Description] = []
    failures: list[str] = []
    name = layout.record_key
    if name is None:
        keys = [b""] * len(rows)
        opened: contextlib.AbstractContextManager[KeyValueStore | None] = contextlib.nullcontext()
    else:
        keys = [structure_key(name, structure) for _, structure, _ in rows]
        opened = KeyValueStore(cache_folder() / _FILE)
    with (
        opened as store,
        progress_bar(
            total=len(rows), description="symmetry", unit="crystals", show=store is not None
        ) as bar,
    ):
        for start in range(0, len(rows), _AT_ONCE):
            part = slice(start, start + _AT_ONCE)
            known = {} if store is None else store.load(keys[part])
            new: dict[bytes, bytes] = {}
            for row, key in zip(rows[part], keys[part], strict=True):
                structure = row[1]
                try:
                    if key in known:
                        description = layout.recall(structure, known[key].decode())
                    else:
                        description = layout.describe(structure)
                        new[key] = description.record().encode()
                except PriorError as error:
                    failures.append(f"crystal {row[0]}: {error}")
                    if not skip_invalid:
                        raise UserError(f"{failures[0]} (or use --skip-invalid)") from error
                    continue
                kept.append(row)
                described.append(description)
            if store is not None and new:
                store.save(new)
            bar.update(len(rows[part]))
    if failures:
        logger.warning(
            "%d of %d crystals cannot be written and are left out; the first: %s",
            len(failures),
            len(rows),
            failures[0],
        )
    return kept, described
