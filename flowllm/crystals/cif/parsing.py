"""The crystals of a CIF: every data block read, checked against itself, and with its warnings."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flowllm.crystals.cells import wrap
from flowllm.crystals.cif.blocks import Block, read_blocks
from flowllm.crystals.cif.contents import (
    Formula,
    check_multiplicities,
    read_formula,
    same_atoms,
    symbols_of,
    volume_note,
)
from flowllm.crystals.cif.operations import Operations
from flowllm.crystals.cif.orbits import MIN_DISTANCE, Atoms, expand
from flowllm.crystals.cif.repeats import repeats
from flowllm.crystals.cif.sites import (
    Sites,
    has_sites,
    read_lattice,
    read_sites,
    sorted_geometry,
)
from flowllm.crystals.cif.symmetry import Claim, read_symmetry
from flowllm.crystals.crystal import Geometry
from flowllm.crystals.rules import COINCIDENCE, check_geometry, coinciding_pair
from flowllm.errors import InvalidCrystal
from flowllm.system.executors import for_each

_WORTH_WORKERS = 5000  # CIFs; below that, starting processes costs more than it saves
_CHUNK = 250  # CIFs per task of a process


@dataclass(frozen=True)
class CifCrystal:
    """One crystal of a CIF.

    Attributes:
        block: name of its data block.
        source: the crystal, or the reason why there is none.
        notes: what had to be assumed, with the name of the block.
    """

    block: str
    source: Geometry | InvalidCrystal
    notes: tuple[str, ...] = ()


def parse_cifs(texts: Sequence[str], workers: int | None) -> list[list[CifCrystal]]:
    """Parse CIFs, in several processes if there are many.

    Args:
        texts: CIFs.
        workers: number of processes; None: one per core for at least 5000 CIFs, else one.

    Returns:
        The result of `parse_cif` for each text, in order.
    """
    if workers is None:
        workers = (os.cpu_count() or 1) if len(texts) >= _WORTH_WORKERS else 1
    parsed: dict[int, list[list[CifCrystal]]] = {}

    def save(chunk: tuple[int, Sequence[str]], result: Any) -> None:
        parsed[chunk[0]] = result

    chunks = [(start, texts[start : start + _CHUNK]) for start in range(0, len(texts), _CHUNK)]
    for_each(chunks, _parse_chunk, save, workers=workers)
    return [result for start in sorted(parsed) for result in parsed[start]]


def _parse_chunk(_: None, chunk: tuple[int, Sequence[str]]) -> list[list[CifCrystal]]:
    return [parse_cif(text) for text in chunk[1]]


def parse_cif(text: str) -> list[CifCrystal]:
    """Return the crystals of a CIF.

    A data block without atom sites is passed over, and so is a block that repeats the crystal of
    an earlier one in another setting.

    Args:
        text: of the CIF.

    Returns:
        One crystal, or the reason why there is none, for each other block; at least one.
    """
    found: list[CifCrystal] = []
    empty: list[str] = []
    for block in read_blocks(text):
        if isinstance(block, Block):
            if has_sites(block):
                found.append(_parse_block(block))
            else:
                empty.append(block.name)
        else:
            name, error = block
            detail = f"not a readable CIF: {_in_block(name)}{error.detail}"
            found.append(CifCrystal(name, InvalidCrystal(error.reason, detail)))
    if not found:
        names = ", ".join(empty[:5])
        detail = f"not a readable CIF: no atom sites in the data blocks ({names})"
        return [CifCrystal("", InvalidCrystal("unreadable", detail))]
    again = repeats([crystal.source for crystal in found])
    for index, first in again.items():
        note = f"block {found[index].block} is the same crystal in another setting and is left out"
        found[first] = replace(found[first], notes=(*found[first].notes, note))
    return [crystal for index, crystal in enumerate(found) if index not in again]


def _parse_block(block: Block) -> CifCrystal:
    try:
        geometry, notes = _crystal(block)
    except InvalidCrystal as error:
        detail = _in_block(block.name) + error.detail
        return CifCrystal(block.name, InvalidCrystal(error.reason, detail))
    return CifCrystal(block.name, geometry, tuple(_in_block(block.name) + note for note in notes))


def _in_block(name: str) -> str:
    return f"block {name}: " if name else ""


def _crystal(block: Block) -> tuple[Geometry, list[str]]:
    """Return the crystal of a data block, and what had to be assumed."""
    lattice, notes = read_lattice(block)
    formula, more = read_formula(block)
    sites = read_sites(block, formula.amounts.keys() if formula else ())
    check_geometry(lattice, sites.frac_coords)
    notes += more + sites.notes
    symmetry = read_symmetry(block, lattice)
    notes += symmetry.notes
    readings: dict[str, tuple[Geometry, list[str]]] = {}
    refused: dict[str, InvalidCrystal] = {}
    for name, operations in symmetry.candidates.items():
        try:
            atoms = expand(sites, operations, lattice)
            found = _check_claims(symmetry.claims, sites, atoms, (name, operations), lattice)
            if not symmetry.is_magnetic:
                check_multiplicities(sites, atoms, len(operations))
            found += _check_atoms(sites, atoms, formula, lattice)
            if len(symmetry.candidates) > 1 and found:
                raise InvalidCrystal("wrong_symmetry", found[0])
            if note := atoms.note(sites.labels):
                found.append(note)
            geometry = sorted_geometry(
                lattice, sites.atomic_numbers[atoms.sites], wrap(atoms.frac_coords)
            )
            readings[name] = geometry, found
        except InvalidCrystal as error:
            refused[name] = error
    if not readings:
        causes = list(refused.values())
        details = [cause.detail for cause in causes]
        if len(details) > 1:
            details = [f"{name}: {cause.detail}" for name, cause in refused.items()]
        raise InvalidCrystal(causes[0].reason, "; ".join(details))
    (name, (geometry, found)), *others = readings.items()
    for other, (reading, _) in others:
        if not same_atoms(lattice, geometry[1:], reading[1:]):
            raise InvalidCrystal(
                "wrong_symmetry",
                f"{name} and {other} give two crystals, and nothing tells which is meant; name "
                "the origin or list the operations",
            )
    for other, reason in refused.items():
        notes.append(f"{name} is assumed, since {other} cannot be: {reason.detail}")
    return geometry, notes + found


def _check_claims(
    claims: list[Claim],
    sites: Sites,
    atoms: Atoms,
    used: tuple[str, Operations],
    lattice: NDArray[np.float64],
) -> list[str]:
    """Return a note on each statement that contradicts the operations without consequence.

    Raises:
        InvalidCrystal: if a statement would give other atoms (reason `wrong_symmetry`).
    """
    name, operations = used
    numbers = sites.atomic_numbers[atoms.sites]
    notes = []
    for claim in claims:
        for setting in claim.settings:
            try:
                other = expand(sites, setting, lattice)
            except InvalidCrystal:
                continue
            theirs = sites.atomic_numbers[other.sites], other.frac_coords
            if same_atoms(lattice, (numbers, atoms.frac_coords), theirs):
                notes.append(f"{claim.text}, which {name} contradicts; the atoms are the same")
                break
        else:
            group = f" (group {operations.number})" if operations.number else ""
            raise InvalidCrystal(
                "wrong_symmetry",
                f"{claim.text}, but {name}{group} gives other atoms; correct one of them",
            )
    return notes


def _check_atoms(
    sites: Sites, atoms: Atoms, formula: Formula | None, lattice: NDArray[np.float64]
) -> list[str]:
    """Check what was read against formula, distances and volume, and return remarks."""
    remarks = []
    pair = coinciding_pair(lattice, atoms.frac_coords, MIN_DISTANCE)
    if pair is not None:
        first, second = (sites.labels[atoms.sites[index]] for index in pair)
        apart = atoms.frac_coords[pair[0]] - atoms.frac_coords[pair[1]]
        distance = float(np.linalg.norm((apart - np.round(apart)) @ lattice))
        who = f"images of site {first}" if first == second else f"the sites {first} and {second}"
        where = f"{who} are {distance:.2g} A apart"
        if distance <= COINCIDENCE:
            raise InvalidCrystal("coinciding_atoms", f"{where}; keep one of them")
        remarks.append(where)
    if formula is not None:
        formula.check(symbols_of(sites.atomic_numbers[atoms.sites]))
    if note := volume_note(lattice, len(atoms.sites)):
        remarks.append(note)
    return remarks
