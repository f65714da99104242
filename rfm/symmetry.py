"""Symmetry of a crystal, and its average over motions of atoms and cell.

An operation (W, w) of a space group takes fractional coordinates x (a column) to W x + w. It puts
every atom i on an atom pi(i) of the same element, and the metric tensor G of the cell obeys
W^T G W = G. The motions that keep a group are the averages over it,

    u_i  <-  1/|G| sum over g of  W_g u_j,  pi_g(j) = i      velocity or noise of atom i
    G    <-  1/|G| sum over g of  W_g^T G W_g                cell

Both averages are linear projections, the first for u in fractional coordinates. Atoms of one orbit
share a velocity up to W, and an atom on a special position moves only along it. The average of a
mean-free motion is mean-free. The average of a metric tensor is positive definite in any basis. The
cells with a symmetry are flat in G, but in general curved in the charts of `rfm.lattice`, so the
metric tensor is averaged, after each step. `rfm.averages` has both for batches. Sources: SGFM
(arXiv 2509.23822) and DiffCSP++ (arXiv 2402.03992).

`find_symmetry` asks moyo for the operations of an exact crystal, and spglib for those of a rough
one. Their translations w are then fitted to its atoms, which makes the group law exact, and keeps
the centre of the atoms in place.
"""

from __future__ import annotations

import logging
import os
import warnings
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import moyopy
import numpy as np
import spglib
from pymatgen.core import Lattice, Structure

from rfm.errors import RefinerError
from rfm.lattice import COLS, ROWS

SYMPREC = 0.1  # Angstrom, for the samples of a prior, whose coordinates are rounded
_FALLBACKS = (1.0, 0.1, 0.01)  # times symprec, where a search fails or finds no group
_STRICT = 1e-2  # times symprec: a crystal with its group at this tolerance too is exact
logging.getLogger("moyo").setLevel(logging.CRITICAL)  # of moyo's warnings none is needed here
_SHORTEST = 1.0  # Angstrom; moyo is not asked about cells with a shorter lattice vector
_EXACT = 1e-7  # errors of a group in fractional coordinates, far above rounding
_PAIRS_AT_A_TIME = 2**18  # pairs of atoms compared at a time, which bounds memory


class Operations(NamedTuple):
    """Operations x -> W x + w of a space group in the cell of a crystal, translations included.

    Attributes:
        rotations: (G, 3, 3) integers W, which act on columns of fractional coordinates.
        translations: (G, 3) w, in periods.
    """

    rotations: np.ndarray
    translations: np.ndarray


@dataclass(frozen=True, kw_only=True)
class Symmetry:
    """A space group and its action on the n atoms of one crystal.

    Attributes:
        rotations: (G, 3, 3) float64 integers W.
        translations: (G, 3) float64 w, in periods; the operations form a group modulo 1.
        sources: (G, n) int64, the atom that operation g puts on atom i.
    """

    rotations: np.ndarray
    translations: np.ndarray
    sources: np.ndarray

    @classmethod
    def of(
        cls, structure: Structure, operations: Operations, *, tolerance: float = 2 * SYMPREC
    ) -> Symmetry:
        """Return the symmetry of a crystal whose operations are known.

        Args:
            structure: ordered crystal, in the cell of the operations.
            operations: all operations of its group; the translations may be rough.
            tolerance: largest distance in Angstrom between the image of an atom and an atom.

        Raises:
            RefinerError: if an operation does not put atoms on atoms of their element, or the
                operations are no group.
        """
        rotations = np.asarray(operations.rotations, dtype=np.float64)
        given = np.asarray(operations.translations, dtype=np.float64)
        sources = _sources(structure, rotations, given, tolerance)
        coords = structure.frac_coords
        # With moved atoms W x_j and pi(j) = i, the translation is the mean of x_i - W x_j.
        differences = coords - np.einsum("gij,gnj->gni", rotations, coords[sources])
        differences -= np.rint(differences - given[:, None])
        found = cls(rotations=rotations, translations=differences.mean(axis=1), sources=sources)
        found._check(structure)
        return found

    @property
    def trivial(self) -> bool:
        """True if the identity is the only operation."""
        return len(self.rotations) == 1

    @property
    def num_atoms(self) -> int:
        """Number of atoms n."""
        return self.sources.shape[1]

    @cached_property
    def blocks(self) -> Blocks:
        """The average over motions of atoms, as a sparse matrix."""
        n = self.num_atoms
        keys = np.arange(n) * n + self.sources  # (G, n): i, and the atom j that comes to i
        entries, places = np.unique(keys, return_inverse=True)
        matrices = np.zeros((len(entries), 3, 3))
        np.add.at(matrices, places.reshape(keys.shape), self.rotations[:, None])
        matrices /= len(self.rotations)
        used = matrices.any(axis=(1, 2))  # an atom that cannot move has no entry
        return Blocks(entries[used] // n, entries[used] % n, matrices[used])

    @cached_property
    def metric_average(self) -> np.ndarray:
        """(6, 6) average of a metric tensor written as (G11, G22, G33, G12, G13, G23)."""
        basis = np.zeros((6, 3, 3))
        basis[range(6), ROWS, COLS] = 1
        basis[range(6), COLS, ROWS] = 1
        point = np.unique(self.rotations, axis=0)
        moved = np.einsum("gji,bjk,gkl->bil", point, basis, point) / len(point)
        return moved[:, ROWS, COLS].T

    def holds(self, structure: Structure, tolerance: float) -> bool:
        """Return whether a crystal with the same atoms has the group.

        Args:
            structure: crystal in the same origin, basis and order of atoms.
            tolerance: largest distance in Angstrom between the image of an atom and an atom, and
                largest change of an edge or a diagonal of a face of the cell in its average.
        """
        matrix = structure.lattice.matrix
        away = np.linalg.norm(self._deviations(structure.frac_coords) @ matrix, axis=-1)  # (G, n)
        lines = np.array([[1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 0], [1, 0, 1], [0, 1, 1]])
        average = self._average_cell(matrix)
        before, after = (np.linalg.norm(lines @ m, axis=1) for m in (matrix, average))
        return bool(max(away.max(), np.abs(after - before).max()) <= tolerance)

    def symmetrised(self, structure: Structure) -> Structure:
        """Return the nearest crystal that has the group to the last digits of float64.

        Its coordinates are in [0, 1), its lattice has a along x and b in the xy plane and the
        handedness given.

        Args:
            structure: crystal that has the group roughly.
        """
        matrix = self._average_cell(structure.lattice.matrix)
        # Compositions of sites are taken over as they are; species would be made anew.
        species = [site.species for site in structure]
        return Structure(Lattice(matrix), species, self._average_coords(structure.frac_coords))

    def _average_coords(self, frac_coords: np.ndarray) -> np.ndarray:
        """Return the coordinates (n, 3) in [0, 1) that are nearest to those given."""
        coords: np.ndarray = frac_coords + self._deviations(frac_coords).mean(axis=0)
        coords -= np.floor(coords)
        coords[coords >= 1.0] = 0.0  # -1e-17 comes out as 1
        return coords

    def _average_cell(self, given: np.ndarray) -> np.ndarray:
        """Return the lattice (3, 3) whose metric tensor is the average of that of the given one."""
        six = self.metric_average @ (given @ given.T)[ROWS, COLS]
        metric = np.empty((3, 3))
        metric[ROWS, COLS] = metric[COLS, ROWS] = six
        matrix = np.linalg.cholesky(metric)
        matrix[2, 2] *= np.sign(np.linalg.det(given))
        return matrix

    def _deviations(self, frac_coords: np.ndarray) -> np.ndarray:
        """Return the ways from atoms (n, 3) to the images on them, (G, n, 3)."""
        moved = np.einsum("gij,gnj->gni", self.rotations, frac_coords[self.sources])
        off = moved + self.translations[:, None] - frac_coords
        return off - np.rint(off)

    def _check(self, structure: Structure) -> None:
        """Raise `RefinerError` unless the operations are a group that acts on the atoms."""
        try:
            self._average_cell(structure.lattice.matrix)
        except np.linalg.LinAlgError as error:
            raise RefinerError("the cell of the crystal is too flat to be averaged") from error
        coords = self._average_coords(structure.frac_coords)
        n = self.num_atoms
        atoms, sources, matrices = self.blocks
        by_atom = np.zeros((n, 3, n, 3))
        by_atom[atoms, :, sources, :] = matrices
        average = by_atom.reshape(3 * n, 3 * n)
        cell = self.metric_average
        off = max(
            float(np.abs(average @ average - average).max()),
            float(np.abs(cell @ cell - cell).max()),
            float(np.abs(self._deviations(coords)).max()),
        )
        if not off < _EXACT:
            raise RefinerError("the operations are no group that acts on the atoms of the crystal")


class Blocks(NamedTuple):
    """The average over motions of n atoms as a sparse matrix: u_i <- sum of `matrices` u_j.

    Attributes:
        atoms: (E,) int64, atom i of each nonzero block.
        sources: (E,) int64, atom j, of the same orbit.
        matrices: (E, 3, 3) float64.
    """

    atoms: np.ndarray
    sources: np.ndarray
    matrices: np.ndarray

    @classmethod
    def identity(cls, num_atoms: int) -> Blocks:
        """Return the blocks of a crystal without symmetry: each motion is its own average.

        Args:
            num_atoms: number of atoms n.
        """
        atoms = np.arange(num_atoms)
        return cls(atoms, atoms, np.broadcast_to(np.eye(3), (num_atoms, 3, 3)))

    def average(self, motions: np.ndarray) -> np.ndarray:
        """Return the average over the group of motions (n, 3) of the atoms, in periods.

        Args:
            motions: (n, 3) velocities or displacements.
        """
        total = np.zeros_like(motions)
        np.add.at(total, self.atoms, np.einsum("eij,ej->ei", self.matrices, motions[self.sources]))
        return total


def find_symmetry(
    structure: Structure, symprec: float = SYMPREC, known: Operations | None = None
) -> Symmetry | None:
    """Return the symmetry that spglib finds in a rough crystal; None where its search fails.

    The operations are those that map the cell onto itself. A cell that is not primitive at
    `symprec`, such as one of three like cells of a cubic crystal in a row, has fewer than its space
    group.

    Where a search fails, or the atoms do not follow its operations, it is repeated with a tenth and
    a hundredth of `symprec`.

    Args:
        structure: ordered crystal, in any cell.
        symprec: distance in Angstrom within which atoms count as symmetric; the tolerance of angles
            is spglib's default, which follows from it.
        known: the operations, where they are known; nothing is searched if they are those of a
            group and put atoms on atoms.
    """
    if known is not None:
        try:
            return Symmetry.of(structure, known, tolerance=2 * symprec)
        except RefinerError:
            pass
    for scale in _FALLBACKS:
        operations = _search(structure, scale * symprec)
        if operations is not None:
            try:
                return Symmetry.of(structure, operations, tolerance=2 * scale * symprec)
            except RefinerError:
                continue
    return None


def _exact(structure: Structure, symprec: float) -> Operations | None:
    """Return the operations that moyo finds in a primitive cell, the same at a hundredth of
    `symprec`; None for any other crystal.

    On such crystals moyo and spglib agree, and moyo takes a twentieth of the time. Cells that are
    not reduced are left to spglib: on some of them moyo does not come to an end.
    """
    if not _is_reduced(structure.lattice):
        return None
    matrix, coords = structure.lattice.matrix.tolist(), structure.frac_coords.tolist()
    cell = moyopy.Cell(matrix, coords, list(structure.atomic_numbers))
    try:
        strict = moyopy.MoyoDataset(cell, symprec=_STRICT * symprec)
        found = moyopy.MoyoDataset(cell, symprec=symprec)
    except ValueError:
        return None
    primitive = len(found.prim_std_cell.numbers) == len(structure)
    if not primitive or found.number == 1 or strict.number != found.number:
        return None
    operations = found.operations
    return Operations(np.array(operations.rotations), np.array(operations.translations))


def _is_reduced(lattice: Lattice) -> bool:
    """Return whether the vectors of a cell are about as short as those of its LLL reduction."""
    shortest = np.linalg.norm(lattice.lll_matrix, axis=1)
    return bool(shortest.min() >= _SHORTEST and np.prod(lattice.abc) <= 1.01 * np.prod(shortest))


def _search(structure: Structure, symprec: float) -> Operations | None:
    """Return the operations that moyo finds in an exact crystal, or spglib in another, or None."""
    if (exact := _exact(structure, symprec)) is not None:
        return exact
    # Without this, spglib's C code writes to stderr where it finds less symmetry than expected.
    os.environ.setdefault("SPGLIB_WARNING", "OFF")
    cell: Any = (structure.lattice.matrix, structure.frac_coords, structure.atomic_numbers)
    with warnings.catch_warnings():
        # spglib will raise SpglibError instead of returning None; both are handled here.
        warnings.filterwarnings("ignore", "Set OLD_ERROR_HANDLING", DeprecationWarning)
        try:
            dataset = spglib.get_symmetry_dataset(cell, symprec=symprec)
        except spglib.SpglibError:
            return None
    return None if dataset is None else Operations(dataset.rotations, dataset.translations)


def _sources(
    structure: Structure, rotations: np.ndarray, translations: np.ndarray, tolerance: float
) -> np.ndarray:
    """Return the atom that each operation puts on each atom, (G, n); see `Symmetry.of`."""
    coords, matrix = structure.frac_coords, structure.lattice.matrix
    numbers = np.array(structure.atomic_numbers)
    other = np.where(numbers[:, None] == numbers, 0.0, np.inf)  # (n, n)
    images = np.einsum("gij,nj->gni", rotations, coords) + translations[:, None]  # (G, n, 3)
    parts = []
    size = max(1, _PAIRS_AT_A_TIME // len(coords) ** 2)
    for at in range(0, len(images), size):
        # From each atom i to the images of all atoms j: (g, i, j, 3).
        off = images[at : at + size, None] - coords[:, None]
        off = (off - np.rint(off)) @ matrix
        distances = np.sqrt(np.einsum("gijd,gijd->gij", off, off)) + other
        if (distances.min(axis=2) > tolerance).any():
            raise RefinerError("an operation does not put atoms on atoms of their element")
        parts.append(distances.argmin(axis=2))
    sources = np.concatenate(parts)
    if (np.sort(sources, axis=1) != np.arange(len(coords))).any():
        raise RefinerError("an operation puts two atoms on one")
    return sources
