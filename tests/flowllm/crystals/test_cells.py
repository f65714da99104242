"""Niggli cells."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import spglib
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from pymatgen.core import DummySpecies, Lattice, Structure

from flowllm.crystals.cells import NIGGLI_TOLERANCE, make_structure, reduce_basis, reduce_cell, wrap
from flowllm.errors import InvalidCrystal


def metric(lattice: np.ndarray) -> np.ndarray:
    """(A, B, C, xi, eta, zeta): squared lengths and doubled scalar products."""
    g = lattice @ lattice.T
    return np.array([g[0, 0], g[1, 1], g[2, 2], 2 * g[1, 2], 2 * g[0, 2], 2 * g[0, 1]])


def is_niggli(lattice: np.ndarray, eps: float) -> bool:
    """The main conditions of a reduced cell (International Tables A, 9.2.2.1).

    The conditions for equalities are left out: they choose between equal cells.
    """
    a, b, c, xi, eta, zeta = metric(lattice)
    ordered = a <= b + eps and b <= c + eps
    short = abs(xi) <= b + eps and abs(eta) <= a + eps and abs(zeta) <= a + eps
    positive = min(xi, eta, zeta) > -eps
    negative = max(xi, eta, zeta) < eps and xi + eta + zeta + a + b >= -eps
    return ordered and short and (positive or negative)


@st.composite
def lattices(draw: st.DrawFn) -> np.ndarray:
    """Right-handed cells of 2 to 12 Angstrom and 50 to 130 degrees, turned at random."""
    lengths = [draw(st.floats(2, 12)) for _ in range(3)]
    angles = [draw(st.floats(50, 130)) for _ in range(3)]
    cosines = np.cos(np.radians(angles))
    assume(1 - (cosines**2).sum() + 2 * cosines.prod() > 0.05)  # closes a cell that is not flat
    lattice = Lattice.from_parameters(*lengths, *angles).matrix
    rotation, _ = np.linalg.qr(np.random.default_rng(draw(st.integers(0, 999))).normal(size=(3, 3)))
    return lattice @ rotation * np.sign(np.linalg.det(rotation))


@st.composite
def basis_changes(draw: st.DrawFn) -> np.ndarray:
    """Integer matrices of determinant +-1: products of shears and a permutation."""
    change = np.eye(3)[list(draw(st.permutations(range(3))))]
    for _ in range(draw(st.integers(0, 4))):
        i, j = draw(st.sampled_from([(0, 1), (0, 2), (1, 0), (1, 2), (2, 0), (2, 1)]))
        shear = np.eye(3)
        shear[i, j] = draw(st.integers(-3, 3))
        change = shear @ change
    return change


coordinates = hnp.arrays(
    np.float64, st.tuples(st.integers(1, 6), st.just(3)), elements=st.floats(-3, 3, width=32)
)


@given(lattice=lattices(), change=basis_changes(), frac_coords=coordinates)
@settings(max_examples=150, deadline=None)
def test_result_is_reduced_and_the_same_crystal(lattice, change, frac_coords):
    given_lattice = change @ lattice
    reduced, new = reduce_basis(given_lattice, frac_coords)
    eps = 4 * NIGGLI_TOLERANCE * np.linalg.det(lattice) ** (2 / 3)
    assert is_niggli(reduced, eps)
    assert np.all((new >= 0) & (new < 1))
    # Standard orientation, right-handed.
    assert np.array_equal(reduced, np.tril(reduced))
    assert np.all(np.diag(reduced) > 0)
    # The same lattice: a rotation of it is an integer change of basis, and the same atoms: every
    # difference of two positions has the same length modulo the lattice.
    assert np.linalg.det(reduced) == pytest.approx(abs(np.linalg.det(lattice)), rel=1e-9)
    before = Lattice(given_lattice).get_all_distances(frac_coords[:1], frac_coords)
    after = Lattice(reduced).get_all_distances(new[:1], new)
    assert np.allclose(after, reference_distances(lattice, change, frac_coords), atol=1e-6)
    assert np.all(after <= before + 1e-6)  # pymatgen sees only the nearest images of a skewed cell


def reference_distances(lattice, change, frac_coords) -> np.ndarray:
    """Shortest distances of the first atom to all, by brute force in the unskewed basis."""
    differences = (frac_coords - frac_coords[:1]) @ change  # in the basis of `lattice`
    differences -= np.round(differences)
    shifts = np.stack(np.meshgrid(*[np.arange(-8, 9)] * 3), axis=-1).reshape(-1, 3)
    images = (differences[:, None] + shifts[None]) @ lattice
    return np.linalg.norm(images, axis=-1).min(axis=1)[None]


@given(lattice=lattices(), change=basis_changes(), frac_coords=coordinates)
@settings(max_examples=100, deadline=None)
def test_same_result_from_any_basis(lattice, change, frac_coords):
    reduced, positions = reduce_basis(lattice, frac_coords)
    a, b, c, xi, eta, zeta = metric(reduced)
    # Away from the boundaries between Niggli types the reduced basis is unique.
    gaps = [b - a, c - b, abs(xi), abs(eta), abs(zeta), b - abs(xi), a - abs(eta), a - abs(zeta)]
    assume(min(gaps) > 0.01 and xi + eta + zeta + a + b > 0.01)
    again, moved = reduce_basis(change @ lattice, frac_coords @ np.linalg.inv(change))
    assert np.allclose(again, reduced, atol=1e-8)
    difference = moved - positions
    assert np.allclose(difference, np.round(difference), atol=1e-8)


@given(lattice=lattices(), frac_coords=coordinates, scale=st.floats(0.2, 5))
@settings(max_examples=50, deadline=None)
def test_reducing_twice_changes_nothing_and_scale_does_not_matter(lattice, frac_coords, scale):
    assume(np.linalg.det(lattice) * scale**3 > 1)
    reduced, positions = reduce_basis(lattice, frac_coords)
    again, same = reduce_basis(scale * reduced, positions)
    assert np.allclose(metric(again), scale**2 * metric(reduced), rtol=1e-9, atol=1e-4)


def test_worked_example_of_krivy_and_gruber():
    # Krivy & Gruber, Acta Cryst. A32 (1976) 297: (9, 27, 4, -5, -4, -22) -> (4, 9, 9, 9, 3, 4).
    gram = np.array([[9, -11, -2], [-11, 27, -2.5], [-2, -2.5, 4]])
    reduced, _ = reduce_basis(np.linalg.cholesky(gram), np.zeros((1, 3)))
    assert np.allclose(metric(reduced), [4, 9, 9, 9, 3, 4])


@pytest.mark.parametrize(
    ("cell", "expected"),
    [
        (Lattice.hexagonal(3, 5).matrix, (3, 3, 5, 90, 90, 120)),
        (Lattice.from_parameters(3, 3, 5, 90, 90, 60).matrix, (3, 3, 5, 90, 90, 120)),
        (np.array([[0, 2, 2], [2, 0, 2], [2, 2, 0]]), (8**0.5, 8**0.5, 8**0.5, 60, 60, 60)),
        (np.diag([5.0, 3.0, 4.0]), (3, 4, 5, 90, 90, 90)),
        # From MP-20. pymatgen's get_niggli_reduced_lattice has alpha = 82.6996 here.
        (
            Lattice.from_parameters(4.6735, 6.3914, 6.3914, 97.3004, 111.4451, 68.5549).matrix,
            (4.6735, 6.3914, 6.3914, 81.9366, 68.5549, 68.5549),
        ),
    ],
)
def test_known_cells(cell, expected):
    reduced, _ = reduce_basis(cell, np.zeros((1, 3)))
    assert Lattice(reduced).parameters == pytest.approx(expected, abs=2e-4)


def test_agrees_with_ase_on_metric():
    # ASE's own implementation of the same algorithm, on cells with and without symmetry.
    niggli_reduce_cell = pytest.importorskip("ase.build.niggli").niggli_reduce_cell
    rng = np.random.default_rng(0)
    for _ in range(100):
        cell = rng.normal(size=(3, 3)) * 4
        if abs(np.linalg.det(cell)) < 5:
            continue
        other, _ = niggli_reduce_cell(cell)
        reduced, _ = reduce_basis(cell, np.zeros((1, 3)))
        assert np.allclose(metric(reduced), metric(np.array(other)), atol=1e-6)


def test_chirality_survives_a_left_handed_basis():
    # Four corners of no mirror symmetry: the sign of their volume is the hand of the crystal.
    frac_coords = np.array([[0, 0, 0], [0.1, 0, 0], [0, 0.13, 0], [0, 0, 0.17]])
    cell = np.array([[4.0, 0.3, 0.1], [0.2, 5.0, 0.4], [-0.3, 0.5, 6.0]])
    swap = np.eye(3)[[1, 0, 2]]

    def hand(lattice: np.ndarray, positions: np.ndarray) -> float:
        edges = positions[1:] - positions[0]
        return float(np.linalg.det((edges - np.round(edges)) @ lattice))

    left = reduce_basis(swap @ cell, frac_coords @ swap)
    assert np.linalg.det(swap @ cell) < 0
    assert hand(*left) == pytest.approx(hand(cell, frac_coords))


def test_cell_too_skewed_for_spglib_alone_comes_back():
    fcc = np.array([[0, 2, 2], [2, 0, 2], [2, 2, 0]])
    skewed = np.array([[1, 0, -1], [252, 21, 2515], [-39, -4, -488]]) @ fcc
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Set OLD_ERROR_HANDLING", DeprecationWarning)
        assert spglib.niggli_reduce(skewed, eps=1e-5) is None
    reduced, _ = reduce_basis(skewed, np.zeros((1, 3)))
    expected = (8**0.5, 8**0.5, 8**0.5, 60, 60, 60)
    assert Lattice(reduced).parameters == pytest.approx(expected, abs=1e-6)


def test_cell_on_the_edge_of_the_tolerance():
    # mp-1189174, hexagonal but for its noise: spglib 2.8 runs in circles at the default tolerance.
    cell = Lattice.from_parameters(
        5.03443559, 5.03694517, 9.779958, 89.99988619, 90.00022935, 119.98351943
    ).matrix
    reduced, _ = reduce_basis(cell, np.zeros((1, 3)))
    eps = 100 * NIGGLI_TOLERANCE * np.linalg.det(cell) ** (2 / 3)
    assert is_niggli(reduced, eps)
    assert np.linalg.det(reduced) == pytest.approx(np.linalg.det(cell))


def test_skewed_beyond_the_precision_is_refused_with_the_cell():
    shear = np.array([[1, 10**5, 0], [10**5, 10**10 + 1, 0], [0, 0, 1]])
    with pytest.raises(InvalidCrystal, match="no Niggli cell found for the lattice") as error:
        reduce_basis(shear @ np.diag([3.0, 4.0, 5.0]), np.zeros((1, 3)))
    assert error.value.reason == "no_reduced_cell"


@pytest.mark.parametrize(
    ("cell", "match"),
    [
        (np.zeros((3, 3)), "volume of 0"),
        (np.ones((3, 3)), "volume of"),
        (np.diag([3, 3, np.nan]), "finite"),
        (np.diag([3, 3, np.inf]), "finite"),
        (np.diag([1e200, 1e200, 1e200]), "volume of inf"),
    ],
)
def test_cell_without_volume_is_refused(cell, match):
    with pytest.raises(InvalidCrystal, match=match) as error:
        reduce_basis(cell, np.zeros((1, 3)))
    assert error.value.reason == "bad_cell"


def test_reduce_cell_keeps_the_order_and_drops_the_extras():
    structure = Structure(
        Lattice.from_parameters(3, 4, 5, 40, 90, 90),
        ["Cl-", "Na+", "Cl-"],
        [[0.5, 0.5, 0.5], [0, -1e-17, 1.25], [0.1, 0.2, 0.3]],
        site_properties={"magmom": [1, 2, 3]},
        labels=["a", "b", "c"],
    )
    reduced = reduce_cell(structure)
    assert [site.species_string for site in reduced] == ["Cl", "Na", "Cl"]
    assert reduced.site_properties == {}
    assert reduced.labels == ["Cl", "Na", "Cl"]
    assert structure.site_properties == {"magmom": [1, 2, 3]}
    for i in range(3):
        assert reduced.get_distance(0, i) == pytest.approx(structure.get_distance(0, i), abs=1e-9)


@pytest.mark.parametrize(
    ("species", "reason"),
    [([{"Na": 0.5, "K": 0.5}], "disorder"), ([DummySpecies("Xx")], "unknown_element")],
)
def test_reduce_cell_refuses(species, reason):
    with pytest.raises(InvalidCrystal, match="site 1") as error:
        reduce_cell(Structure(Lattice.cubic(4), species, [[0, 0, 0]]))
    assert error.value.reason == reason


def test_make_structure_is_what_pymatgen_makes():
    lattice = Lattice.from_parameters(3, 4, 5, 80, 95, 100)
    frac_coords = np.random.default_rng(0).random((4, 3))
    made = make_structure(lattice.matrix, [11, 17, 1, 92], frac_coords)
    assert made == Structure(lattice, ["Na", "Cl", "H", "U"], frac_coords)
    # The shared composition objects do not tie structures to each other.
    other = make_structure(lattice.matrix, [11, 17, 1, 92], frac_coords)
    made.replace_species({"Na": "K"})
    made.add_oxidation_state_by_element({"K": 1, "Cl": -1, "H": 1, "U": 4})
    assert [site.species_string for site in other] == ["Na", "Cl", "H", "U"]


@given(st.floats(-1e6, 1e6))
def test_wrap_lands_in_the_unit_interval(x):
    wrapped = wrap(np.array([[x, -1e-17, 1.0]]))[0]
    assert 0 <= wrapped[0] < 1
    assert np.sin(2 * np.pi * wrapped[0]) == pytest.approx(np.sin(2 * np.pi * (x % 1)), abs=1e-9)
    assert wrapped[1] == 0 and wrapped[2] == 0
