"""Reduced formulas as numbers, and the compositions that are known already."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pymatgen.core import Structure

from flowllm.crystals.crystal import Geometry
from flowllm.crystals.io import read_all
from flowllm.errors import UserError
from flowllm.system.files import sha256_path
from llm_prior.prompts import parse_composition

logger = logging.getLogger(__name__)

Ratios = tuple[tuple[int, int], ...]
KNOWN_FORMULA = "known_formula"  # the reason by which answers are counted


def formula_ratios(atomic_numbers: Any) -> Ratios:
    """A reduced formula as sorted (atomic number, amount): much faster than the text of one."""
    counts = sorted(Counter(np.asarray(atomic_numbers).tolist()).items())
    divisor = int(np.gcd.reduce([count for _, count in counts]))
    return tuple((number, count // divisor) for number, count in counts)


class KnownFormulas:
    """The reduced formulas of given crystals, such as a training set.

    What has none of these formulas is a crystal that the files do not hold, whatever its structure
    and however two structures are compared; a new structure of a known formula counts as known.
    """

    def __init__(self, files: str | Path | Sequence[str | Path] = ()) -> None:
        """Read the files, none, one or several; bad rows are left out and counted in the log.

        Raises:
            UserError: no such file, an unknown format, or no valid crystal in one.
        """
        self.files: list[dict[str, str]] = []  # name and hash of each, for manifests
        self._ratios: set[Ratios] = set()
        for file in [files] if isinstance(files, str | Path) else files:
            rows = read_all(file, reduce=False)
            good = [row.source for row in rows if isinstance(row.source, Geometry)]
            if not good:
                raise UserError(f"{file}: holds no valid crystal")
            if len(good) < len(rows):
                logger.warning("%s: %d bad rows are left out", file, len(rows) - len(good))
            self.files.append({"name": Path(file).name, "sha256": sha256_path(Path(file))})
            self._ratios |= {formula_ratios(crystal.atomic_numbers) for crystal in good}

    def __len__(self) -> int:
        return len(self._ratios)

    def refuse(self, structure: Structure) -> str | None:
        """`known_formula` for a crystal of one of these formulas, else None."""
        numbers = [site.specie.Z for site in structure]
        return KNOWN_FORMULA if formula_ratios(numbers) in self._ratios else None

    def check(self, conditions: Mapping[str, Any]) -> None:
        """See that the conditions leave an unknown formula to find.

        Raises:
            UserError: they ask for a known one.
        """
        if "formula" not in conditions:
            return
        atoms = [
            element.Z
            for element, amount in parse_composition(conditions["formula"]).items()
            for _ in range(int(amount))
        ]
        if formula_ratios(atoms) in self._ratios:
            raise UserError(
                f"{conditions['formula']} is among the known crystals, so none of it can be novel; "
                "leave out novel_to (--novel-to), or ask for another formula"
            )
