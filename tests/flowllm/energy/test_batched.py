"""Relaxation in batches: the results of one by one, and bad crystals that fail alone."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from ase import Atoms
from ase.calculators.emt import EMT
from pymatgen.core import Lattice, Structure

from flowllm.crystals.crystal import to_atoms
from flowllm.crystals.io import read
from flowllm.energy.batched import Evaluating, relax_structures, relaxations
from flowllm.energy.calculators import load_calculator
from flowllm.energy.minimization import RelaxationConfig, _log, relax_structure
from flowllm.energy.single_points import BatchCalculator, SinglePoint, single_points
from support import MP20_SAMPLE

NAMES = ("chgnet", "sevennet")
_PACKAGES = {"chgnet": "chgnet", "sevennet": "sevenn"}


def fcc(symbol: str, a: float) -> Structure:
    side = a / 2**0.5
    return Structure(Lattice.from_parameters(side, side, side, 60, 60, 60), [symbol], [[0, 0, 0]])


METALS = [fcc("Cu", 3.7), fcc("Au", 4.2), fcc("Ag", 4.1), fcc("Pt", 4.0), fcc("Pd", 3.9)]


class Batched(BatchCalculator):
    """EMT on batches of three crystals; it notes their sizes, and fails for silver."""

    batch_atoms = 3

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[int] = []

    def evaluate(self, batch: Sequence[Atoms]) -> list[SinglePoint]:
        self.sizes.append(len(batch))
        if any("Ag" in atoms.symbols for atoms in batch):
            raise RuntimeError("no silver")
        return [point for atoms in batch for point in single_points(EMT(), [atoms])]


@pytest.mark.parametrize("symmetry", ["free", "keep"])
def test_a_batch_gives_what_one_by_one_gives(symmetry: str) -> None:
    limits = RelaxationConfig(symmetry=symmetry, trajectories=True)
    calculator = Batched()
    found = relax_structures(METALS, calculator, config=limits)
    assert max(calculator.sizes) == 3
    assert [r.failure for r in found] == [None, None, "relaxation: no silver", None, None]
    for structure, relaxed in zip(METALS, found, strict=True):
        alone = relax_structure(structure, EMT(), config=limits)
        if relaxed.structure is not None:
            assert relaxed.structure == alone.structure
            assert relaxed.energy_per_atom == alone.energy_per_atom
            assert relaxed.steps == alone.steps == len(relaxed.frames) - 1
    assert relax_structures(METALS[:1], EMT()) == relax_structures(METALS[:1], Batched())


def test_crystals_leave_the_batch_at_their_end_and_others_enter() -> None:
    events = list(relaxations(METALS, Batched(), RelaxationConfig()))
    ends = {event[0]: k for k, event in enumerate(events) if not isinstance(event, Evaluating)}
    assert ends.keys() == set(range(5))
    for index, end in ends.items():
        calls = [
            k for k, e in enumerate(events) if isinstance(e, Evaluating) and index in e.indices
        ]
        assert calls and max(calls) < end
    together = [len(e.indices) for e in events if isinstance(e, Evaluating)]
    assert max(together) == 3 and together[0] == 3


def test_limits_hold_for_each_crystal_of_a_batch() -> None:
    found = relax_structures(METALS[:2], Batched(), step_limit=1, force_limit=1e-9)
    assert {r.failure for r in found} == {"relaxation: not converged in 1 steps"}
    assert [r.steps for r in found] == [1, 1]
    found = relax_structures(METALS[:2], Batched(), time_limit=1e-9)
    assert {r.failure for r in found} == {"relaxation: over the time limit of 1e-09 s"}
    assert relax_structures([], Batched()) == []


def test_the_logarithm_is_the_one_of_scipy() -> None:
    from scipy.linalg import logm

    rng = np.random.default_rng(0)
    for size in (0.0, 1e-3, 0.05, 0.1, 0.3):
        deformation = np.eye(3) + size * rng.normal(size=(3, 3))
        assert np.allclose(_log(deformation), logm(deformation), rtol=0, atol=1e-14)


@pytest.mark.parametrize("name", NAMES)
def test_a_potential_says_the_same_of_a_crystal_in_any_batch(name: str) -> None:
    pytest.importorskip(_PACKAGES[name])
    calculator = load_calculator(name, check=False)
    batch = [to_atoms(c.structure) for c in read(MP20_SAMPLE, limit=5)]
    together = calculator.evaluate(batch)
    for atoms, point in zip(batch, together, strict=True):
        atoms.calc = calculator
        assert point.energy / len(atoms) == pytest.approx(
            atoms.get_potential_energy() / len(atoms), abs=1e-5
        )
        assert np.allclose(point.forces, atoms.get_forces(), rtol=0, atol=1e-4)
        assert np.allclose(point.stress, atoms.get_stress(), rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_a_potential_says_what_its_package_says(name: str) -> None:
    pytest.importorskip(_PACKAGES[name])
    if name == "chgnet":
        from chgnet.model.dynamics import CHGNetCalculator

        own = CHGNetCalculator(use_device="cpu")
    else:
        from sevenn.calculator import SevenNetCalculator

        with pytest.warns(UserWarning, match="No tensor product accelerator"):
            own = SevenNetCalculator("7net-0", device="cpu")
    batch = [to_atoms(c.structure) for c in read(MP20_SAMPLE, limit=4)]
    batch[0].rattle(0.1, seed=0)
    for atoms, point in zip(batch, load_calculator(name, check=False).evaluate(batch), strict=True):
        atoms.calc = own
        assert point.energy / len(atoms) == pytest.approx(
            atoms.get_potential_energy() / len(atoms), abs=1e-5
        )
        assert np.allclose(point.forces, atoms.get_forces(), rtol=0, atol=1e-4)
        assert np.allclose(point.stress, atoms.get_stress(), rtol=0, atol=1e-5)


def test_energies_alone_are_those_with_forces() -> None:
    pytest.importorskip("chgnet")
    from flowllm.energy.chgnet_potential import CHGNetPotential

    potential = CHGNetPotential("0.3.0")
    batch = [to_atoms(c.structure) for c in read(MP20_SAMPLE, limit=4)]
    expected = [
        point.energy / len(atoms)
        for atoms, point in zip(batch, potential.evaluate(batch), strict=True)
    ]
    assert potential.energies_per_atom(batch) == pytest.approx(expected, abs=1e-5)


def test_a_graph_of_arrays_is_the_one_of_chgnet() -> None:
    pytest.importorskip("chgnet")
    from chgnet.graph import CrystalGraphConverter

    from flowllm.energy.chgnet_potential import crystal_graph

    for crystal in read(MP20_SAMPLE, limit=8):
        own = CrystalGraphConverter()(crystal.structure)
        ours = crystal_graph(to_atoms(crystal.structure), 6.0, 3.0)
        for name in ("atom_graph", "undirected2directed", "bond_graph"):
            assert len(getattr(ours, name)) == len(getattr(own, name))
        assert sorted(map(tuple, ours.atom_graph.tolist())) == sorted(
            map(tuple, own.atom_graph.tolist())
        )


def test_an_atom_without_neighbors_fails_alone() -> None:
    pytest.importorskip("chgnet")
    lonely = Structure(Lattice.cubic(9.0), ["Ar"], [[0, 0, 0]])
    found = single_points(
        load_calculator("chgnet", check=False), [*map(to_atoms, METALS), to_atoms(lonely)]
    )
    assert [isinstance(point, str) for point in found] == [False] * 5 + [True]
    assert found[5] == "1 of 1 atoms have no neighbor within 6 Angstrom"
