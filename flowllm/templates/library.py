"""Template libraries: known crystals as compact records in one file.

A library is a parquet file. Its metadata name the version of the format, the source of the crystals
and their licence. Lengths are kept to 0.001 Angstrom, angles to 0.01 degrees and coordinates to
0.0001; the crystals are made exactly symmetric before that.
"""

from __future__ import annotations

import itertools
import json
import logging
import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pymatgen.core import Lattice

from flowllm.crystals.crystal import Crystal
from flowllm.crystals.descriptions import CrystalRow, describe_crystals
from flowllm.crystals.io import read
from flowllm.errors import UserError, one_line
from flowllm.system.files import publish
from flowllm.system.tables import check_absent
from flowllm.templates.checks import first_problem
from flowllm.templates.prototypes import MAX_ELEMENTS, Prototype, place
from llm_prior import TextFormat
from llm_prior.layouts.wyckoff import WyckoffDescription
from llm_prior.text import SYMBOLS
from llm_prior.wyckoff.crystal import FREE_CELL, Orbit, WyckoffCrystal
from llm_prior.wyckoff.table import space_group

logger = logging.getLogger(__name__)

BUNDLED = Path(__file__).parent / "bundled" / "mp20.parquet"
Counts = tuple[int, ...]

_VERSION = 1
_KEY = b"flowllm_templates"  # of the metadata of the file
_BUILD = "make it with flowllm templates build"
_LENGTH, _ANGLE, _COORD = 1000, 100, 10_000  # units per Angstrom, degree and cell edge
_LARGEST = 1000  # atoms of the primitive cell of a template
_SCHEMA = pa.schema(
    {
        "id": pa.string(),
        "e_above_hull": pa.float32(),
        "spacegroup": pa.uint8(),
        "prototype": pa.int32(),  # number of the prototype in this file
        "elements": pa.list_(pa.uint8()),  # atomic number of the element in each slot
        "counts": pa.list_(pa.uint16()),  # atoms of each slot in the primitive cell, ascending
        "swaps": pa.list_(pa.uint8()),  # of the prototype, one after the other
        "letters": pa.list_(pa.uint8()),  # place of the Wyckoff letter of each orbit
        "slots": pa.list_(pa.uint8()),  # slot of each orbit
        "cell": pa.list_(pa.uint32()),
        "coords": pa.list_(pa.uint16()),
    }
)


class _Lists(NamedTuple):
    """A column of lists: list i is `values[ends[i] : ends[i + 1]]`."""

    values: NDArray[Any]
    ends: NDArray[np.int32]

    def row(self, row: int) -> NDArray[Any]:
        """Return a list."""
        return self.values[self.ends[row] : self.ends[row + 1]]

    def block(self, rows: NDArray[np.int64], length: int) -> NDArray[np.int64]:
        """Return the lists of rows, all of one length, as an array (rows, length)."""
        return self.values[self.ends[rows][:, None] + np.arange(length)].astype(np.int64)


@dataclass(frozen=True, kw_only=True, eq=False)
class Family:
    """The templates of one stoichiometry, with T templates of k elements.

    Attributes:
        counts: amounts of the elements in the reduced formula, ascending.
        rows: (T,) places in the library.
        elements: (T, k) atomic numbers in the slots of the prototype.
        num_atoms: (T,) atoms of the primitive cell.
        spacegroups: (T,) International numbers.
        e_above_hull: (T,) eV/atom; 0 where it is not known.
        prototypes: (T,) number of the prototype.
        swaps: the swaps (s, k) of each prototype by number; see `prototypes.Placement`.
    """

    counts: Counts
    rows: NDArray[np.int64]
    elements: NDArray[np.int64]
    num_atoms: NDArray[np.int64]
    spacegroups: NDArray[np.int64]
    e_above_hull: NDArray[np.float64]
    prototypes: NDArray[np.int64]
    swaps: dict[int, NDArray[np.int64]]

    @cached_property
    def ways(self) -> NDArray[np.int64]:
        """The ways (P, k) to give the slots the elements of a composition that has `counts`.

        Slot i gets element `ways[p, i]`; the amount of that element is `counts[i]`.
        """
        alike = [
            [place for place, other in enumerate(self.counts) if other == count]
            for count in dict.fromkeys(self.counts)
        ]
        parts = itertools.product(*map(itertools.permutations, alike))
        return np.array([list(itertools.chain.from_iterable(part)) for part in parts])

    @cached_property
    def genes(self) -> NDArray[np.int64]:
        """Numbers (T, P) of the genes that the ways make of the templates."""
        ways = self.ways
        bases = len(self.counts) ** np.arange(len(self.counts))
        codes = ways @ bases
        order = np.argsort(codes)
        table = np.empty((len(self.swaps), len(ways)), dtype=np.int64)
        for number, swaps in enumerate(self.swaps.values()):
            same = np.searchsorted(codes, ways[:, swaps] @ bases, sorter=order)  # (P, swaps)
            table[number] = order[same].min(1) + number * len(ways)
        places = {prototype: place for place, prototype in enumerate(self.swaps)}
        return table[[places[prototype] for prototype in self.prototypes.tolist()]]


class TemplateLibrary:
    """Known crystals as templates.

    Attributes:
        ids: of the crystals in their source.
        source: where the crystals come from.
        licence: of the crystals; empty if it is not known.
    """

    def __init__(self, table: pa.Table, source: str, licence: str) -> None:
        """Take the table of a library; use `read`, `bundled` or `build`."""
        columns = {name: table[name].combine_chunks() for name in table.column_names}
        self.ids: list[str] = columns["id"].to_pylist()
        self.source = source
        self.licence = licence
        self._table = table
        self._families: dict[Counts, Family] = {}
        self._hull = np.nan_to_num(
            columns["e_above_hull"].fill_null(0).to_numpy().astype(np.float64), posinf=0, neginf=0
        )
        self._groups = columns["spacegroup"].to_numpy()
        self._prototypes = columns["prototype"].to_numpy().astype(np.int64)
        self._lists = {
            name: _Lists(column.values.to_numpy(), column.offsets.to_numpy())
            for name, column in columns.items()
            if pa.types.is_list(column.type)
        }

    @classmethod
    def build(
        cls,
        crystals: Iterable[Crystal],
        *,
        source: str,
        licence: str = "",
        skip_invalid: bool = False,
    ) -> TemplateLibrary:
        """Return the library of crystals; their symmetry is searched at 0.1 Angstrom.

        Args:
            crystals: with ids, and energies above the hull (`e_above_hull`) if they are known.
            source: name of the data.
            licence: of the data.
            skip_invalid: leave out crystals whose symmetry is not found, and log their number.

        Raises:
            UserError: if there is no crystal that can be a template, or one has no symmetry and
                `skip_invalid` is False.
        """
        rows: list[CrystalRow] = [(c.id, c.structure, c.properties) for c in crystals]
        fmt = TextFormat(layout="wyckoff", max_atoms=_LARGEST)
        rows, descriptions = describe_crystals(rows, fmt, skip_invalid=skip_invalid)
        numbers: dict[Prototype, int] = {}
        records = []
        for (name, _, properties), description in zip(rows, descriptions, strict=True):
            assert isinstance(description, WyckoffDescription)
            if len(description.crystal.composition) <= MAX_ELEMENTS:
                records.append(_record(name, properties, description.crystal, numbers))
        if len(records) < len(rows):
            logger.warning(
                "%d of %d crystals have more than %d elements and are left out",
                len(rows) - len(records),
                len(rows),
                MAX_ELEMENTS,
            )
        if not records:
            raise UserError(f"{source}: holds no crystal that can be a template; give other data")
        return cls(pa.Table.from_pylist(records, _SCHEMA), source, licence)

    @classmethod
    def read(cls, path: str | Path) -> TemplateLibrary:
        """Return the library of a file.

        Args:
            path: as `write` makes it.

        Raises:
            UserError: if there is no such file, it is no library, is empty or damaged, or another
                version of the format.
        """
        path = Path(path)
        if not path.is_file():
            raise UserError(f"{path}: no such template library; {_BUILD}")
        try:
            about = json.loads((pq.read_schema(path).metadata or {})[_KEY])
            version, source, licence = about["version"], about["source"], about["licence"]
        except (KeyError, ValueError, TypeError, OSError) as error:
            raise UserError(f"{path} is not a template library, or is damaged; {_BUILD}") from error
        if version != _VERSION:
            raise UserError(
                f"{path} is a template library of version {version}, and this program reads "
                f"version {_VERSION}; {_BUILD} again"
            )
        try:
            table = pq.read_table(path, page_checksum_verification=True)
        except (ValueError, OSError) as error:
            raise UserError(f"{path} is damaged: {one_line(error)}; {_BUILD} again") from error
        if not table.schema.equals(_SCHEMA):
            raise UserError(f"{path} has other columns than a template library; {_BUILD} again")
        if not len(table):
            raise UserError(f"{path}: the template library is empty; {_BUILD}")
        if (problem := first_problem(table)) is not None:
            raise UserError(f"{path} is damaged: {problem}; {_BUILD} again")
        return cls(table, source, licence)

    def write(self, path: str | Path) -> Path:
        """Write the library to a file, which is whole or absent even after a kill.

        Args:
            path: of the file; an existing one is replaced.

        Returns:
            `path`.
        """
        about = {
            "version": _VERSION,
            "source": self.source,
            "licence": self.licence,
            "precision": f"lengths 1/{_LENGTH} Angstrom, angles 1/{_ANGLE} degree, coordinates "
            f"1/{_COORD}",
        }
        table = self._table.replace_schema_metadata({_KEY: json.dumps(about)})
        return publish(
            path,
            lambda temporary: pq.write_table(
                table,
                temporary,
                compression="zstd",
                compression_level=19,
                write_page_checksum=True,
            ),
        )

    def __len__(self) -> int:
        return len(self.ids)

    def crystal(self, row: int, elements: Sequence[str] | None = None) -> WyckoffCrystal:
        """Return a crystal of the library.

        Args:
            row: its place.
            elements: symbols of other elements for its slots; None: its own.
        """
        group = space_group(int(self._groups[row]))
        if elements is None:
            numbers = self._lists["elements"].row(row).tolist()
            elements = [SYMBOLS[number - 1] for number in numbers]
        coords = iter((self._lists["coords"].row(row) / _COORD).tolist())
        orbits = []
        for letter, slot in zip(
            self._lists["letters"].row(row), self._lists["slots"].row(row), strict=True
        ):
            position = group.positions[letter]
            free = tuple(next(coords) for _ in range(position.num_free))
            orbits.append(Orbit(element=elements[slot], letter=position.letter, coords=free))
        units = _cell_units(group.number)
        cell = tuple((self._lists["cell"].row(row) / units).tolist())
        return WyckoffCrystal(spacegroup=group.number, orbits=tuple(orbits), cell=cell)

    def volume_per_atom(self, row: int) -> float:
        """Return the volume of a crystal in cubic Angstrom per atom.

        Args:
            row: its place.
        """
        crystal = self.crystal(row)
        primitive = abs(np.linalg.det(crystal.group.primitive_basis))
        volume = Lattice.from_parameters(*crystal.parameters).volume
        return float(volume * primitive / crystal.num_atoms)

    def families(self) -> Iterator[Family]:
        """Yield the templates of every stoichiometry."""
        return (self._family(counts) for counts in self._rows_of)

    def family(self, counts: Counts) -> Family | None:
        """Return the templates of a stoichiometry, or None if there are none.

        Args:
            counts: amounts of the elements in the reduced formula, ascending.
        """
        return self._family(counts) if counts in self._rows_of else None

    def _family(self, counts: Counts) -> Family:
        """Return the templates of a stoichiometry that the library has, gathered once."""
        if counts not in self._families:
            self._families[counts] = self._gathered(counts)
        return self._families[counts]

    def _gathered(self, counts: Counts) -> Family:
        rows = np.array(self._rows_of[counts])
        prototypes = self._prototypes[rows]
        swaps = {}
        for prototype, first in zip(*np.unique(prototypes, return_index=True), strict=True):
            table = self._lists["swaps"].row(rows[first]).reshape(-1, len(counts))
            swaps[int(prototype)] = table.astype(np.int64)
        return Family(
            counts=counts,
            rows=rows,
            elements=self._lists["elements"].block(rows, len(counts)),
            num_atoms=self._lists["counts"].block(rows, len(counts)).sum(1),
            spacegroups=self._groups[rows].astype(np.int64),
            e_above_hull=self._hull[rows],
            prototypes=prototypes,
            swaps=swaps,
        )

    @cached_property
    def _rows_of(self) -> dict[Counts, list[int]]:
        """The rows of each stoichiometry."""
        found: dict[Counts, list[int]] = defaultdict(list)
        values, ends = self._lists["counts"]
        every, bounds = values.tolist(), ends.tolist()
        for row in range(len(self)):
            counts = every[bounds[row] : bounds[row + 1]]
            divisor = math.gcd(*counts)
            found[tuple(count // divisor for count in counts)].append(row)
        return dict(found)


def build_library(
    file: str | Path, out: str | Path, *, limit: int | None = None, skip_invalid: bool = False
) -> TemplateLibrary:
    """Make a library of the crystals of a file, write it, and return it.

    Args:
        file: crystals; see `flowllm.crystals.io.read`.
        out: file to write, of which none exists yet.
        limit: read at most this many crystals.
        skip_invalid: leave out bad crystals, and log their number.

    Raises:
        UserError: if `out` exists, `file` cannot be read, or it holds no crystal that can be a
            template.
    """
    check_absent(out)
    crystals = read(file, limit=limit, skip_invalid=skip_invalid)
    if crystals.skipped:
        logger.warning("%s: %d bad rows are left out", file, crystals.skipped.total())
    library = TemplateLibrary.build(crystals, source=Path(file).name, skip_invalid=skip_invalid)
    library.write(out)
    return library


def library_file(name: str | Path) -> Path:
    """Return the file of a library.

    Args:
        name: `bundled`, or a file that `TemplateLibrary.write` made.

    Raises:
        UserError: if there is no such file.
    """
    path = BUNDLED if str(name) == "bundled" else Path(name)
    if not path.is_file():
        raise UserError(f"{path}: no such template library; {_BUILD}, or name bundled")
    return path


@cache
def bundled() -> TemplateLibrary:
    """Return the bundled library: 26,243 crystals of MP-20 train."""
    return TemplateLibrary.read(BUNDLED)


def _record(
    name: str, properties: Any, crystal: WyckoffCrystal, numbers: dict[Prototype, int]
) -> dict[str, Any]:
    """Return a row of the table; a new prototype is added to `numbers`."""
    group = crystal.group
    placement = place(crystal)
    slot_of = {element: slot for slot, element in enumerate(placement.elements)}
    cell = np.array(crystal.cell) * _cell_units(group.number)
    coords = np.concatenate([np.array(orbit.coords, dtype=float) for orbit in crystal.orbits])
    return {
        "id": name,
        "e_above_hull": _finite(properties.get("e_above_hull")),
        "spacegroup": group.number,
        "prototype": numbers.setdefault(placement.prototype, len(numbers)),
        "elements": [SYMBOLS.index(element) + 1 for element in placement.elements],
        "counts": [slot.num_atoms for slot in placement.prototype.slots],
        "swaps": np.ravel(placement.swaps),
        "letters": [group.position(orbit.letter).index for orbit in crystal.orbits],
        "slots": [slot_of[orbit.element] for orbit in crystal.orbits],
        "cell": np.rint(cell).astype(np.uint32),
        "coords": (np.rint(coords * _COORD) % _COORD).astype(np.uint16),
    }


def _finite(value: Any) -> float | None:
    """Return a value as a number, or None if it is no finite one."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None


def _cell_units(spacegroup: int) -> NDArray[np.int64]:
    """Return the units in which the free parameters of a cell are kept."""
    free = FREE_CELL[space_group(spacegroup).family]
    return np.array([_LENGTH if number < 3 else _ANGLE for number in free])
