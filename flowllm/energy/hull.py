"""The convex hull of formation energies, and how far above it a crystal lies."""

from __future__ import annotations

import functools
import re
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pymatgen.core import Composition, Element
from pymatgen.entries.computed_entries import ComputedEntry
from scipy.optimize import linprog

from flowllm.crystals.crystal import ignore_missing_electronegativity
from flowllm.energy.formation import References, entries_of, lowest_elements, read_json
from flowllm.errors import UserError, one_line

_ELEMENT = re.compile("[A-Z][a-z]?")
_SYMBOLS = frozenset(element.symbol for element in Element)
_FORMULA_COLUMNS = ("composition", "formula", "pretty_formula")
_ENERGY_COLUMN = "formation_energy_per_atom"
_THERMO = {"thermo_types": ["GGA_GGA+U"]}  # Materials Project's corrected scale, without r2SCAN
_KEPT_SYSTEMS = 1024
_CORRECTED = frozenset({"O", "F"})  # MP2020 corrects every compound of these


class Hull:
    """Known compounds by their formation energies; the elements are at 0.

    Its energy at a composition is that of the cheapest mixture of known compounds and elements
    there: E_hull(x) = min_a sum_i a_i e_i with a_i >= 0 and sum_i a_i x_i = x (per atom). As a
    linear program it is cheap for any number of elements, where a hull in ten dimensions is not.

    Attributes:
        references: absolute energies of the elements that belong to this hull, or None if it was
            made from formation energies.
        source: for messages and manifests.
        num_entries: compounds.
    """

    def __init__(
        self,
        formulas: Iterable[str],
        formation_energies: Iterable[float],
        *,
        references: References | None = None,
        source: str = "",
    ) -> None:
        """
        Args:
            formulas: as pymatgen's `Composition` reads them; elements are passed over.
            formation_energies: eV/atom, one for each formula.

        Raises:
            UserError: an unknown element, or an energy that is not finite.
        """
        self.references = references
        self.source = source
        self._systems: dict[frozenset[str], list[tuple[str, float]]] = defaultdict(list)
        self.num_entries = 0
        for formula, energy in zip(formulas, formation_energies, strict=True):
            # Parsed only where its system is asked for: 45,000 take seconds.
            elements = frozenset(_ELEMENT.findall(formula))
            if not elements or not elements <= _SYMBOLS:
                raise UserError(f"{source}: {formula!r} is no formula; mend the file")
            if not abs(energy) < float("inf"):
                raise UserError(f"{source}: the energy of {formula} is {energy}; mend the file")
            if len(elements) > 1:
                self._systems[elements].append((formula, float(energy)))
                self.num_entries += 1
        self._entries = functools.lru_cache(_KEPT_SYSTEMS)(self._of_system)

    def energy_per_atom(self, composition: Composition) -> float:
        """Formation energy of the hull at a composition, eV/atom (0 or less)."""
        elements = tuple(sorted(element.symbol for element in composition.elements))
        energies, fractions = self._entries(elements)
        target = [composition.get_atomic_fraction(symbol) for symbol in elements]
        return float(linprog(energies, A_eq=fractions, b_eq=target).fun)

    def e_above_hull(self, composition: Composition, formation_energy_per_atom: float) -> float:
        """Energy above the hull of the known compounds, eV/atom.

        Negative for a crystal below all of them: it is not part of the hull itself.
        """
        return formation_energy_per_atom - self.energy_per_atom(composition)

    def __contains__(self, composition: Composition) -> bool:
        """Whether a compound of exactly these elements is known."""
        return frozenset(e.symbol for e in composition.elements) in self._systems

    @ignore_missing_electronegativity()
    def _of_system(
        self, elements: tuple[str, ...]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Energies (M,) and fractions of the elements (E, M) of what is made of these elements."""
        energies = [0.0] * len(elements)
        fractions = np.eye(len(elements)).tolist()
        within = frozenset(elements)
        for system, compounds in self._systems.items():
            if system <= within:
                for formula, energy in compounds:
                    composition = Composition(formula)
                    energies.append(energy)
                    fractions.append([composition.get_atomic_fraction(e) for e in elements])
        return np.array(energies), np.array(fractions).T


def read_hull(path: str | Path) -> Hull:
    """A hull from a file.

    `.parquet`, `.csv`: a column `composition`, `formula` or `pretty_formula`, and
    `formation_energy_per_atom` (eV/atom, elements at 0). `.json`, `.json.gz`: pymatgen entries with
    the corrections of MP2020 and with the elements among them, such as Matbench Discovery's.

    Raises:
        UserError: no such file, another content, a formula or energy that is none, or entries
            without corrections.
    """
    path = Path(path)
    if path.name.endswith((".json", ".json.gz")):
        return hull_of_entries(entries_of(read_json(path), path), source=str(path))
    if path.suffix not in (".parquet", ".csv"):
        raise UserError(f"{path}: a hull is a .parquet, .csv, .json or .json.gz file")
    if not path.is_file():
        raise UserError(f"{path}: no such file; check the path")
    try:
        table = pd.read_parquet(path) if path.suffix == ".parquet" else pd.read_csv(path)
    except (ValueError, OSError) as error:
        raise UserError(f"{path} is damaged: {one_line(error)}; give another") from error
    formula = next((name for name in _FORMULA_COLUMNS if name in table), None)
    if formula is None or _ENERGY_COLUMN not in table:
        raise UserError(
            f"{path}: a hull needs the columns composition and {_ENERGY_COLUMN}; add them"
        )
    energies = pd.to_numeric(table[_ENERGY_COLUMN], errors="coerce")  # a word is no energy: NaN
    return Hull(table[formula].astype(str), energies, source=str(path))


def hull_of_entries(entries: list[ComputedEntry], *, source: str) -> Hull:
    """A hull from pymatgen entries on Materials Project's corrected scale (MP2020).

    Raises:
        UserError: no oxide or fluoride is corrected, or an element of a compound has no entry.
    """
    compounds = [entry for entry in entries if len(entry.composition.elements) > 1]
    to_correct = [c for c in compounds if not _CORRECTED.isdisjoint(map(str, c.composition))]
    if to_correct and not any(entry.energy_adjustments for entry in to_correct):
        raise UserError(
            f"{source}: no oxide or fluoride has an energy correction; give entries that went "
            "through pymatgen's MaterialsProject2020Compatibility"
        )
    elements = lowest_elements(entries)
    formulas, energies = [], []
    for entry in compounds:
        fractions = entry.composition.fractional_composition.get_el_amt_dict()
        if missing := sorted(fractions.keys() - elements.keys()):
            raise UserError(f"{source}: has no entry of the element {missing[0]}; add it")
        formulas.append(entry.composition.formula.replace(" ", ""))
        energies.append(
            entry.energy_per_atom - sum(x * elements[symbol] for symbol, x in fractions.items())
        )
    references = References(energies=elements, potential=None, source=source)
    return Hull(formulas, energies, references=references, source=source)


def materials_project_hull(systems: Iterable[Iterable[str]], *, key: str | None = None) -> Hull:
    """A hull from Materials Project's present database, by its client mp-api.

    Args:
        systems: the elements of each chemical system that will be asked for.
        key: of the user; None takes the environment's MP_API_KEY.

    Raises:
        UserError: mp-api is not installed, or Materials Project cannot be reached or refuses.
    """
    try:
        from mp_api.client import MPRester
        from mp_api.client.core import MPRestError
    except ImportError as error:
        raise UserError(
            "mp-api is not installed; pip install mp-api, or give a hull from a file"
        ) from error
    wanted = _largest({frozenset(system) for system in systems})
    found: dict[Any, ComputedEntry] = {}
    try:
        with MPRester(key) as rester:
            for system in wanted:
                entries = rester.get_entries_in_chemsys(sorted(system), additional_criteria=_THERMO)
                found |= {entry.entry_id: entry for entry in entries}
    except (MPRestError, ValueError, OSError) as error:
        raise UserError(
            f"Materials Project: {one_line(error)}; check MP_API_KEY and the network, or give a "
            "hull from a file"
        ) from error
    return hull_of_entries(list(found.values()), source="Materials Project")


def _largest(systems: set[frozenset[str]]) -> list[frozenset[str]]:
    """The systems that are no part of another one."""
    kept = [s for s in systems if not any(s < other for other in systems)]
    return sorted(kept, key=sorted)
