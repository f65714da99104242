"""Description of a target crystal as near as possible to its base crystal.

One crystal has many descriptions: any basis of its lattice, any order of its atoms, any origin.
A flow is trained on straight paths from base to target, so what it must learn depends on the
description of the target. `align` leaves the base crystal as it is and picks the description of the
target with (nearly) the shortest path:

1. Basis. The rows of a lattice matrix L may be replaced by M L with an integer matrix M of
   determinant +-1; fractional coordinates (rows) become f M^-1. The flow of the cell is linear in
   log G with G = L L^T, so the distance between two cells is the length of that straight line, the
   Frobenius norm |log G0 - log G1|. Equivalent bases (the point group of the lattice) tie exactly,
   and rounding splits ties at random, hence all bases near the smallest distance are kept.
2. Atoms and origin. For each basis kept: the assignment per element and the common translation
   with the smallest sum of squared wrapped displacements. Displacements are measured in fractional
   coordinates, dimension by dimension, as the loss and the straight lines on the torus are.
3. The basis chosen in the end minimises mean |df|^2 + LATTICE_WEIGHT |dlog G|^2.

Determinant -1 is allowed. M L is the same crystal in the same place in space, only with a
left-handed matrix; the refiner sees G and f, which a crystal shares with its mirror image of the
same energy.

The search is our own because pymatgen's StructureMatcher finds no mapping beyond its tolerances,
and a rough base often lies beyond them. SciPy solves the assignments.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from itertools import product

import numpy as np
from pymatgen.core import Structure
from scipy.optimize import linear_sum_assignment

from rfm.errors import RefinerError

# The loss weighs mean squared displacements (per atom and dimension) 400 to 1 against the cell's
# (per dimension, over its variance, about 0.25): (1 / (6 * 0.25)) / (400 / 3) = 0.005.
LATTICE_WEIGHT = 0.005
# A basis of the other handedness than the base's must be better by this much (mean |df|^2), so that
# it is not taken where it makes no difference.
HANDEDNESS_COST = 1e-6
# Lengths rounded to 0.1 Angstrom and angles to 1 degree move log G by up to about this much.
NEAR_TIE = 0.1
# Bases whose exact distance is computed; the largest point group of a lattice gives 24.
BASES_MEASURED = 96
# Assignments solved exactly, out of all bases and translations screened.
ASSIGNMENTS_SOLVED = 64


@dataclass(kw_only=True, frozen=True)
class Alignment:
    """A base crystal and the description of its target that is nearest to it.

    Sites are in the base's order. Lattice rows are the vectors a, b, c in Angstrom.

    Attributes:
        atomic_numbers: (n,) int64, of both crystals.
        base_frac_coords: (n, 3) as given.
        base_lattice: (3, 3) as given.
        target_frac_coords: (n, 3) in [0, 1).
        target_lattice: (3, 3), may be left-handed (see the module docstring).
        cost: sum over atoms of the squared wrapped displacement, in periods squared; the mean
            displacement is zero.
    """

    atomic_numbers: np.ndarray
    base_frac_coords: np.ndarray
    base_lattice: np.ndarray
    target_frac_coords: np.ndarray
    target_lattice: np.ndarray
    cost: float


def align(base: Structure, target: Structure) -> Alignment:
    """Return the description of `target` in the basis, site order and origin nearest to `base`.

    Args:
        base: crystal that stays as it is; its cell should be Niggli-reduced, rounded afterwards at
            most.
        target: crystal of the same composition, in any cell.

    Raises:
        RefinerError: if the compositions differ, a structure is empty, disordered or not finite, or
            the target's cell cannot be reduced.
    """
    atomic_numbers = _checked_numbers(base)
    target_numbers = _checked_numbers(target)
    if not np.array_equal(np.sort(atomic_numbers), np.sort(target_numbers)):
        raise RefinerError(
            f"cannot align {base.formula!r} with {target.formula!r}: "
            "base and target need the same atoms in one cell"
        )
    # Atoms of one element stand together from here on, in both crystals.
    order = np.argsort(atomic_numbers, kind="stable")
    numbers = atomic_numbers[order]
    base_coords = base.frac_coords[order]

    reduced = _niggli(target)
    coords = target.cart_coords[np.argsort(target_numbers, kind="stable")] @ np.linalg.inv(reduced)
    bases, distances = nearest_bases(base.lattice.matrix, reduced)
    # M and -M have one metric but different fractional coordinates.
    bases = np.concatenate([bases, -bases])
    lattice_cost = LATTICE_WEIGHT * np.concatenate([distances, distances]) ** 2
    turned = np.linalg.det(bases @ reduced) * np.linalg.det(base.lattice.matrix) < 0
    lattice_cost[turned] += HANDEDNESS_COST
    rebased = coords @ np.rint(np.linalg.inv(bases))  # (B, n, 3)

    best, displacements = _match_atoms(base_coords, rebased, numbers, lattice_cost)
    target_coords = np.empty_like(base_coords)
    target_coords[order] = base_coords + displacements
    target_coords %= 1.0
    target_coords[target_coords == 1.0] = 0.0  # -1e-17 % 1.0 is 1.0
    return Alignment(
        atomic_numbers=atomic_numbers,
        base_frac_coords=base.frac_coords.copy(),
        base_lattice=base.lattice.matrix.copy(),
        target_frac_coords=target_coords,
        target_lattice=bases[best] @ reduced,
        cost=float(np.sum(displacements**2)),
    )


def nearest_bases(base_lattice: np.ndarray, lattice: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the changes of basis M that bring a lattice nearest to a base lattice, up to sign.

    Entries of M are -1, 0, 1: between reduced cells that are at all alike nothing nearer exists.

    Args:
        base_lattice: (3, 3) reduced, rows a, b, c in Angstrom.
        lattice: (3, 3) likewise.

    Returns:
        M (K, 3, 3), and the distances |log G0 - log G1| (K,) in ascending order: all up to
        max(2 d, d + NEAR_TIE), where d is the smallest.
    """
    changes = _unimodular()
    # With X = L0^-1 M L1 and w the eigenvalues of G0^-1 G1, |X|^2 + |X^-1|^2 = sum of w + 1/w: near
    # the squared distance plus 6, and two matrix products, since vec(A M B) = (A x B^T) vec(M).
    inverse, base_inverse = np.linalg.inv(lattice), np.linalg.inv(base_lattice)
    forward = changes.reshape(-1, 9) @ np.kron(base_inverse, lattice.T).T
    backward = _inverses().reshape(-1, 9) @ np.kron(inverse, base_lattice.T).T
    screen = np.sum(forward**2, axis=1) + np.sum(backward**2, axis=1)
    changes = changes[np.argpartition(screen, BASES_MEASURED)[:BASES_MEASURED]]

    distances = np.linalg.norm(
        _log_metric(changes @ lattice) - _log_metric(base_lattice), axis=(1, 2)
    )
    order = np.argsort(distances, kind="stable")
    smallest = distances[order[0]]
    order = order[distances[order] <= smallest + max(smallest, NEAR_TIE)]
    return changes[order], distances[order]


def _match_atoms(
    base_coords: np.ndarray, rebased: np.ndarray, numbers: np.ndarray, lattice_cost: np.ndarray
) -> tuple[int, np.ndarray]:
    """Return the best basis and the displacements, over all assignments and translations.

    Args:
        base_coords: (n, 3) sorted by `numbers`.
        rebased: (B, n, 3) coordinates of the target in each basis, sorted by `numbers`.
        numbers: (n,) atomic numbers, ascending.
        lattice_cost: (B,) cost of each basis, added to its mean squared displacement.

    Returns:
        Index of the basis, and displacements (n, 3) from base to target.
    """
    n = len(numbers)
    # All pairs (i of base, j of target) of one element, sorted by i.
    i, j = np.nonzero(numbers[:, None] == numbers[None, :])
    first_of_i = np.searchsorted(i, np.arange(n))

    # In the best match most atoms nearly coincide with their partners, so translations that put one
    # atom on another are good starts: one target atom of every element on each of its base atoms.
    # A single element would do for exact matches, but not where just that atom is displaced.
    anchored = np.isin(j, np.searchsorted(numbers, numbers))
    shifts = base_coords[i[anchored]] - rebased[:, j[anchored]]  # (B, T, 3)
    differences = (rebased[:, j] - base_coords[i]).astype(np.float32)  # (B, P, 3)
    totals = np.empty(shifts.shape[:2])
    for t in range(shifts.shape[1]):
        moved = differences + shifts[:, t, None].astype(np.float32)
        moved -= np.rint(moved)
        squares = np.einsum("bpd,bpd->bp", moved, moved)
        # Nearest atoms instead of an assignment: a lower bound before the translation is refined.
        nearest = np.minimum.reduceat(squares, first_of_i, axis=1)  # (B, n)
        totals[:, t] = nearest.sum(axis=1) / n + lattice_cost

    few = np.argsort(totals, axis=None, kind="stable")[:ASSIGNMENTS_SOLVED]
    basis, start = np.unravel_index(few, totals.shape)
    displacements = _assign(base_coords, rebased[basis] + shifts[basis, start, None], numbers)
    best = np.argmin(np.sum(displacements**2, axis=(1, 2)) / n + lattice_cost[basis])
    return int(basis[best]), displacements[best]


def _assign(base_coords: np.ndarray, coords: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    """Alternate optimal assignment and optimal translation until the cost falls no more.

    Args:
        base_coords: (n, 3).
        coords: (K, n, 3) coordinates of the target in K starts.
        numbers: (n,) atomic numbers of both.

    Returns:
        Displacements (K, n, 3) with zero mean over atoms.
    """
    forbidden = np.where(numbers[:, None] == numbers[None, :], 0.0, np.inf)
    atoms = np.arange(len(numbers))
    coords = coords.copy()
    best = np.zeros_like(coords)
    best_cost = np.full(len(coords), np.inf)
    active = np.arange(len(coords))
    while len(active) > 0:
        # (K, n base, n target, 3)
        difference = coords[active, None, :, :] - base_coords[:, None, :]
        difference -= np.rint(difference)
        costs = np.einsum("kijd,kijd->kij", difference, difference) + forbidden
        columns = np.array([linear_sum_assignment(cost)[1] for cost in costs])
        assigned = difference[np.arange(len(active))[:, None], atoms, columns]
        displacements, shifts = _centre(assigned)
        cost = np.sum(displacements**2, axis=(1, 2))
        improved = cost < best_cost[active] - 1e-12
        active = active[improved]
        best[active], best_cost[active] = displacements[improved], cost[improved]
        coords[active] += shifts[improved]
    return best


def _centre(displacements: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Translate displacements (K, n, 3) on the torus to the smallest sum of squares over atoms.

    In each dimension the best translation is minus the mean of some lift of the points to the
    line, and these means are, modulo 1, mean + k / n with k = 0 .. n-1: all are tried.

    Returns:
        Displacements (K, n, 3) with zero mean, and the translations (K, 1, 3) added.
    """
    n = displacements.shape[1]
    shifts = np.arange(n)[:, None] / n - displacements.mean(axis=1, keepdims=True)  # (K, n, 3)
    lifted = displacements[:, None] + shifts[:, :, None]  # (K, n translations, n atoms, 3)
    lifted -= np.rint(lifted)
    costs = np.einsum("ktnd,ktnd->ktd", lifted, lifted)
    best = np.argmin(costs, axis=1)[:, None]  # (K, 1, 3)
    centred = np.take_along_axis(lifted, best[:, None], axis=1)[:, 0]
    return centred, np.take_along_axis(shifts, best, axis=1)


@cache
def _unimodular() -> np.ndarray:
    """Return the matrices with entries in {-1, 0, 1} and determinant +1: (3480, 3, 3).

    M and -M give the same metric, so the 3480 of determinant -1 are left out.
    """
    matrices = np.array(list(product((-1, 0, 1), repeat=9)), dtype=float).reshape(-1, 3, 3)
    return matrices[np.rint(np.linalg.det(matrices)) == 1]


@cache
def _inverses() -> np.ndarray:
    """Return the inverses of `_unimodular`, (3480, 3, 3)."""
    return np.rint(np.linalg.inv(_unimodular()))


def _log_metric(lattices: np.ndarray) -> np.ndarray:
    """Return the symmetric matrix logarithm of G = L L^T for lattices (..., 3, 3)."""
    values, vectors = np.linalg.eigh(lattices @ np.swapaxes(lattices, -1, -2))
    return (vectors * np.log(values)[..., None, :]) @ np.swapaxes(vectors, -1, -2)


def _niggli(structure: Structure) -> np.ndarray:
    """Return the Niggli-reduced lattice (3, 3) of a structure."""
    try:
        return structure.lattice.get_niggli_reduced_lattice().matrix
    except ValueError as error:
        raise RefinerError(
            f"cannot reduce the cell of {structure.formula!r} with lengths and angles "
            f"{structure.lattice.parameters}: give a less skewed cell of the same lattice"
        ) from error


def _checked_numbers(structure: Structure) -> np.ndarray:
    """Return the atomic numbers (n,) of a structure, checked for alignment."""
    if len(structure) == 0:
        raise RefinerError("cannot align a structure without atoms: give one with at least one")
    if not structure.is_ordered:
        raise RefinerError(
            f"cannot align {structure.formula!r}: make it ordered, one element on every site"
        )
    if not (structure.volume > 0 and np.isfinite(structure.frac_coords).all()):
        raise RefinerError(
            f"cannot align {structure.formula!r}: its cell needs a volume and its coordinates "
            "finite values"
        )
    return np.array(structure.atomic_numbers, dtype=np.int64)
