"""Relaxed candidates: symmetric minima, saddles, and potentials that fail."""

from __future__ import annotations

import contextlib
import multiprocessing
from dataclasses import replace

import numpy as np
import pytest
from ase.calculators.emt import EMT
from pymatgen.core import Lattice, Structure

from flowllm.crystals.symmetry import symmetry_of
from flowllm.energy.isolated import IsolatedRelaxation
from flowllm.prediction.minima import (
    FREE,
    LOWER,
    SYMMETRIC,
    displaced,
    isolated_relaxer,
    leave_saddles,
    relaxer,
)
from support import same_bits

EMT_NAME = "ase.calculators.emt:EMT"


def cubic(symbol: str, a: float) -> Structure:
    return Structure(Lattice.cubic(a), [symbol, symbol], [[0, 0, 0], [0.5, 0.5, 0.5]])


def fcc(symbol: str, a: float) -> Structure:
    side = a / 2**0.5
    return Structure(Lattice.from_parameters(side, side, side, 60, 60, 60), [symbol], [[0, 0, 0]])


def test_a_saddle_is_left_and_a_minimum_is_not() -> None:
    relax = relaxer(EMT())
    simple = Structure(Lattice.cubic(2.4), ["Cu"], [[0, 0, 0]])
    kept = relax([simple, fcc("Cu", 3.6)], SYMMETRIC)
    structures = [one.structure for one in kept if one.structure is not None]
    assert [group_of(structure) for structure in structures] == [221, 225]
    energies = [one.energy_per_atom for one in kept if one.energy_per_atom is not None]
    of_simple, of_fcc = leave_saddles(structures, energies, relax, seed=0)
    assert of_fcc is None
    assert of_simple is not None and of_simple.energy_per_atom is not None
    assert of_simple.energy_per_atom == pytest.approx(energies[1], abs=LOWER)
    assert of_simple.structure is not None and group_of(of_simple.structure) == 225


def group_of(structure: Structure) -> int:
    symmetry = symmetry_of(structure)
    assert symmetry is not None
    return symmetry.spacegroup


def test_displacements_are_small_and_a_function_of_the_seed() -> None:
    start = cubic("Cu", 2.9)
    one, again, other = (displaced(start, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert same_bits(one, again) and not same_bits(one, other)
    assert start == cubic("Cu", 2.9)
    assert 0 < np.abs(one.lattice.matrix - start.lattice.matrix).max() < 0.1
    assert 0 < max(a.distance(b, jimage=[0, 0, 0]) for a, b in zip(start, one, strict=True)) < 0.3


def test_an_isolated_potential_gives_the_same_and_survives_what_it_does_not_know() -> None:
    structures = [cubic("Na", 4.2), fcc("Cu", 3.7)]
    with contextlib.closing(IsolatedRelaxation(EMT_NAME)) as process:
        isolated = isolated_relaxer(process)(structures, SYMMETRIC)
    assert not multiprocessing.active_children()
    here = relaxer(EMT())(structures, SYMMETRIC)
    assert isolated[0].failure is not None and "Na" in isolated[0].failure
    assert same_bits(isolated[1].structure, here[1].structure)
    assert isolated[1].energy_per_atom == here[1].energy_per_atom


def test_a_failed_free_relaxation_leaves_the_crystal() -> None:
    relax = relaxer(EMT())
    (failed,) = leave_saddles([cubic("Na", 4.2)], [-1.0], relax, seed=0)
    assert failed is not None and failed.structure is None and failed.failure is not None
    assert FREE.symmetry == "free" and replace(FREE, symmetry="keep") == SYMMETRIC
    assert pytest.approx(0.001) == LOWER
