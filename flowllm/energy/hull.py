"""Convex hull of the formation energies of known compounds, and energies above it."""

from __future__ import annotations

import functools
import logging
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pymatgen.core import Composition, Structure
from pymatgen.entries.computed_entries import ComputedEntry
from scipy.optimize import linprog

from flowllm.crystals.columns import FIELD_OF_COLUMN
from flowllm.crystals.formats import Format, format_of
from flowllm.crystals.tables import csv_columns, parquet_columns
from flowllm.energy.formation import (
    FINAL,
    NoFormationEnergy,
    References,
    check_fit,
    entries_of,
    file_content,
    file_text,
    formation_energy_per_atom,
    lowest_elements,
    read_json,
)
from flowllm.errors import PriorError, UserError, one_line
from llm_prior.formulas import parse_formula

logger = logging.getLogger(__name__)

_FORMULA_COLUMNS = ("composition", "formula", "pretty_formula", "formula_pretty", "reduced_formula")
_ENERGY_COLUMNS = tuple(
    column for column, name in FIELD_OF_COLUMN.items() if name == "formation_energy_per_atom"
)
_THERMO = {"thermo_types": ["GGA_GGA+U"]}  # Materials Project's corrected scale, without r2SCAN
_KEPT_SYSTEMS = 1024
_CORRECTED = frozenset({"O", "F"})  # MP2020 corrects every compound of these


class Hull:
    """Known compounds with their formation energies; the elements are at 0.

    The hull energy at a composition x is the energy of the cheapest mixture of known compounds and
    elements: E_hull(x) = min_a sum_i a_i e_i with a_i >= 0 and sum_i a_i x_i = x (per atom). It is
    solved as a linear program (SciPy): pymatgen's `PhaseDiagram` builds the whole hull, which is
    out of reach for ten elements.

    Attributes:
        references: absolute energies of the elements of this hull; None if it was made from
            formation energies.
        source: file or database, for messages.
        num_entries: number of compounds.
    """

    def __init__(
        self,
        formulas: Iterable[str | Mapping[str, float]],
        formation_energies: Iterable[float],
        *,
        references: References | None = None,
        source: str = "",
    ) -> None:
        """Make a hull.

        Args:
            formulas: text, see `llm_prior.formulas.parse_formula`, or amounts by symbol; elements
                are ignored.
            formation_energies: eV/atom, one per formula.
            references: absolute energies of the elements, if they are known.
            source: file or database, for messages.

        Raises:
            UserError: if a formula cannot be read, or an energy is not finite.
        """
        self.references = references
        self.source = source
        self._systems: dict[frozenset[str], list[tuple[Mapping[str, Any], float]]] = defaultdict(
            list
        )
        self.num_entries = 0
        for formula, energy in zip(formulas, formation_energies, strict=True):
            try:
                amounts = parse_formula(formula) if isinstance(formula, str) else formula
            except PriorError as error:
                raise UserError(f"{source}: {error}; correct the file") from error
            elements = frozenset(amounts)
            if not abs(energy) < float("inf"):
                raise UserError(f"{source}: the energy of {formula} is {energy}; correct the file")
            if len(elements) > 1:
                self._systems[elements].append((amounts, float(energy)))
                self.num_entries += 1
        self._entries = functools.lru_cache(_KEPT_SYSTEMS)(self._of_system)

    def energy_per_atom(self, composition: Composition) -> float:
        """Return the hull energy at a composition.

        Args:
            composition: any composition.

        Returns:
            The energy in eV/atom, 0 or less.
        """
        elements = tuple(sorted(element.symbol for element in composition.elements))
        energies, fractions = self._entries(elements)
        target = [composition.get_atomic_fraction(symbol) for symbol in elements]
        return float(linprog(energies, A_eq=fractions, b_eq=target).fun)

    def e_above_hull(self, composition: Composition, formation_energy_per_atom: float) -> float:
        """Return the energy above the hull of the known compounds in eV/atom.

        It is negative for a crystal below the hull, which is not part of the hull itself.

        Args:
            composition: composition of the crystal.
            formation_energy_per_atom: formation energy of the crystal, eV/atom.

        Returns:
            E_f - E_hull(composition).
        """
        return formation_energy_per_atom - self.energy_per_atom(composition)

    def __contains__(self, composition: Composition) -> bool:
        """Return whether a compound of exactly these elements is known."""
        return frozenset(e.symbol for e in composition.elements) in self._systems

    def _of_system(
        self, elements: tuple[str, ...]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return energies (M,) and fractions (E, M) of all compounds within these elements."""
        energies = [0.0] * len(elements)
        fractions = np.eye(len(elements)).tolist()
        within = frozenset(elements)
        for system, compounds in self._systems.items():
            if system <= within:
                for amounts, energy in compounds:
                    total = sum(amounts.values())
                    energies.append(energy)
                    fractions.append([float(amounts.get(e, 0) / total) for e in elements])
        return np.array(energies), np.array(fractions).T


@dataclass(frozen=True, kw_only=True)
class HullDistance:
    """Formation energy of a crystal and its distance to the hull.

    Attributes:
        formation_energy_per_atom: eV/atom; None if unknown.
        e_above_hull: eV/atom, negative below the known compounds; None if unknown.
        failure: reason for missing numbers; None if there are numbers.
    """

    formation_energy_per_atom: float | None = None
    e_above_hull: float | None = None
    failure: str | None = None


def fitting_references(
    hull: Hull, references: References | None, *, scheme: str, potential: Mapping[str, Any]
) -> References:
    """Return the elemental references for the energies of a potential.

    Args:
        hull: hull of the known compounds.
        references: energies of the elements; None takes the references of the hull.
        scheme: scheme of the energies; see `flowllm.energy.calculators.EnergyScheme`.
        potential: identity of the potential; see `flowllm.energy.calculators.potential_identity`.

    Returns:
        References that fit the potential.

    Raises:
        UserError: if there are no references, or they do not fit the potential.
    """
    references = references if references is not None else hull.references
    name = str(potential.get("name"))
    if references is None:
        raise UserError(
            f"the hull {hull.source} holds formation energies and {name} gives absolute ones: give "
            "energies of the elements as references"
        )
    check_fit(references, scheme=scheme, potential=potential, name=name)
    return references


def hull_distances(
    structures: Sequence[Structure | None],
    energies_per_atom: Sequence[float | None],
    hull: Hull,
    *,
    scheme: str,
    potential: Mapping[str, Any],
    references: References | None = None,
) -> list[HullDistance]:
    """Return the distances of relaxed crystals to the hull.

    Args:
        structures: N relaxed crystals; None for a failed one.
        energies_per_atom: (N,), energies by the potential, eV/atom; None for a failed one.
        hull: hull of the known compounds.
        scheme: scheme of the energies; see `flowllm.energy.calculators.EnergyScheme`.
        potential: identity of the potential; see `flowllm.energy.calculators.potential_identity`.
        references: energies of the elements; None takes the references of the hull.

    Returns:
        One distance per crystal.

    Raises:
        UserError: if there are no references, or they do not fit the potential.
    """
    references = fitting_references(hull, references, scheme=scheme, potential=potential)
    found = []
    for structure, energy in zip(structures, energies_per_atom, strict=True):
        if structure is None or energy is None:
            found.append(HullDistance(failure="not relaxed"))
            continue
        try:
            formation = formation_energy_per_atom(
                structure, energy, scheme=scheme, references=references
            )
        except NoFormationEnergy as error:
            found.append(HullDistance(failure=str(error)))
            continue
        above = hull.e_above_hull(structure.composition, formation)
        found.append(HullDistance(formation_energy_per_atom=formation, e_above_hull=above))
    return found


def read_hull(path: str | Path) -> Hull:
    """Read a hull from a file.

    Args:
        path: `.parquet` or `.csv` with a column `composition`, `formula` or `pretty_formula`, and
            `formation_energy_per_atom` (eV/atom, elements at 0); or `.json` or `.jsonl` with
            pymatgen entries, elements included, that have the corrections of MP2020, such as
            Matbench Discovery's, or a `PhaseDiagram`. Each may be compressed (`.gz`, `.bz2`,
            `.xz`).

    Returns:
        The hull.

    Raises:
        UserError: if there is no such file, it has other content, a formula or an energy is
            invalid, or the entries are not corrected.
    """
    path = Path(path)
    found = format_of(path.name)
    if found in (Format.JSON, Format.JSONL):
        return hull_of_entries(entries_of(read_json(path), path), source=str(path))
    if found not in (Format.PARQUET, Format.CSV):
        raise UserError(
            f"{path}: a hull is a .parquet, .csv, .json or .jsonl file, or one of them "
            "compressed; give such a file"
        )
    data = file_content(path)
    table = (
        parquet_columns(data, str(path))
        if found is Format.PARQUET
        else csv_columns(file_text(data, path), str(path))
    )
    formula = next((name for name in _FORMULA_COLUMNS if name in table), None)
    energy = next((name for name in _ENERGY_COLUMNS if name in table), None)
    if formula is None or energy is None:
        raise UserError(
            f"{path}: a hull needs the columns composition and {_ENERGY_COLUMNS[0]}; it has "
            f"{', '.join(table)}"
        )
    return Hull(map(str, table[formula]), map(_energy, table[energy]), source=str(path))


def _energy(value: Any) -> float:
    """Return an energy, or NaN for a word."""
    try:
        return float(value)
    except (TypeError, ValueError):
        return math.nan


def hull_of_entries(entries: list[ComputedEntry], *, source: str) -> Hull:
    """Return the hull of pymatgen entries on Materials Project's corrected scale (MP2020).

    Args:
        entries: entries of compounds and of their elements.
        source: file or database, for messages.

    Returns:
        The hull, with the elements as references.

    Raises:
        UserError: if no oxide or fluoride is corrected, or an element of a compound has no entry.
    """
    compounds = [entry for entry in entries if len(entry.composition.elements) > 1]
    final = sum(bool(entry.parameters.get(FINAL)) for entry in entries)
    if final:
        logger.warning(
            "%s: a PDEntry has no corrections: the energies of %d entries are taken as corrected",
            *(source, final),
        )
    to_correct = [
        entry
        for entry in compounds
        if FINAL not in entry.parameters and not _CORRECTED.isdisjoint(map(str, entry.composition))
    ]
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
        formulas.append(fractions)
        energies.append(
            entry.energy_per_atom - sum(x * elements[symbol] for symbol, x in fractions.items())
        )
    references = References(energies=elements, potential=None, source=source)
    return Hull(formulas, energies, references=references, source=source)


def materials_project_hull(systems: Iterable[Iterable[str]], *, key: str | None = None) -> Hull:
    """Return a hull from the current database of Materials Project, by its client mp-api.

    Args:
        systems: elements of each chemical system whose hull is needed.
        key: API key; None takes the environment variable MP_API_KEY.

    Returns:
        The hull, with the elements as references.

    Raises:
        UserError: if mp-api is not installed, or Materials Project cannot be reached or refuses.
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
    """Return the systems that are not part of another one."""
    kept = [s for s in systems if not any(s < other for other in systems)]
    return sorted(kept, key=sorted)
