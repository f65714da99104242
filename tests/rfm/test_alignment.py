"""Pairing of a base crystal with its target."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pymatgen.core import Lattice, Structure
from pymatgen.core.structure_matcher import StructureMatcher
from scipy.spatial.transform import Rotation

import rfm.alignment as align_module
from rfm.alignment import HANDEDNESS_COST, LATTICE_WEIGHT, Alignment, align
from rfm.errors import RefinerError

FCC = np.array([[0, 1, 1], [1, 0, 1], [1, 1, 0]]) / 2
BCC = np.array([[-1, 1, 1], [1, -1, 1], [1, 1, -1]]) / 2
HEXAGONAL = np.array([[1, 0, 0], [-0.5, np.sqrt(0.75), 0], [0, 0, 1]])


def crystal(lattice: np.ndarray, *sites: tuple[str, tuple[float, float, float]]) -> Structure:
    return Structure(lattice, [s for s, _ in sites], [x for _, x in sites])


def decorated(lattice: np.ndarray, seed: int) -> Structure:
    """Atoms without any symmetry on a symmetric lattice: only one of the tied bases is right."""
    rng = np.random.default_rng(seed)
    return Structure(lattice, ["O", "Na", "Na", "Cl"], rng.random((4, 3)))


HAND_MADE = {
    "fcc Al": crystal(4.05 * FCC, ("Al", (0, 0, 0))),
    "bcc W": crystal(3.16 * BCC, ("W", (0, 0, 0))),
    "hcp Mg": crystal(
        [3.2, 3.2, 5.2] * HEXAGONAL, ("Mg", (1 / 3, 2 / 3, 0.25)), ("Mg", (2 / 3, 1 / 3, 0.75))
    ),
    "rock salt": crystal(5.69 * FCC, ("Na", (0, 0, 0)), ("Cl", (0.5, 0.5, 0.5))),
    "zinc blende": crystal(5.41 * FCC, ("Zn", (0, 0, 0)), ("S", (0.25, 0.25, 0.25))),
    "Heusler": crystal(
        6.03 * FCC,
        ("Cu", (0.25, 0.25, 0.25)),
        ("Cu", (0.75, 0.75, 0.75)),
        ("Mn", (0.5, 0.5, 0.5)),
        ("Al", (0, 0, 0)),
    ),
    "wurtzite": crystal(
        [3.25, 3.25, 5.21] * HEXAGONAL,
        ("Zn", (1 / 3, 2 / 3, 0)),
        ("Zn", (2 / 3, 1 / 3, 0.5)),
        ("O", (1 / 3, 2 / 3, 0.382)),
        ("O", (2 / 3, 1 / 3, 0.882)),
    ),
    "quartz, chiral": crystal(
        [4.91, 4.91, 5.40] * HEXAGONAL,
        ("Si", (0.47, 0, 0)),
        ("Si", (0, 0.47, 2 / 3)),
        ("Si", (0.53, 0.53, 1 / 3)),
        ("O", (0.413, 0.267, 0.119)),
        ("O", (0.733, 0.146, 0.786)),
        ("O", (0.854, 0.587, 0.452)),
        ("O", (0.267, 0.413, 0.881)),
        ("O", (0.146, 0.733, 0.214)),
        ("O", (0.587, 0.854, 0.548)),
    ),
    "decorated cubic": decorated(4.2 * np.eye(3), 0),
    "decorated fcc": decorated(5.9 * FCC, 1),
    "decorated bcc": decorated(5.2 * BCC, 2),
    "decorated hexagonal": decorated([4.1, 4.1, 6.3] * HEXAGONAL, 3),
}


def niggli(structure: Structure) -> Structure:
    return structure.get_reduced_structure("niggli")


def rounded(structure: Structure) -> Structure:
    """As the text of a crystal has it: 0.1 Angstrom, whole degrees, two decimals."""
    lattice = structure.lattice
    cell = Lattice.from_parameters(*np.round(lattice.abc, 1), *np.round(lattice.angles))
    return Structure(cell, structure.species, np.round(structure.frac_coords, 2) % 1)


def random_change_of_basis(rng: np.random.Generator) -> np.ndarray:
    change = np.diag(rng.choice([-1, 1], size=3))[rng.permutation(3)]
    for row, other in itertools.permutations(range(3), 2):
        change[row] += rng.integers(-2, 3) * change[other]
    return change


def redescribed(structure: Structure, rng: np.random.Generator) -> Structure:
    """The same crystal in another basis, site order, origin and orientation in space."""
    change = random_change_of_basis(rng)
    order = rng.permutation(len(structure))
    coords = structure.frac_coords @ np.linalg.inv(change) + rng.random(3)
    species = [structure.species[k] for k in order]
    rotation = Rotation.random(rng=rng).as_matrix()
    return Structure(change @ structure.lattice.matrix @ rotation, species, coords[order])


def wrapped(x: np.ndarray) -> np.ndarray:
    return x - np.rint(x)


def displacements(pair: Alignment) -> np.ndarray:
    return wrapped(pair.target_frac_coords - pair.base_frac_coords)


def log_metric(lattice: np.ndarray) -> np.ndarray:
    values, vectors = np.linalg.eigh(lattice @ lattice.T)
    return vectors @ np.diag(np.log(values)) @ vectors.T


def assert_same_crystal(pair: Alignment, target: Structure) -> None:
    """The aligned target differs from the target by basis, site order and origin only."""
    change = pair.target_lattice @ np.linalg.inv(target.lattice.matrix)
    assert np.allclose(change, np.rint(change), atol=1e-6)
    assert abs(np.linalg.det(change)) == pytest.approx(1, abs=1e-6)
    coords = pair.target_frac_coords @ np.rint(change)
    numbers = np.array(target.atomic_numbers)
    same_element = pair.atomic_numbers[:, None] == numbers[None, :]
    for k in np.flatnonzero(same_element[0]):
        moved = coords + target.frac_coords[k] - coords[0]
        distance = np.abs(wrapped(moved[:, None] - target.frac_coords[None])).max(axis=2)
        meets = (distance < 1e-6) & same_element
        if (meets.sum(axis=0) == 1).all() and (meets.sum(axis=1) == 1).all():
            return
    pytest.fail(f"the aligned target is not {target.formula}")


def assert_aligned_to_rounding(pair: Alignment, base: Structure, target: Structure) -> None:
    n = len(base)
    assert np.array_equal(pair.atomic_numbers, base.atomic_numbers)
    assert np.array_equal(pair.base_frac_coords, base.frac_coords)
    assert np.array_equal(pair.base_lattice, base.lattice.matrix)
    d = displacements(pair)
    assert np.abs(d.mean(axis=0)).max() < 1e-9
    assert pair.cost == pytest.approx(np.sum(d**2), abs=1e-12)
    # Rounding moves a coordinate by 0.005 at most: 3 * 0.005^2 per atom, and a margin for the
    # exchange of a little displacement against a little cell.
    assert pair.cost <= 1e-4 * n
    cell_error = log_metric(pair.target_lattice) - log_metric(pair.base_lattice)
    assert np.linalg.norm(cell_error) < 0.1
    assert_same_crystal(pair, target)


@pytest.mark.parametrize("name", HAND_MADE)
@pytest.mark.parametrize("seed", range(3))
def test_rounded_self_aligns(name: str, seed: int) -> None:
    structure = niggli(HAND_MADE[name])
    base = rounded(structure)
    target = redescribed(structure, np.random.default_rng(seed))
    pair = align(base, target)
    assert_aligned_to_rounding(pair, base, target)
    matcher = StructureMatcher(
        ltol=1e-3, stol=1e-3, angle_tol=0.1, primitive_cell=False, scale=False
    )
    species = [base.species[k] for k in range(len(base))]
    assert matcher.fit(Structure(pair.target_lattice, species, pair.target_frac_coords), target)


def test_rounded_mp20_aligns(mp20: list[Structure]) -> None:
    rng = np.random.default_rng(0)
    for structure in mp20:
        base, target = rounded(structure), redescribed(structure, rng)
        assert_aligned_to_rounding(align(base, target), base, target)


def test_own_niggli_basis_of_each_side_is_not_enough(
    mp20: list[Structure], monkeypatch: pytest.MonkeyPatch
) -> None:
    def niggli_basis_only(
        base_lattice: np.ndarray, lattice: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        return np.eye(3)[None], np.zeros(1)

    monkeypatch.setattr(align_module, "nearest_bases", niggli_basis_only)
    rng = np.random.default_rng(0)
    pairs = [align(niggli(rounded(s)), redescribed(s, rng)) for s in mp20]
    failed = [pair.cost > 0.01 * len(pair.atomic_numbers) for pair in pairs]
    assert np.mean(failed) > 0.05


@pytest.mark.parametrize("lattice", [4.2 * np.eye(3), 5.9 * FCC, 5.2 * BCC, 4.1 * HEXAGONAL])
def test_tied_bases_are_decided_by_the_atoms(lattice: np.ndarray) -> None:
    rng = np.random.default_rng(0)
    without_choice = []
    for seed in range(8):
        base = niggli(decorated(lattice, seed))
        target = redescribed(base, rng)
        assert align(base, target).cost < 1e-12
        reduced = niggli(target)
        coords = reduced.frac_coords[np.argsort(reduced.atomic_numbers)]
        without_choice.append(_best_cost(base, coords))
    assert np.median(without_choice) > 0.05


def _best_cost(base: Structure, coords: np.ndarray) -> float:
    """Smallest cost in one basis, over all assignments and all lifts of the displacements.

    `coords` are those of the base's elements, in the same order.
    """
    symbols = [site.specie.symbol for site in base]
    orders = [
        order
        for order in itertools.permutations(range(len(symbols)))
        if [symbols[k] for k in order] == symbols
    ]
    lifts = np.array(list(itertools.product((-1, 0, 1), repeat=len(symbols))))
    costs = []
    for order in orders:
        d = wrapped(coords[list(order)] - base.frac_coords)
        lifted = d.T[:, None, :] + lifts[None]  # (3, lifts, n)
        costs.append(np.sum(np.min(np.var(lifted, axis=2), axis=1)) * len(symbols))
    return float(min(costs))


@pytest.mark.parametrize("lattice", [4.2 * np.eye(3), 5.9 * FCC, 4.1 * HEXAGONAL])
@pytest.mark.parametrize("noise", [0.05, 0.15])
def test_agrees_with_exhaustive_search(lattice: np.ndarray, noise: float) -> None:
    """Over every basis with entries -1, 0, 1 near the best, every assignment, every translation."""
    entries = np.array(list(itertools.product((-1, 0, 1), repeat=9))).reshape(-1, 3, 3)
    changes = entries[np.abs(np.rint(np.linalg.det(entries))) == 1]
    for seed in range(4):
        rng = np.random.default_rng(seed)
        target = niggli(decorated(lattice, seed))
        strain = np.eye(3) + rng.normal(0, 0.02, (3, 3))
        shaken = target.frac_coords + rng.normal(0, noise, (4, 3))
        base = Structure(target.lattice.matrix @ strain, target.species, shaken)
        pair = align(base, redescribed(target, rng))

        base_log = log_metric(base.lattice.matrix)
        found = np.linalg.norm(log_metric(pair.target_lattice) - base_log)
        expected = np.inf
        for change in changes:
            distance = np.linalg.norm(log_metric(change @ target.lattice.matrix) - base_log)
            if distance < 0.3:
                cost = _best_cost(base, target.frac_coords @ np.linalg.inv(change))
                expected = min(expected, cost / 4 + LATTICE_WEIGHT * distance**2)
        achieved = pair.cost / 4 + LATTICE_WEIGHT * found**2
        assert achieved == pytest.approx(expected, abs=HANDEDNESS_COST + 1e-9)


def test_lone_displaced_atom_does_not_mislead() -> None:
    """The only atom of the rarest element is far off: the others have to fix the origin."""
    rng = np.random.default_rng(0)
    coords = rng.random((7, 3))
    target = Structure(
        Lattice.from_parameters(5, 6, 7, 80, 85, 75), ["O"] + ["Na"] * 3 + ["Cl"] * 3, coords
    )
    moved = coords.copy()
    moved[0] += [0.3, -0.2, 0.25]
    base = Structure(target.lattice, target.species, moved)
    for _ in range(5):
        d = displacements(align(base, redescribed(target, rng)))
        others = d[1:] - d[1:].mean(axis=0)
        assert np.abs(others).max() < 1e-9


def test_cell_decides_where_atoms_cannot() -> None:
    rng = np.random.default_rng(0)
    cell = Lattice.orthorhombic(3.0, 3.05, 3.1)
    target = Structure(cell, ["Na", "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]])
    for _ in range(5):
        base = Structure(cell, target.species, target.frac_coords + rng.random(3))
        pair = align(base, redescribed(target, rng))
        assert np.linalg.norm(pair.target_lattice, axis=1) == pytest.approx(cell.abc, abs=1e-9)
        assert np.linalg.det(pair.target_lattice) > 0


@given(st.integers(0, 2**32 - 1), st.sampled_from(sorted(HAND_MADE)), st.floats(0, 0.03))
@settings(max_examples=60, deadline=None)
def test_description_of_the_target_does_not_matter(seed: int, name: str, noise: float) -> None:
    rng = np.random.default_rng(seed)
    target = niggli(HAND_MADE[name])
    coords = target.frac_coords + noise * rng.uniform(-1, 1, (len(target), 3))
    strain = np.eye(3) + noise * rng.uniform(-1, 1, (3, 3))
    base = Structure(target.lattice.matrix @ strain, target.species, coords)
    other = redescribed(target, rng)
    first, second = align(base, target), align(base, other)
    assert second.cost == pytest.approx(first.cost, abs=1e-7)
    # The basis and the sites as they stand are one candidate: aligning can only be better.
    n = len(target)
    as_it_stands = wrapped(coords - target.frac_coords)
    as_it_stands -= as_it_stands.mean(axis=0)
    cell_error = log_metric(target.lattice.matrix) - log_metric(base.lattice.matrix)
    bound = np.sum(as_it_stands**2) / n + LATTICE_WEIGHT * np.sum(cell_error**2)
    assert first.cost / n <= bound + 1e-9
    assert np.abs(displacements(second).mean(axis=0)).max() < 1e-9
    assert_same_crystal(second, other)


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=25, deadline=None)
def test_permuting_and_translating_the_base_moves_the_target_along(seed: int) -> None:
    rng = np.random.default_rng(seed)
    target = HAND_MADE["quartz, chiral"]
    base = rounded(niggli(target))
    order, shift = rng.permutation(len(base)), rng.random(3)
    moved = Structure(
        base.lattice, [base.species[k] for k in order], (base.frac_coords + shift)[order]
    )
    first, second = align(base, target), align(moved, target)
    assert second.cost == pytest.approx(first.cost, abs=1e-9)
    assert np.array_equal(second.atomic_numbers, first.atomic_numbers[order])


def test_unrelated_positions_still_give_the_same_crystal() -> None:
    rng = np.random.default_rng(0)
    target = HAND_MADE["quartz, chiral"]
    for _ in range(10):
        cell = Lattice.from_parameters(*rng.uniform(3, 8, 3), *rng.uniform(70, 110, 3))
        base = niggli(Structure(cell, target.species, rng.random((9, 3))))
        pair = align(base, target)
        assert_same_crystal(pair, target)
        assert np.abs(displacements(pair).mean(axis=0)).max() < 1e-9
        assert ((pair.target_frac_coords >= 0) & (pair.target_frac_coords < 1)).all()


def test_mirror_image_is_matched_by_a_left_handed_basis() -> None:
    """Left- and right-handed quartz look the same to the refiner, and have the same energy."""
    target = HAND_MADE["quartz, chiral"]
    base = Structure(target.lattice, target.species, -target.frac_coords)
    pair = align(base, target)
    assert pair.cost < 1e-12
    assert np.linalg.det(pair.base_lattice) * np.linalg.det(pair.target_lattice) < 0
    assert_same_crystal(pair, target)


def test_single_atom_is_put_on_the_base_atom() -> None:
    base = crystal(2.9 * FCC, ("Cu", (0.31, 0.97, 0.5)))
    pair = align(base, crystal(3.6 * FCC, ("Cu", (0.1, 0.2, 0.3))))
    assert pair.cost == pytest.approx(0, abs=1e-24)
    assert displacements(pair) == pytest.approx(np.zeros((1, 3)), abs=1e-12)


def test_coinciding_atoms_are_no_obstacle() -> None:
    target = HAND_MADE["hcp Mg"]
    base = Structure(target.lattice, target.species, np.zeros((2, 3)))
    assert_same_crystal(align(base, target), target)


def test_different_compositions_are_refused() -> None:
    with pytest.raises(RefinerError, match="'Na1 Cl1' with 'Zn1 S1'"):
        align(HAND_MADE["rock salt"], HAND_MADE["zinc blende"])
    doubled = HAND_MADE["rock salt"] * (2, 1, 1)
    with pytest.raises(RefinerError, match="'Na1 Cl1' with 'Na2 Cl2'"):
        align(HAND_MADE["rock salt"], doubled)


def test_structures_that_cannot_be_aligned_are_refused() -> None:
    good = crystal(3 * np.eye(3), ("Na", (0, 0, 0)))
    with pytest.raises(RefinerError, match="ordered"):
        align(good, Structure(3 * np.eye(3), [{"Na": 0.5, "K": 0.5}], [[0, 0, 0]]))
    with pytest.raises(RefinerError, match="without atoms"):
        align(Structure(3 * np.eye(3), [], []), good)
    with pytest.raises(RefinerError, match="volume"):
        align(crystal(np.diag([3.0, 3.0, 0.0]), ("Na", (0, 0, 0))), good)
    with pytest.raises(RefinerError, match="finite"):
        align(crystal(3 * np.eye(3), ("Na", (np.nan, 0, 0))), good)
