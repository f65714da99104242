"""Reduced formulas as numbers, and the formulas of known crystals."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pymatgen.core import Composition, Structure

from flowllm.crystals.io import read_all, usable
from flowllm.crystals.run_folders import input_hash
from flowllm.errors import UserError
from llm_prior.prompts import parse_composition

Ratios = tuple[tuple[int, int], ...]
KNOWN_FORMULA = "known_formula"  # reason by which refused answers are counted


def formula_ratios(atomic_numbers: Any) -> Ratios:
    """Return a reduced formula as numbers, which is much faster than its text.

    Args:
        atomic_numbers: (N,) of the atoms of a crystal.

    Returns:
        Pairs of atomic number and amount, sorted.
    """
    counts = sorted(Counter(np.asarray(atomic_numbers).tolist()).items())
    divisor = int(np.gcd.reduce([count for _, count in counts]))
    return tuple((number, count // divisor) for number, count in counts)


def formula_units(composition: Composition) -> int:
    """Return the greatest common divisor of the amounts: the formula units of a cell.

    pymatgen's reduced formula of some elements and peroxides (O2, Na2O2) is twice a formula unit,
    so its factor is not this number.

    Args:
        composition: of whole amounts.
    """
    return int(np.gcd.reduce([round(amount) for amount in composition.values()]))


class KnownFormulas:
    """The reduced formulas of given crystals, such as a training set.

    A crystal with another formula cannot be in the files, however two structures are compared. A
    new structure of a known formula counts as known.

    Attributes:
        files: name and SHA-256 of each file, for manifests.
    """

    def __init__(self, files: str | Path | Sequence[str | Path] = ()) -> None:
        """Read the formulas of files; bad rows are left out and counted in the log.

        Args:
            files: none, one or several inputs of `flowllm.crystals.io.read`.

        Raises:
            UserError: if a file does not exist, has an unknown format, or holds no valid crystal.
        """
        self.files: list[dict[str, str]] = []
        self._ratios: set[Ratios] = set()
        for file in [files] if isinstance(files, str | Path) else files:
            good = [geometry for _, geometry in usable(file, read_all(file, reduce=False))]
            self.files.append({"name": Path(file).name, "sha256": input_hash(file)})
            self._ratios |= {formula_ratios(crystal.atomic_numbers) for crystal in good}

    def __len__(self) -> int:
        return len(self._ratios)

    def refuse(self, structure: Structure) -> str | None:
        """Return the reason to refuse a crystal.

        Args:
            structure: the crystal.

        Returns:
            `known_formula` if its formula is known, else None.
        """
        numbers = [site.specie.Z for site in structure]
        return KNOWN_FORMULA if formula_ratios(numbers) in self._ratios else None

    def check(self, conditions: Mapping[str, Any]) -> None:
        """Check that conditions leave an unknown formula to find.

        Args:
            conditions: of a sampling run, by name.

        Raises:
            UserError: if they fix a known formula.
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
