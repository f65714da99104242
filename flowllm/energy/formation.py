"""Formation energies from the absolute energies of a potential: references and corrections."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from math import isnan
from pathlib import Path
from typing import Any

from pymatgen.core import Composition, Element, Structure
from pymatgen.entries.compatibility import MaterialsProject2020Compatibility
from pymatgen.entries.computed_entries import ComputedEntry, ComputedStructureEntry
from pymatgen.io.vasp.sets import MPRelaxSet

from flowllm.crystals.contents import decoded, decompressed, read_bytes
from flowllm.crystals.crystal import ignore_missing_electronegativity
from flowllm.crystals.formats import Format, format_of
from flowllm.errors import FlowLLMError, UserError, one_line
from flowllm.runs.sharded import RunFolder
from flowllm.system.documents import parse_json
from flowllm.system.parquet import read_parquet

_SYMBOLS = frozenset(element.symbol for element in Element)
_KEYS_OF_ENTRIES = (  # the first two: a pandas table, as Matbench Discovery publishes it
    *("entry", "computed_structure_entry", "all_entries", "entries"),
)
_ENTRIES = ("ComputedEntry", "ComputedStructureEntry", "PDEntry")
FINAL = "final"  # parameter of an entry whose energy is final, as it cannot have corrections
# Schemes whose energies are on Materials Project's corrected scale, or can be brought to it.
_ON_MP_SCALE = ("mp2020", "mp-raw")
# For a correction pymatgen tries combinations of oxidation states: 0.2 s at 14 elements, 5 s at 16.
_MOST_ELEMENTS = 12


class NoFormationEnergy(FlowLLMError):
    """An element without a reference, or a compound that MP2020 does not correct."""


@dataclass(frozen=True, kw_only=True)
class References:
    """Energies of the elements in their stable form.

    Attributes:
        energies: symbol -> eV/atom.
        potential: identity of the potential that computed them, see
            `flowllm.energy.calculators.potential_identity`; None for Materials Project's (MP2020).
        source: file or database, for messages.
    """

    energies: Mapping[str, float]
    potential: Mapping[str, Any] | None
    source: str


def read_references(path: str | Path) -> References:
    """Read elemental references from a file or from a run of `flowllm relax`.

    Args:
        path: JSON file (also `.json.gz`) with Materials Project's energies, as numbers by symbol
            (eV/atom) or as pymatgen entries; or a run folder, from which the crystal of lowest
            energy of each element is taken, with the potential of the run.

    Returns:
        The references.

    Raises:
        UserError: if there is no such file, it has other content, or the run is not finished or
            has no elements.
    """
    path = Path(path)
    if path.is_dir():
        return _references_of_run(path)
    content = read_json(path)
    if isinstance(content, dict) and content and all(_is_number(v) for v in content.values()):
        energies = {symbol: float(value) for symbol, value in content.items()}
        if unknown := sorted(energies.keys() - _SYMBOLS):
            raise UserError(f"{path}: {unknown[0]} is no element; give eV/atom by symbol")
    else:
        energies = lowest_elements(entries_of(content, path))
        if not energies:
            raise UserError(f"{path}: no entry is of an element; give a file that has them")
    return References(energies=energies, potential=None, source=str(path))


def lowest_elements(entries: list[ComputedEntry]) -> dict[str, float]:
    """Return the energy of the lowest entry of each element.

    Args:
        entries: pymatgen entries; compounds are ignored.

    Returns:
        Symbol -> eV/atom.
    """
    energies: dict[str, float] = {}
    for entry in entries:
        if len(entry.composition.elements) == 1:
            symbol = entry.composition.elements[0].symbol
            energies[symbol] = min(energies.get(symbol, float("inf")), entry.energy_per_atom)
    return energies


def check_fit(
    references: References, *, scheme: str, potential: Mapping[str, Any], name: str
) -> None:
    """Refuse references that do not fit the energies of a potential.

    Args:
        references: Materials Project's fit `mp2020` and `mp-raw`, others their own potential.
        scheme: scheme of the potential; see `flowllm.energy.calculators.EnergyScheme`.
        potential: identity of the potential.
        name: name of the potential, for messages.

    Raises:
        UserError: if they do not fit.
    """
    if references.potential is None:
        if scheme not in _ON_MP_SCALE:
            raise UserError(
                f"the energies of {name} (scheme {scheme}) do not go with Materials Project's "
                f"elemental references ({references.source}): relax crystals of the elements with "
                "it (flowllm relax) and give that run folder as references"
            )
    elif dict(references.potential) != dict(potential):
        raise UserError(
            f"the references in {references.source} are of another potential "
            f"({references.potential.get('name')}) than {name}; relax the elements with this one"
        )


def formation_energy_per_atom(
    structure: Structure, energy_per_atom: float, *, scheme: str, references: References
) -> float:
    """Return the energy of formation from the elements: E/N - sum_i x_i E_i.

    Energies of the scheme `mp-raw` are corrected first if the references are Materials Project's
    (`mp2020_correction`).

    Args:
        structure: the relaxed crystal.
        energy_per_atom: energy by the potential, eV/atom.
        scheme: scheme of the potential.
        references: references that fit it, see `check_fit`.

    Returns:
        Formation energy in eV/atom.

    Raises:
        NoFormationEnergy: if an element has no reference, or the crystal no correction.
    """
    if scheme == "mp-raw" and references.potential is None:
        energy_per_atom += mp2020_correction(structure)
    composition = structure.composition
    missing = {e.symbol for e in composition.elements} - references.energies.keys()
    if missing:
        raise NoFormationEnergy(f"no elemental reference for {', '.join(sorted(missing))}")
    fractions = composition.fractional_composition.get_el_amt_dict()
    return energy_per_atom - sum(x * references.energies[e] for e, x in fractions.items())


def mp2020_correction(structure: Structure) -> float:
    """Return Materials Project's correction of a GGA or GGA+U energy.

    Computed by pymatgen's `MaterialsProject2020Compatibility` (Wang et al. 2021, Sci. Rep. 11,
    15496). Oxides and fluorides of the transition metals in `MPRelaxSet` count as GGA+U, as in the
    data that potentials are trained on.

    Args:
        structure: an ordered crystal.

    Returns:
        Correction in eV/atom.

    Raises:
        NoFormationEnergy: if pymatgen has no correction for the crystal, or it has more than 12
            elements.
    """
    composition = structure.composition
    if len(composition) > _MOST_ELEMENTS:
        raise NoFormationEnergy(f"no MP2020 correction for more than {_MOST_ELEMENTS} elements")
    with ignore_missing_electronegativity(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Failed to guess oxidation states", UserWarning)
        anion = max(composition.elements, key=lambda e: 0.0 if isnan(e.X) else e.X).symbol
        table = MPRelaxSet.CONFIG["INCAR"]["LDAUU"].get(anion, {})
        values = {e.symbol: table.get(e.symbol, 0.0) for e in composition.elements}
        plus_u = any(values.values())
        entry = ComputedStructureEntry(
            structure,
            0.0,
            parameters={"run_type": "GGA+U" if plus_u else "GGA", "hubbards": values},
        )
        scheme = MaterialsProject2020Compatibility(check_potcar=False)
        corrected = scheme.process_entry(entry, inplace=False)
    if corrected is None:
        raise NoFormationEnergy("MP2020 has no correction for it")
    return corrected.correction / len(structure)


def file_content(path: Path) -> bytes:
    """Return the content of a file, decompressed.

    Args:
        path: of the file.

    Returns:
        The bytes.

    Raises:
        UserError: if there is no such file, or it is damaged.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file; check the path")
    return decompressed(read_bytes(path), str(path))


def file_text(data: bytes, path: Path) -> str:
    """Return the content of a text file as text.

    Args:
        data: its bytes.
        path: of the file, for messages.

    Returns:
        The text.

    Raises:
        UserError: if it is neither UTF-8 nor UTF-16 with a mark.
    """
    try:
        return decoded(data)
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: {one_line(error)}; save it as UTF-8") from error


def read_json(path: Path) -> Any:
    """Return the content of a JSON file, which may be compressed.

    Args:
        path: the file; `.jsonl` has a value in each line.

    Returns:
        The parsed content; a list for `.jsonl`.

    Raises:
        UserError: if there is no such file, or it is not JSON.
    """
    text = file_text(file_content(path), path)
    try:
        if format_of(path.name) is Format.JSONL:
            return [parse_json(line) for line in text.split("\n") if line.strip()]
        return parse_json(text)
    except ValueError as error:
        raise UserError(f"{path} is no JSON file: {one_line(error)}; give another") from error


def entries_of(content: Any, path: Path) -> list[ComputedEntry]:
    """Return the pymatgen entries in the content of a JSON file.

    Args:
        content: list of entries, dict of entries by name, table with a column `entry`, or an object
            with entries under `all_entries` (a `PhaseDiagram`) or `entries`.
        path: the file, for messages.

    Returns:
        The entries; those made from a `PDEntry` have the parameter `FINAL`.

    Raises:
        UserError: if there are none, or one is damaged or of another class.
    """
    for key in _KEYS_OF_ENTRIES:
        if isinstance(content, dict) and isinstance(content.get(key), dict | list):
            content = content[key]
    items = list(content.values()) if isinstance(content, dict) else content
    if not isinstance(items, list) or not items:
        raise UserError(f"{path}: holds no pymatgen entries; give a JSON list of them")
    entries = []
    for number, item in enumerate(items, start=1):
        try:
            with ignore_missing_electronegativity():
                entries.append(_entry(item))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            problem = f"it has no {error}" if isinstance(error, KeyError) else one_line(error)
            raise UserError(
                f"{path}: item {number} is no pymatgen entry: {problem}; correct the file"
            ) from error
    return entries


def _entry(item: Mapping[str, Any]) -> ComputedEntry:
    """Return an entry from its dict.

    `ComputedEntry.from_dict` would import and build any class that the file names.
    """
    kind = item.get("@class", "ComputedEntry")
    if kind not in _ENTRIES:
        raise ValueError(f"{kind} is none of {', '.join(_ENTRIES)}")
    is_final = kind == "PDEntry"
    return ComputedEntry(
        Composition(item["composition"]),
        float(item["energy"]),
        correction=0.0 if is_final else float(item["correction"]),
        parameters={FINAL: True} if is_final else {},
    )


def _references_of_run(path: Path) -> References:
    folder = RunFolder.open(path)
    potential = folder.run.get("potential")
    table = path / "samples.parquet"
    if folder.run.get("command") != "relax" or not table.is_file():
        raise UserError(f"{path} is no finished run of flowllm relax; run it on the elements")
    energies: dict[str, float] = {}
    for row in read_parquet(table, ["formula", "energy_per_atom"]).to_pylist():
        elements = Composition(row["formula"]).elements
        if len(elements) == 1 and row["energy_per_atom"] is not None:
            symbol = elements[0].symbol
            energies[symbol] = min(energies.get(symbol, float("inf")), row["energy_per_atom"])
    if not energies:
        raise UserError(f"{path} holds no relaxed element; relax crystals of the elements")
    return References(energies=energies, potential=potential, source=str(path))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
