"""A crystal as space group, orbits and free parameters."""

from __future__ import annotations

import logging
import math
import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, NamedTuple

import moyopy
import numpy as np
import spglib
from numpy.typing import NDArray
from pymatgen.core import Composition, Element, Lattice, Structure

from llm_prior.errors import PriorError
from llm_prior.text import SYMBOLS, closes_a_cell
from llm_prior.wyckoff.orbits import images
from llm_prior.wyckoff.table import GRID, Family, SpaceGroup, space_group

# Which of a, b, c, alpha, beta, gamma are free in each family.
FREE_CELL: dict[Family, tuple[int, ...]] = {
    "triclinic": (0, 1, 2, 3, 4, 5),
    "monoclinic": (0, 1, 2, 4),
    "orthorhombic": (0, 1, 2),
    "tetragonal": (0, 2),
    "hexagonal": (0, 2),
    "cubic": (0,),
}
_EXACT = 1e-2  # times symprec: farthest that an exact crystal is from its symmetric form
logging.getLogger("moyo").setLevel(logging.CRITICAL)  # of moyo's warnings none is needed here
NIGGLI_TOLERANCE = 1e-5  # squared lengths that differ by less than this times V^(2/3) are equal


@dataclass(frozen=True, kw_only=True)
class Orbit:
    """An element on a Wyckoff position.

    Attributes:
        element: symbol of the element.
        letter: Wyckoff letter.
        coords: free coordinates of the first representative, fractional, of the conventional cell.
    """

    element: str
    letter: str
    coords: tuple[float, ...] = ()


@dataclass(frozen=True, kw_only=True)
class WyckoffCrystal:
    """A crystal as space group, orbits and free parameters.

    Sites of the structures that it makes are grouped by orbit, in the order of `orbits`.

    Attributes:
        spacegroup: International number, 1 to 230, in the setting of the table.
        orbits: the occupied positions.
        cell: free parameters of the conventional cell, lengths in Angstrom before angles in
            degrees: a b c alpha beta gamma, a b c beta, a b c, a c, or a.
    """

    spacegroup: int
    orbits: tuple[Orbit, ...]
    cell: tuple[float, ...]

    @property
    def group(self) -> SpaceGroup:
        """The space group with its table."""
        return space_group(self.spacegroup)

    @property
    def num_atoms(self) -> int:
        """Number of atoms in the primitive cell."""
        return sum(self.group.position(orbit.letter).num_atoms for orbit in self.orbits)

    @property
    def composition(self) -> dict[str, int]:
        """Atoms of each element in the primitive cell."""
        counts: dict[str, int] = {}
        for orbit in self.orbits:
            atoms = self.group.position(orbit.letter).num_atoms
            counts[orbit.element] = counts.get(orbit.element, 0) + atoms
        return counts

    @property
    def gene(self) -> tuple[int, tuple[tuple[str, str], ...]]:
        """The discrete part: group, and (element, letter) of each orbit, sorted."""
        return self.spacegroup, tuple(sorted((o.element, o.letter) for o in self.orbits))

    @property
    def parameters(self) -> tuple[float, float, float, float, float, float]:
        """Lengths in Angstrom and angles in degrees of the conventional cell."""
        return full_cell(self.group.family, self.cell)

    def conventional(self) -> Structure:
        """Return the crystal in the conventional cell; orbit of each site: see `site_orbits`."""
        group = self.group
        points = [
            (positions + shift / GRID)
            for positions in self.orbit_points()
            for shift in group.centring[:, None]
        ]
        lattice = Lattice.from_parameters(*self.parameters)
        return _structure(lattice.matrix, self._elements(len(group.centring)), points)

    def primitive(self) -> Structure:
        """Return the crystal in its primitive Niggli cell; orbit of each site: `site_orbits`.

        The cell is right-handed, a along x and b in the xy plane.

        Raises:
            PriorError: if no Niggli cell is found.
        """
        reduced, change = self._reduced()
        points = [positions @ change for positions in self.orbit_points()]
        return _structure(_standard_orientation(reduced), self._elements(1), points)

    def primitive_operations(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return the operations of the group in the cell of `primitive()`, modulo its lattice.

        Returns:
            (G, 3, 3) integers W and (G, 3) w of x -> W x + w for columns x of fractional
            coordinates.

        Raises:
            PriorError: if no Niggli cell is found.
        """
        group = self.group
        _, change = self._reduced()
        # The operations of a centred group repeat each rotation with the shifts of its lattice.
        _, first = np.unique(group.rotations.reshape(-1, 9), axis=0, return_index=True)
        rotations = change.T @ group.rotations[first] @ np.linalg.inv(change.T)
        return np.rint(rotations), group.shifts[first] / GRID @ change

    def site_orbits(self, *, conventional: bool = False) -> NDArray[np.int64]:
        """Return the place in `orbits` of every site.

        Args:
            conventional: of `conventional()` instead of `primitive()`.

        Returns:
            (n,) integers.
        """
        copies = len(self.group.centring) if conventional else 1
        atoms = [self.group.position(o.letter).num_atoms * copies for o in self.orbits]
        return np.repeat(np.arange(len(self.orbits)), atoms)

    def with_coords(self, coords: list[NDArray[np.float64]]) -> WyckoffCrystal:
        """Return the crystal with other free coordinates.

        Args:
            coords: of each orbit, (d,).
        """
        orbits = tuple(
            replace(orbit, coords=tuple(u.tolist()))
            for orbit, u in zip(self.orbits, coords, strict=True)
        )
        return replace(self, orbits=orbits)

    def orbit_points(self) -> list[NDArray[np.float64]]:
        """Return coordinates (n, 3), in the conventional cell, of the atoms of each orbit that are
        in the primitive cell."""
        return [
            images(self.spacegroup, orbit.letter)(np.array(orbit.coords, dtype=float))
            for orbit in self.orbits
        ]

    def _reduced(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """The primitive Niggli lattice (3, 3), and the matrix (3, 3) that rows of fractional
        coordinates of the conventional cell are multiplied by to get those of it."""
        matrix = self.group.primitive_basis @ Lattice.from_parameters(*self.parameters).matrix
        reduced = niggli(matrix)
        steps = np.rint(matrix @ np.linalg.inv(reduced))
        change = np.linalg.inv(self.group.primitive_basis) @ steps
        return reduced, change.astype(np.float64)

    def _elements(self, copies: int) -> list[str]:
        return [
            orbit.element
            for orbit in self.orbits
            for _ in range(copies * self.group.position(orbit.letter).num_atoms)
        ]


def full_cell(
    family: Family, cell: tuple[float, ...]
) -> tuple[float, float, float, float, float, float]:
    """Return lengths and angles of a conventional cell from its free parameters.

    Args:
        family: crystal family.
        cell: free parameters, see `WyckoffCrystal.cell`.
    """
    if family == "cubic":
        (a,) = cell
        return a, a, a, 90.0, 90.0, 90.0
    if family in ("tetragonal", "hexagonal"):
        a, c = cell
        return a, a, c, 90.0, 90.0, 120.0 if family == "hexagonal" else 90.0
    a, b, c, *angles = cell
    if family == "triclinic":
        alpha, beta, gamma = angles
        return a, b, c, alpha, beta, gamma
    return a, b, c, 90.0, angles[0] if angles else 90.0, 90.0


def free_cell(
    family: Family, lengths: tuple[float, ...], angles: tuple[float, ...]
) -> tuple[float, ...]:
    """Return the free parameters of a conventional cell.

    Args:
        family: crystal family.
        lengths: a, b, c in Angstrom.
        angles: alpha, beta, gamma in degrees.
    """
    every = (*lengths, *angles)
    return tuple(float(every[place]) for place in FREE_CELL[family])


def actual_group(crystal: WyckoffCrystal | Structure, symprec: float = 0.01) -> int | None:
    """Return the space group that spglib finds, or None where its search fails.

    A crystal on a more special position, or whose parameters happen to fit a supergroup, has
    another group than the one in its description.

    Args:
        crystal: the crystal.
        symprec: distance in Angstrom.
    """
    structure = crystal.primitive() if isinstance(crystal, WyckoffCrystal) else crystal
    dataset = symmetry_dataset(structure, symprec)
    return None if dataset is None else int(dataset.number)


def symmetry_dataset(structure: Structure, symprec: float) -> Any:
    """Return spglib's dataset, or None where its search fails.

    Args:
        structure: an ordered crystal.
        symprec: distance in Angstrom.
    """
    numbers = [site.specie.Z for site in structure]
    return find_symmetry(structure.lattice.matrix, structure.frac_coords, numbers, symprec)


class ExactSymmetry(NamedTuple):
    """What moyo says of an exactly symmetric crystal of N atoms, under spglib's names.

    Attributes:
        number: International number.
        hall_number: number of the setting, of the same choice as spglib's.
        transformation_matrix: (3, 3); x_conventional = transformation_matrix x + origin_shift.
        origin_shift: (3,).
        std_lattice: (3, 3) rows of the conventional cell, Angstrom.
        std_positions: (n, 3) of the atoms of the conventional cell.
        std_rotation_matrix: (3, 3), turns the given cell to the orientation of `std_lattice`.
        wyckoffs: letter of each given atom.
        crystallographic_orbits: (N,) number of the orbit of each given atom.
        mapping_to_primitive: (N,) number of each given atom in the primitive cell.
        std_mapping_to_primitive: (n,) the same of the atoms of the conventional cell.
    """

    number: int
    hall_number: int
    transformation_matrix: NDArray[np.float64]
    origin_shift: NDArray[np.float64]
    std_lattice: NDArray[np.float64]
    std_positions: NDArray[np.float64]
    std_rotation_matrix: NDArray[np.float64]
    wyckoffs: list[str]
    crystallographic_orbits: NDArray[np.int64]
    mapping_to_primitive: NDArray[np.int64]
    std_mapping_to_primitive: NDArray[np.int64]


def exact_symmetry(structure: Structure, symprec: float) -> ExactSymmetry | None:
    """Return the symmetry of a crystal whose group does not depend on a tolerance, by moyo.

    moyo takes a twentieth of spglib's time on average, and a fiftieth for the group 225. The two
    agree on crystals that are exactly symmetric and no more symmetric within `symprec`; only these
    are answered here, and only in a primitive cell. Where moyo finds no symmetry at all, spglib
    sometimes finds some.

    Args:
        structure: an ordered crystal of N atoms.
        symprec: distance in Angstrom.

    Returns:
        The symmetry; None for any other crystal.
    """
    found = _moyo_dataset(structure, symprec)
    if found is None:
        return None
    lattice, coords = structure.lattice.matrix, structure.frac_coords
    kinds = [site.specie.Z for site in structure]
    std, num_atoms = found.std_cell, len(kinds)
    primitive = len(found.prim_std_cell.numbers) == num_atoms
    if not primitive or found.number == 1:
        return None
    change = np.linalg.inv(np.array(found.std_linear))
    shift = -change @ np.array(found.std_origin_shift)
    basis, positions = np.array(std.basis), np.array(std.positions)
    turn = np.array(found.std_rotation_matrix)
    # Vectors of the conventional cell after the idealisation, and those of the given lattice.
    off = np.linalg.norm(basis @ turn - np.linalg.inv(change).T @ lattice, axis=1).max()
    gaps = positions[:, None] - (coords @ change.T + shift)  # (n, N, 3)
    # The conventional cell holds several lattice points of the given, primitive, one.
    steps = gaps @ np.linalg.inv(change).T
    steps -= np.rint(steps)
    distances = np.linalg.norm(steps @ lattice, axis=-1)
    distances[np.array(std.numbers)[:, None] != kinds] = np.inf
    nearest = distances.argmin(1)
    counts = np.bincount(nearest, minlength=num_atoms)
    off = max(off, distances.min(1).max())
    if off > _EXACT * symprec or (counts * num_atoms != len(positions)).any():
        return None
    return ExactSymmetry(
        number=found.number,
        hall_number=found.hall_number,
        transformation_matrix=change,
        origin_shift=shift,
        std_lattice=basis,
        std_positions=positions,
        std_rotation_matrix=turn,
        wyckoffs=found.wyckoffs,
        crystallographic_orbits=np.array(found.orbits),
        mapping_to_primitive=np.arange(num_atoms),
        std_mapping_to_primitive=nearest,
    )


def moyo_group(structure: Structure, symprec: float) -> int | None:
    """Return the space group that moyo finds, or None where its search fails.

    Args:
        structure: an ordered crystal.
        symprec: distance in Angstrom.
    """
    found = _moyo_dataset(structure, symprec)
    return None if found is None else int(found.number)


def _moyo_dataset(structure: Structure, symprec: float) -> Any:
    kinds = [site.specie.Z for site in structure]
    cell = moyopy.Cell(structure.lattice.matrix.tolist(), structure.frac_coords.tolist(), kinds)
    try:
        return moyopy.MoyoDataset(cell, symprec=symprec, setting=moyopy.Setting.spglib())
    except ValueError:
        return None


def find_symmetry(
    lattice: NDArray[np.float64],
    coords: NDArray[np.float64],
    kinds: Sequence[int],
    symprec: float,
    angle_tolerance: float = -1.0,
) -> Any:
    """Return spglib's dataset, or None where its search fails.

    Args:
        lattice: (3, 3) lattice vectors in rows, Angstrom.
        coords: (n, 3) fractional coordinates.
        kinds: a number for the element of each atom.
        symprec: distance in Angstrom.
        angle_tolerance: degrees; -1 derives it from the distance.
    """
    # Without this, spglib's C code writes to stderr where it finds less symmetry than expected.
    os.environ.setdefault("SPGLIB_WARNING", "OFF")
    cell: Any = (lattice, coords, kinds)  # spglib's annotation knows sequences only
    with warnings.catch_warnings():
        # spglib announces its coming change from None to SpglibError; both are handled here.
        warnings.filterwarnings("ignore", "Set OLD_ERROR_HANDLING", DeprecationWarning)
        try:
            return spglib.get_symmetry_dataset(
                cell, symprec=symprec, angle_tolerance=angle_tolerance
            )
        except spglib.SpglibError:
            return None


def niggli(lattice: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the Niggli-reduced lattice vectors (3, 3), right-handed, in the orientation given.

    Args:
        lattice: (3, 3) lattice vectors in rows, Angstrom.

    Raises:
        PriorError: if spglib finds no reduced cell.
    """
    size = abs(float(np.linalg.det(lattice))) ** (2 / 3)
    for scale in (1, 10, 100):
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Set OLD_ERROR_HANDLING", DeprecationWarning)
            try:
                reduced = spglib.niggli_reduce(lattice, eps=NIGGLI_TOLERANCE * scale * size)
            except spglib.SpglibError:
                reduced = None
        if reduced is not None:
            return reduced if np.linalg.det(reduced) > 0 else -reduced
    raise PriorError(
        f"no Niggli cell found for the lattice {np.round(lattice, 4).tolist()}; "
        "use a less skewed cell"
    )


@cache
def element_order() -> dict[str, int]:
    """Return the rank of each symbol by electronegativity, pymatgen's order of formulas."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # noble gases have no electronegativity
        ordered = sorted(Element(symbol) for symbol in SYMBOLS)
    return {element.symbol: rank for rank, element in enumerate(ordered)}


def is_cell(family: Family, cell: tuple[float, ...]) -> bool:
    """Return whether free parameters make a cell with a volume.

    Args:
        family: crystal family.
        cell: free parameters, see `WyckoffCrystal.cell`.
    """
    parameters = full_cell(family, cell)
    return all(math.isfinite(x) and x > 0 for x in parameters) and closes_a_cell(parameters[3:])


def _structure(
    lattice: NDArray[np.float64], elements: list[str], points: list[NDArray[np.float64]]
) -> Structure:
    coords = np.concatenate(points)
    coords = coords - np.floor(coords + 1e-12)  # -1e-17 becomes 0, and not 1
    return Structure(Lattice(lattice), [_composition(symbol) for symbol in elements], coords)


@cache
def _composition(symbol: str) -> Composition:
    # Shared by all sites, which pymatgen treats as immutable: building is 1.6 times as fast.
    return Composition({Element(symbol): 1})


def _standard_orientation(lattice: NDArray[np.float64]) -> NDArray[np.float64]:
    upper = np.asarray(np.linalg.qr(lattice.T, mode="r"))
    return upper.T * np.sign(np.diag(upper))
