"""Site fingerprints against those of matminer and pymatgen, called directly."""

from __future__ import annotations

import itertools
import warnings

import numpy as np
import pytest
from pymatgen.analysis.local_env import CrystalNN
from pymatgen.core import Lattice, Site, Structure

from flowllm.metrics import coordination
from flowllm.metrics.coordination import coordinations
from flowllm.metrics.fingerprints import _structure_featurizer, site_fingerprints
from flowllm.metrics.order_parameters import Angles, order_parameter

pytest.importorskip("matminer", reason="matminer is not installed")

OCTAHEDRON = np.vstack([np.eye(3), -np.eye(3)])
CUBE = np.array(list(itertools.product([-1.0, 1.0], repeat=3)))
CUBOCTAHEDRON = np.array([v for v in itertools.product([-1.0, 0, 1], repeat=3) if v.count(0) == 1])
MOTIFS = [
    pytest.param(number, motif, id=f"{number}-{motif.get_type(0)}-{place}")
    for number, motifs in _structure_featurizer().ops.items()
    for place, motif in enumerate(motifs)
    if motif != "wt"
]
RUTILE = Structure.from_spacegroup(
    "P4_2/mnm", Lattice.tetragonal(4.594, 2.959), ["Ti", "O"], [[0, 0, 0], [0.305, 0.305, 0]]
)
PEROVSKITE = Structure.from_spacegroup(
    "Pm-3m", Lattice.cubic(3.905), ["Sr", "Ti", "O"], [[0, 0, 0], [0.5] * 3, [0.5, 0.5, 0]]
)
LAYERS = Structure.from_spacegroup(
    "P6_3/mmc",
    Lattice.hexagonal(3.16, 12.3),
    ["Mo", "S"],
    [[1 / 3, 2 / 3, 0.25], [1 / 3, 2 / 3, 0.621]],
)
SPARSE = Structure(Lattice.cubic(9.0), ["Cs", "I"], [[0, 0, 0], [0.5, 0.5, 0.5]])
CRYSTALS = {"rutile": RUTILE, "perovskite": PEROVSKITE, "layers": LAYERS, "sparse": SPARSE}


def disturbed(structure: Structure, seed: int) -> Structure:
    """Return the crystal without equal distances, whose order would depend on the last bit."""
    generator = np.random.default_rng(seed)
    moved = structure.copy()
    moved.translate_sites(range(len(moved)), [0.5, 0.5, 0.5])
    shifts = generator.normal(scale=0.02, size=(len(moved), 3))
    return Structure(moved.lattice, moved.species, moved.frac_coords + shifts)


@pytest.mark.parametrize(("number", "motif"), MOTIFS)
def test_each_order_parameter_equals_pymatgen(number, motif):
    generator = np.random.default_rng(number)
    neighbours = [generator.normal(size=(number, 3)) for _ in range(10)]
    for regular in (OCTAHEDRON, CUBE, CUBOCTAHEDRON):
        if number <= len(regular):
            near = regular[:number] + generator.normal(scale=0.03, size=(number, 3))
            neighbours += [regular[:number], near]
    vectors = np.array(neighbours)
    theirs = [
        motif.get_order_parameters(
            [Site("H", [0, 0, 0]), *(Site("H", v) for v in of_site)],
            0,
            indices_neighs=list(range(1, number + 1)),
        )[0]
        for of_site in vectors
    ]
    angles = Angles.between(vectors / np.linalg.norm(vectors, axis=-1, keepdims=True))
    ours = order_parameter(motif.get_type(0), motif.get_parameters(0), angles)
    assert ours == pytest.approx([value or 0 for value in theirs], abs=1e-9)


@pytest.mark.parametrize("name", CRYSTALS)
@pytest.mark.parametrize("seed", [0, 1])
def test_each_site_fingerprint_equals_matminer(name, seed):
    crystal = disturbed(CRYSTALS[name], seed)
    featurizer = _structure_featurizer()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = [featurizer.featurize(crystal, i) for i in range(len(crystal))]
        ours = site_fingerprints(crystal)
    assert ours == pytest.approx(np.array(theirs, dtype=float), abs=1e-8)


@pytest.mark.parametrize("nearest", [4, 8, 12, 16])
def test_a_voronoi_cell_is_the_same_from_few_atoms_and_from_all(nearest, monkeypatch):
    crystal = disturbed(LAYERS, 0)
    monkeypatch.setattr(coordination, "_NEAREST", 10_000)
    from_all = coordinations(crystal)
    monkeypatch.setattr(coordination, "_NEAREST", nearest)
    for site, expected in zip(coordinations(crystal), from_all, strict=True):
        assert site.probabilities == pytest.approx(expected.probabilities)


def test_open_voronoi_cells_are_left_to_pymatgen():
    # Within 7 Angstrom of an atom there is only itself: pymatgen looks further.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        lonely = Structure(Lattice.cubic(8.0), ["Cs"], [[0, 0, 0]])
        (found,) = coordinations(lonely)
        theirs = CrystalNN().get_nn_data(lonely, 0)
    assert found.probabilities == {n: w for n, w in theirs.cn_weights.items() if n > 0}
