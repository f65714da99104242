"""Write `llm_prior/wyckoff/table.json`: Wyckoff positions and normalizers of the 230 space groups.

    python -m pip install moyopy==0.21.0
    python tools/make_wyckoff_table.py llm_prior/wyckoff/table.json

The setting of a group is spglib's default (its smallest Hall number): origin choice 1, hexagonal
axes for rhombohedral lattices, unique axis b and cell choice 1 for monoclinic ones. Letters, site
symmetries and representative coordinates are read from moyopy. Operations are spglib's. Normalizers
are solved for here: every (P, p) that maps the group onto itself, P out of the symmetries of the
lattice, p on a grid of 1/24.
"""

from __future__ import annotations

import itertools
import json
import re
import sys
import warnings
from fractions import Fraction
from pathlib import Path

import moyopy
import numpy as np
import spglib

GRID = 24  # every coordinate of a special position is a multiple of 1/24 in these settings
FAMILIES = {2: "triclinic", 15: "monoclinic", 74: "orthorhombic", 142: "tetragonal"}
FAMILIES |= {194: "hexagonal", 230: "cubic"}
# A generic cell of each family: six numbers without a relation.
CELLS = {
    "triclinic": (9.1, 10.7, 12.9, 81.0, 75.3, 67.7),
    "monoclinic": (9.1, 10.7, 12.9, 90.0, 101.3, 90.0),
    "orthorhombic": (9.1, 10.7, 12.9, 90.0, 90.0, 90.0),
    "tetragonal": (9.1, 9.1, 12.9, 90.0, 90.0, 90.0),
    "hexagonal": (9.1, 9.1, 12.9, 90.0, 90.0, 120.0),
    "cubic": (9.1, 9.1, 9.1, 90.0, 90.0, 90.0),
}
ENANTIOMORPHS = {76: 78, 91: 95, 92: 96, 144: 145, 151: 153, 152: 154, 169: 170, 171: 172}
ENANTIOMORPHS |= {178: 179, 180: 181, 212: 213}
MONOCLINIC_STEPS = range(-2, 3)  # entries of a change of the a and c axes


def main(target: str) -> None:
    """Write the table, one group a line."""
    warnings.filterwarnings("ignore", "Set OLD_ERROR_HANDLING", DeprecationWarning)
    lines = [json.dumps(group_facts(number)) for number in range(1, 231)]
    text = '{"setting": "smallest Hall number (spglib default, origin choice 1)", "groups": [\n'
    Path(target).write_text(text + ",\n".join(lines) + "\n]}\n")


def group_facts(number: int) -> dict[str, object]:
    """Return what the table says of one group."""
    hall = HALL_NUMBERS[number]
    found = spglib.get_symmetry_from_database(hall)
    rotations = np.asarray(found["rotations"], dtype=int)  # (g, 3, 3)
    shifts = ticks(found["translations"])  # (g, 3)
    family = next(name for last, name in FAMILIES.items() if number <= last)
    identity = (rotations == np.eye(3, dtype=int)).all((1, 2))
    centring = shifts[identity]  # (l, 3)
    polar = polar_axes(rotations)
    cosets, cells = normalizer(rotations, shifts, centring, polar, family)
    partner = ENANTIOMORPHS | {high: low for low, high in ENANTIOMORPHS.items()}
    return {
        "number": number,
        "symbol": spglib.get_spacegroup_type(hall).international_short,
        "hall": hall,
        "family": family,
        "polar": polar,
        "enantiomorph": partner.get(number),
        "positions": [
            [*position, is_characteristic(number, rotations, shifts, position[3], family)]
            for position in positions(number, rotations, shifts, family)
        ],
        "normalizer": [xyz(*coset) for coset in cosets],
        "cells": [xyz(*cell) for cell in cells],
    }


def ticks(values: object) -> np.ndarray:
    """Return coordinates in units of 1/24, modulo 1."""
    scaled = np.asarray(values, dtype=float) * GRID
    assert np.abs(scaled - np.rint(scaled)).max() < 1e-3
    return np.rint(scaled).astype(int) % GRID


def polar_axes(rotations: np.ndarray) -> str:
    """Return the axes along which the origin is free; in these settings they are x, y or z."""
    fixed = [axis for axis in range(3) if (rotations[:, :, axis] == np.eye(3)[axis]).all()]
    null = 3 - np.linalg.matrix_rank(np.concatenate(rotations - np.eye(3, dtype=int)))
    assert null == len(fixed)
    return "".join("xyz"[axis] for axis in fixed)


# ---------------------------------------------------------------------------------------------
# Wyckoff positions


def positions(
    number: int,
    rotations: np.ndarray,
    shifts: np.ndarray,
    family: str,
) -> list[tuple[str, int, str, str]]:
    """Return (letter, multiplicity, site symmetry, coordinates) of each position.

    A crystal with one atom of a new element on every position, at random places with respect to
    the free parameters, is given to moyopy.
    """
    rng = np.random.default_rng(number)
    points = representatives(rotations, shifts, rng)
    lattice = cell_matrix(CELLS[family])
    crystal = [*points, *rng.random((3, 3))]  # no orbit alone would show that P1 is not P-1
    orbits = [distinct(rotations @ point + shifts / GRID) for point in crystal]
    kinds = [kind for kind, orbit in enumerate(orbits, 1) for _ in orbit]
    cell = moyopy.Cell(lattice.tolist(), np.concatenate(orbits).tolist(), kinds)
    found = moyopy.MoyoDataset(
        cell, symprec=1e-4, setting=moyopy.Setting.hall_number(HALL_NUMBERS[number])
    )
    assert found.number == number, (number, found.number)
    table = {
        p.letter: (p.letter, p.multiplicity, p.site_symmetry, p.coordinates)
        for p in found.normalizer_wyckoff_positions().wyckoffs
    }
    assert len(table) == len(points), (number, len(table), len(points))
    return [table[letter] for letter in sorted(table, key=lambda x: (x.isupper(), x))]


def is_characteristic(
    number: int, rotations: np.ndarray, shifts: np.ndarray, coordinates: str, family: str
) -> bool:
    """Return whether one orbit of a position, for general coordinates and cell, has exactly the
    symmetry of the group."""
    rng = np.random.default_rng(number)
    values = dict(zip("xyz", rng.random(3), strict=True))
    point = np.array([evaluate(word, values) for word in coordinates.split(",")])
    orbit = distinct(rotations @ point + shifts / GRID)
    cell = (cell_matrix(CELLS[family]), orbit, [1] * len(orbit))
    return spglib.get_symmetry_dataset(cell, symprec=1e-4).number == number


def evaluate(word: str, values: dict[str, float]) -> float:
    """Return the value of a coordinate such as `-2x+1/4`."""
    total = 0.0
    for sign, factor, axis, offset in re.findall(r"([+-]?)(\d*)([xyz])|(\+?\d+(?:/\d+)?)", word):
        if axis:
            total += float(f"{sign}{factor or 1}") * values[axis]
        else:
            total += float(Fraction(offset.lstrip("+")))
    return total


def representatives(
    rotations: np.ndarray, shifts: np.ndarray, rng: np.random.Generator
) -> list[np.ndarray]:
    """Return one generic point of every Wyckoff position.

    The points of a position form affine subspaces, each fixed by a site-symmetry group. Every such
    subspace passes through a point of the grid, so it is the common fixed space of some operations
    of the site-symmetry group of a grid point.
    """
    grid = np.stack(np.meshgrid(*[np.arange(GRID)] * 3, indexing="ij"), -1).reshape(-1, 3)
    radix = np.array([GRID * GRID, GRID, 1])
    visited = np.zeros(GRID**3, dtype=bool)
    found: list[tuple[np.ndarray, np.ndarray, int]] = []  # generic point, directions, multiplicity
    general = False
    for index, point in enumerate(grid):
        if visited[index]:
            continue
        images = (rotations @ point + shifts) % GRID
        visited[images @ radix] = True
        fixed = rotations[(images == point).all(1)]
        if len(fixed) == 1 and general:
            continue
        general |= len(fixed) == 1
        for directions in fixed_spaces(fixed):
            while True:
                generic = point / GRID + directions @ rng.uniform(-0.5, 0.5, directions.shape[1])
                moved = rotations @ generic + shifts / GRID
                if len(distinct(moved)) == len(distinct(moved, 1e-2)):
                    break  # not by chance near a more special position
            multiplicity = len(distinct(moved))
            if not any(
                multiplicity == other_multiplicity
                and directions.shape == other_directions.shape
                and reaches(moved, other, other_directions)
                for other, other_directions, other_multiplicity in found
            ):
                found.append((generic, directions, multiplicity))
    return [generic for generic, *_ in found]


def fixed_spaces(rotations: np.ndarray) -> list[np.ndarray]:
    """Return a basis (3, d) of each subspace that is fixed by a subset of the operations."""
    spaces: dict[bytes, np.ndarray] = {}

    def add(rows: np.ndarray) -> None:
        _, values, basis = np.linalg.svd(rows)
        kernel = basis[np.sum(values > 1e-9) :].T
        spaces.setdefault(np.rint(kernel @ kernel.T * 1e6).astype(int).tobytes(), kernel)

    for rotation in rotations:
        add(rotation - np.eye(3))
    for one, other in itertools.combinations(list(spaces.values()), 2):
        add(np.vstack([np.eye(3) - one @ one.T, np.eye(3) - other @ other.T]))
    add(np.concatenate(rotations - np.eye(3)))
    return list(spaces.values())


def distinct(points: np.ndarray, tolerance: float = 1e-6) -> np.ndarray:
    """Return the points (n, 3) without those that repeat another one modulo 1."""
    gaps = points[:, None] - points
    same = np.abs(gaps - np.rint(gaps)).max(-1) < tolerance
    return points[np.unique(same.argmax(1))] % 1


STEPS = np.array(list(itertools.product(range(-3, 4), repeat=3)))


def reaches(points: np.ndarray, origin: np.ndarray, directions: np.ndarray) -> bool:
    """Return whether one of the points lies on an affine subspace, modulo 1."""
    outside = np.eye(3) - directions @ directions.T
    gaps = points - origin
    gaps = (gaps - np.floor(gaps))[:, None] - STEPS  # (n, s, 3)
    return bool((np.abs(gaps @ outside).max(-1) < 1e-6).any())


def cell_matrix(cell: tuple[float, ...]) -> np.ndarray:
    """Return the lattice vectors (3, 3), in rows, of a cell in Angstrom and degrees."""
    a, b, c = cell[:3]
    alpha, beta, gamma = np.cos(np.radians(cell[3:]))
    metric = np.array(
        [
            [a * a, a * b * gamma, a * c * beta],
            [a * b * gamma, b * b, b * c * alpha],
            [a * c * beta, b * c * alpha, c * c],
        ]
    )
    return np.linalg.cholesky(metric)


# ---------------------------------------------------------------------------------------------
# Normalizers


def normalizer(
    rotations: np.ndarray, shifts: np.ndarray, centring: np.ndarray, polar: str, family: str
) -> tuple[list[tuple[np.ndarray, np.ndarray]], list[tuple[np.ndarray, np.ndarray]]]:
    """Return the cosets of the normalizer modulo the group, and changes of the cell.

    Returns:
        The cosets: (P, p) with x' = P x + p, p in 1/24, the identity first, for every P that
        leaves the form of the family's metric (for orthorhombic groups also permutations of the
        axes); shifts along polar axes are left out, for the origin is free there. And for
        monoclinic groups proper changes (P, p) of the a and c axes, one for each P up to the sign
        of both; elsewhere nothing.
    """
    group = {key(w, t, centring, polar) for w, t in zip(rotations, shifts, strict=True)}
    cosets: list[tuple[np.ndarray, np.ndarray]] = []
    seen: set[tuple[int, ...]] = set()
    for linear in linear_parts(family):
        for shift in origin_shifts(linear, rotations, shifts, centring, polar):
            if key(linear, shift, centring, polar) in seen:
                continue
            cosets.append((linear, shift))
            for w, t in zip(rotations, shifts, strict=True):
                seen.add(key(w @ linear, w @ shift + t, centring, polar))
    assert key(*cosets[0], centring, polar) in group
    cells = []
    if family == "monoclinic":
        for p, q, r, s in itertools.product(MONOCLINIC_STEPS, repeat=4):
            determinant = p * s - q * r
            if abs(determinant) != 1 or (p, q) < (0, 0):
                continue
            linear = np.array([[p, 0, q], [0, determinant, 0], [r, 0, s]])
            if (linear == np.eye(3)).all():
                continue
            for shift in origin_shifts(linear, rotations, shifts, centring, polar)[:1]:
                cells.append((linear, shift))
    return cosets, cells


def linear_parts(family: str) -> list[np.ndarray]:
    """Return the unimodular matrices that leave the form of the metric, the identity first."""
    signed = [
        np.array(signs)[:, None] * np.eye(3, dtype=int)[list(order)]
        for order in itertools.permutations(range(3))
        for signs in itertools.product((1, -1), repeat=3)
    ]
    if family == "hexagonal":
        sixfold = np.array([[1, -1, 0], [1, 0, 0], [0, 0, 1]])
        twofold = np.array([[0, 1, 0], [1, 0, 0], [0, 0, -1]])
        return [
            sign * np.linalg.matrix_power(twofold, flip) @ np.linalg.matrix_power(sixfold, turn)
            for sign in (1, -1)
            for flip in (0, 1)
            for turn in range(6)
        ]
    parts = signed
    if family == "triclinic":
        parts = [m for m in signed if (np.abs(m) == np.eye(3)).all() and abs(np.trace(m)) == 3]
    elif family == "monoclinic":
        parts = [m for m in signed if (np.abs(m) == np.eye(3)).all() and m[0, 0] == m[2, 2]]
    elif family == "tetragonal":
        parts = [m for m in signed if abs(m[2, 2]) == 1]
    return parts


GRID_POINTS = np.stack(np.meshgrid(*[np.arange(GRID)] * 3, indexing="ij"), -1).reshape(-1, 3)


def origin_shifts(
    linear: np.ndarray,
    rotations: np.ndarray,
    shifts: np.ndarray,
    centring: np.ndarray,
    polar: str,
) -> list[np.ndarray]:
    """Return every p, modulo lattice and polar axes, for which (P, p) normalizes the group."""
    inverse = np.rint(np.linalg.inv(linear)).astype(int)
    lattice = {tuple(t) for t in centring.tolist()}
    if {tuple(t) for t in ((centring @ linear.T) % GRID).tolist()} != lattice:
        return []
    place = {w.tobytes(): i for i, w in enumerate(rotations)}
    candidates = GRID_POINTS[(GRID_POINTS[:, ["xyz".index(axis) for axis in polar]] == 0).all(1)]
    radix = np.array([GRID * GRID, GRID, 1])
    is_lattice = np.zeros(GRID**3, dtype=bool)
    is_lattice[centring @ radix] = True
    done: set[bytes] = set()
    for w, t in zip(rotations, shifts, strict=True):
        image = linear @ w @ inverse
        if image.tobytes() not in place:
            return []
        if w.tobytes() in done:
            continue  # the same up to a lattice vector
        done.add(w.tobytes())
        gaps = candidates @ (np.eye(3, dtype=int) - image).T + linear @ t
        gaps = (gaps - shifts[place[image.tobytes()]]) % GRID
        candidates = candidates[is_lattice[gaps @ radix]]
    unique = {key(linear, p, centring, polar): p for p in candidates[::-1]}
    return sorted(unique.values(), key=lambda p: (p.sum(), *(-p)))


def key(linear: np.ndarray, shift: np.ndarray, centring: np.ndarray, polar: str) -> tuple[int, ...]:
    """Return one name for (P, p) modulo lattice vectors and shifts along the polar axes."""
    moved = (shift + centring) % GRID
    moved[:, ["xyz".index(axis) for axis in polar]] = 0
    return (*linear.ravel().tolist(), *min(map(tuple, moved.tolist())))


def xyz(linear: np.ndarray, shift: np.ndarray) -> str:
    """Return (P, p) in the notation of the International Tables, such as -y,x,z+1/2."""
    words = []
    for row, offset in zip(linear.tolist(), (shift % GRID).tolist(), strict=True):
        word = ""
        for factor, axis in zip(row, "xyz", strict=True):
            if factor:
                sign = "-" if factor < 0 else "+" if word else ""
                word += sign + ("" if abs(factor) == 1 else str(abs(factor))) + axis
        if offset:
            word += f"+{Fraction(offset, GRID)}"
        words.append(word)
    return ",".join(words)


HALL_NUMBERS: dict[int, int] = {}
with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)
    for hall_number in range(530, 0, -1):
        HALL_NUMBERS[spglib.get_spacegroup_type(hall_number).number] = hall_number

if __name__ == "__main__":
    main(*sys.argv[1:])
